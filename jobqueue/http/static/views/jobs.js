// The list of jobs by filter, the latest first. The filter is in the address.
// When the user types a text and then pauses, the page adds the text to the filter.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import * as addresses from "../address.js";
import { get } from "../api.js";
import { example } from "../example.js";
import * as format from "../format.js";
import { copier, queueNames, shortId, suggestions, tick, trouble, when } from "../parts.js";
import { STATES, UNFINISHED, stateOf } from "../state.js";

const PAUSE = 300; // ms without a key press before the search starts
const LOOKED_AT = 10_000; // maximum number of jobs that the service reads for one page; a text search in long error histories reads fewer
const REASON = 200; // maximum characters of a reason in a row
const WHOLE_ID = /^\s*([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*$/i;
const FIELDS = ["text", "queue", "kind", "group"];

// Keep the typed text outside of the view, because each pause opens a new view. The text must include keys pressed meanwhile.
let draft = {};
let typing = null;
let own = false;
// Show the last page until the next page has arrived.
let last = null;

export function open(page, { query }) {
  const states = (query.state ?? "").split(",").filter(Boolean);
  const filter = Object.fromEntries(FIELDS.map((name) => [name, query[name]]).filter(([, value]) => value));
  const filtered = states.length > 0 || Object.keys(filter).length > 0;
  let listing = last;
  let problem = null;
  let busy = true;
  let queues = [];

  if (!own) draft = { ...filter, states };
  page.signal.addEventListener("abort", () => clearTimeout(typing), { once: true });
  tick(page, 10_000);
  look();
  queueNames(page, (names) => {
    queues = names;
    page.update();
  });

  async function look() {
    busy = true;
    page.update();
    try {
      listing = last = await get("/jobs", { ...filter, state: states.join(","), after: query.after }, { signal: page.signal });
      problem = null;
    } catch (error) {
      if (page.signal.aborted) return;
      listing = last = null;
      problem = error;
      if (error.status === 401) page.fail(error);
    }
    busy = false;
    page.update();
  }

  const further = () => addresses.go(["jobs"], { ...query, after: listing.next });
  const newest = () => addresses.go(["jobs"], { ...query, after: undefined });

  const doomed = states.length ? states.filter((state) => UNFINISHED.includes(state)) : UNFINISHED;

  async function cancelAll() {
    const body = filtered ? { ...filter, ...(states.length ? { state: doomed } : {}) } : { all: true };
    const counted = await page.act("POST", "/jobs/cancel", { query: { dry_run: true }, body }, null);
    if (counted === null) return;
    if (counted.jobs === 0) {
      page.say("Nothing to cancel: no matching job is waiting or running.");
      return;
    }
    const sure = await page.confirm({
      title: `Cancel ${format.jobs(counted.jobs)}?`,
      text: html`
        <p>${filtered ? html`All waiting and running jobs that match this filter:` : html`<b>Without a filter, this cancels ALL waiting and running jobs in every queue.</b>`}</p>
        ${filtered ? told({ ...filter, states: doomed }) : nothing}
        <p>Waiting jobs will not run. Running jobs are cancelled by their nodes. You cannot undo this.</p>
      `,
      action: `Cancel ${format.jobs(counted.jobs)}`,
      danger: true,
    });
    if (!sure) return;
    await page.act("POST", "/jobs/cancel", { body }, ({ jobs }) => `${format.jobs(jobs)} cancelled; running ones are stopping.`);
    look();
  }

  function render() {
    return html`
      <div class="row spread">
        <h1>Jobs</h1>
        <div class="row">
          <button @click=${look} title="r">Refresh</button>
          <button
            ?disabled=${doomed.length === 0}
            title=${doomed.length === 0 ? "Only waiting and running jobs can be cancelled" : nothing}
            @click=${cancelAll}
          >Cancel all that match …</button>
        </div>
      </div>
      ${form(page, queues, listing)} ${trouble(problem)}
      <div aria-busy=${busy}>${content()}</div>
    `;
  }

  function content() {
    if (listing?.jobs.length) return html`${table()} ${pages()}`;
    if (busy) return html`<p class="quiet">Loading …</p>`;
    return listing ? html`${none()} ${pages()}` : nothing;
  }

  function table() {
    return html`
      <div class="scroll panel">
        <table class="jobs">
          <thead>
            <tr><th>Id</th><th>State</th><th>Kind</th><th>Queue</th><th class="number">Priority</th><th class="number">Attempt</th><th>Created</th><th>Latest</th><th>Reason</th></tr>
          </thead>
          <tbody>
            ${repeat(listing.jobs, ({ id }) => id, (job) => html`
              <tr>
                <td class="id"><a class="mono" data-row href=${addresses.to(["jobs", job.id])} title=${job.id}>${shortId(job.id)}</a>${copier(page, job.id)}</td>
                <td>${stateOf(job.state)}</td>
                <td class="name"><bdi>${format.named(job.kind)}</bdi></td>
                <td class="name"><bdi>${format.named(job.queue)}</bdi></td>
                <td class="number">${job.priority}</td>
                <td class="number">${job.attempt}${job.max_retries === null ? nothing : html`<span class="quiet"> / ${job.max_retries + 1}</span>`}</td>
                <td class="nowrap">${when(job.created_at)}</td>
                <td>${latest(job)}</td>
                <td class="reason">${job.reason ? format.cut(job.reason, REASON) : nothing}</td>
              </tr>
            `)}
          </tbody>
        </table>
      </div>
    `;
  }

  function none() {
    if (listing.next)
      return html`
        <div class="empty panel">
          <p>No match in the ${query.after ? "next" : "latest"} ${filter.text ? "jobs" : `${format.count(LOOKED_AT)} jobs`}. There are older jobs.</p>
          <button class="primary" @click=${further}>Search older jobs</button>
        </div>
      `;
    if (query.after) return html`<div class="empty panel"><p>No more jobs.</p></div>`;
    if (filtered)
      return html`
        <div class="empty panel">
          <p>No job matches this filter.</p>
          <a href=${addresses.to(["jobs"])}>Clear the filter</a>
        </div>
      `;
    return html`
      <div class="empty panel">
        <p>No jobs. Submit one:</p>
        <pre>${example("/submit", { kind: "default" })}</pre>
      </div>
    `;
  }

  function pages() {
    return html`
      <div class="row">
        ${query.after ? html`<button @click=${newest}>Newest</button>` : nothing}
        ${listing.next && listing.jobs.length ? html`<button ?disabled=${busy} @click=${further} title="n">Next page</button>` : nothing}
      </div>
    `;
  }

  return {
    title: "Jobs",
    render,
    key(name) {
      if (name === "r") look();
      else if (name === "n" && listing?.next && !busy) further();
      else return false;
      return true;
    },
  };
}

function latest(job) {
  if (job.state === "scheduled") return html`due ${when(job.run_at)}`;
  if (job.ended_at) return html`ended ${when(job.ended_at)}`;
  if (job.progress) {
    const { fraction, message } = job.progress;
    return html`${fraction === null ? nothing : html`<progress max="1" .value=${fraction} aria-label="Progress"></progress> ${Math.floor(fraction * 100)} % `}${format.cut(message, REASON)}`;
  }
  return job.claimed_at ? html`started ${when(job.claimed_at)}` : nothing;
}

/** Return the conditions of a filter as a list, for a confirmation. */
function told({ states, ...filter }) {
  return html`
    <dl class="facts">
      ${Object.entries(filter).map(([name, value]) => html`<dt>${name}</dt><dd>${format.named(value)}</dd>`)}
      <dt>state</dt><dd>${states.join(", ")}</dd>
    </dl>
  `;
}

function form(page, queues, listing) {
  const among = (name) => (listing?.jobs ?? []).map((job) => job[name]);
  const field = (name, label, { list, type = "text", wide = false } = {}) => html`
    <label class=${wide ? "wide" : ""}>${label}
      <input name=${name} type=${type} maxlength="200" autocomplete="off" spellcheck="false" list=${list ?? nothing} .value=${live(draft[name] ?? "")} />
    </label>
  `;
  return html`
    <form class="filter panel" role="search" aria-label="Filter of jobs" @submit=${(event) => (event.preventDefault(), changed(event))} @input=${typed} @change=${changed}>
      ${field("text", "Id or error", { type: "search", wide: true })} ${field("queue", "Queue", { list: "queues" })}
      ${field("kind", "Kind", { list: "kinds" })} ${field("group", "Group")}
      ${suggestions("queues", [...queues, ...among("queue")])} ${suggestions("kinds", among("kind"))}
      <fieldset>
        <legend class="hidden">States</legend>
        ${STATES.map((state) => html`
          <label><input type="checkbox" name="state" value=${state} .checked=${live(draft.states.includes(state))} />${stateOf(state)}</label>
        `)}
      </fieldset>
    </form>
  `;
}

function typed(event) {
  read(event.currentTarget);
  clearTimeout(typing);
  const at = location.hash;
  if (event.target.type !== "checkbox") typing = setTimeout(() => location.hash === at && show({ replace: true }), PAUSE); // do nothing if the user has left the view
}

/** Apply the filter at once, because the user left a field, pressed Enter, or chose a state. A chosen state adds an entry to the browser's history. */
function changed(event) {
  read(event.currentTarget);
  clearTimeout(typing);
  show({ replace: event.target.type !== "checkbox" });
}

function read(form) {
  const given = new FormData(form);
  draft = Object.fromEntries(FIELDS.map((name) => [name, given.get(name)]));
  draft.states = given.getAll("state");
}

function show({ replace }) {
  const { states } = draft;
  const filter = Object.fromEntries(FIELDS.map((name) => [name, draft[name].trim()]));
  const [, id] = WHOLE_ID.exec(filter.text) ?? [];
  own = true;
  try {
    if (id) addresses.go(["jobs", id.toLowerCase()]);
    else addresses.go(["jobs"], { ...filter, state: states.join(",") }, { replace });
  } finally {
    own = false;
  }
}
