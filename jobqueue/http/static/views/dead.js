// Dead letters in groups: one row per queue, kind, and cause. Also the list of the jobs of one group.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import * as addresses from "../address.js";
import { get } from "../api.js";
import * as format from "../format.js";
import { copier, queueNames, shortId, suggestions, tick, trouble, when } from "../parts.js";

const GROUPS = 200; // maximum number of groups shown; the largest groups come first
const ERROR = 300; // maximum characters of an error in a row

export function open(page, { query }) {
  const { queue, kind, cause, after } = query;
  let groups = null;
  let more = false;
  let jobs = null; // the jobs of the open group
  let problem = null;
  let queues = [];

  tick(page, 10_000);
  look();
  queueNames(page, (names) => {
    queues = names;
    page.update();
  });

  async function look() {
    try {
      const [found, listed] = await Promise.all([
        get("/dead/causes", { queue, kind, cause, limit: GROUPS }, { signal: page.signal }),
        cause ? get("/dead", { queue, kind, cause, after }, { signal: page.signal }) : null,
      ]);
      groups = found.causes;
      more = found.more;
      jobs = listed;
      problem = null;
    } catch (error) {
      if (page.signal.aborted) return;
      problem = error;
      if (error.status === 401) page.fail(error);
    }
    page.update();
  }

  /** Retry or discard all dead letters that match a filter, after the user has confirmed their number. */
  async function act(way, body) {
    const counted = await page.act("POST", `/dead/${way}`, { query: { dry_run: true }, body }, null);
    if (counted === null) return;
    const many = format.jobs(counted.jobs);
    if (counted.jobs === 0) {
      page.say("Nothing to do: none of these jobs is dead any more.");
      look();
      return;
    }
    const what = html`
      <dl class="facts">${Object.entries(body).filter(([, value]) => value).map(([name, value]) => html`<dt>${name}</dt><dd>${format.named(value)}</dd>`)}</dl>
    `;
    const question =
      way === "retry"
        ? { title: `Retry ${many}?`, text: html`${what}<p>The jobs return to their queues with a full set of attempts.</p>`, action: `Retry ${many}` }
        : { title: `Discard ${many}?`, text: html`${what}<p><b>This is final:</b> the jobs are deleted, with their payloads and errors.</p>`, action: `Discard ${many} for good`, danger: true };
    if (!(await page.confirm(question))) return;
    await page.act("POST", `/dead/${way}`, { body }, (moved) => `${format.jobs(moved.jobs)} ${way === "retry" ? "retried" : "discarded"}.`);
    look();
  }

  const buttons = ({ queue, kind, cause }) => {
    const body = { queue, kind, cause };
    return html`
      <button @click=${() => act("retry", body)}>Retry all</button>
      <button @click=${() => act("discard", body)}>Discard all</button>
    `;
  };

  function render() {
    return html`
      <div class="row spread">
        <h1>Dead letters</h1>
        <button @click=${look} title="r">Refresh</button>
      </div>
      ${cause ? html`<p><a href=${addresses.to(["dead"], { queue, kind })}>All groups</a></p>` : filter()} ${trouble(problem)}
      ${groups === null ? (problem ? nothing : html`<p class="quiet">Loading …</p>`) : cause ? opened() : groups.length ? table() : none()}
    `;
  }

  function filter() {
    const changed = (event) => {
      event.preventDefault();
      const given = new FormData(event.currentTarget);
      addresses.go(["dead"], { queue: given.get("queue").trim(), kind: given.get("kind").trim() });
    };
    return html`
      <form class="filter panel" role="search" aria-label="Filter of dead letters" @submit=${changed} @change=${changed}>
        <label>Queue <input name="queue" maxlength="200" autocomplete="off" spellcheck="false" list="queues" .value=${queue ?? ""} /></label>
        <label>Kind <input name="kind" maxlength="200" autocomplete="off" spellcheck="false" list="kinds" .value=${kind ?? ""} /></label>
        ${suggestions("queues", queues)} ${suggestions("kinds", (groups ?? []).map((group) => group.kind))}
      </form>
    `;
  }

  function table() {
    return html`
      <div class="scroll panel">
        <table class="dead">
          <thead>
            <tr><th class="number">Jobs</th><th>Cause</th><th>Kind</th><th>Queue</th><th>First</th><th>Last</th><th>Latest</th><th><span class="hidden">Actions</span></th></tr>
          </thead>
          <tbody>
            ${repeat(groups, (group) => JSON.stringify([group.queue, group.kind, group.cause]), (group) => html`
              <tr>
                <td class="number">${format.count(group.jobs)}</td>
                <td class="cause"><a data-row href=${addresses.to(["dead"], { queue: group.queue, kind: group.kind, cause: group.cause })}><bdi>${format.named(group.cause)}</bdi></a></td>
                <td class="name"><bdi>${format.named(group.kind)}</bdi></td>
                <td class="name"><bdi>${format.named(group.queue)}</bdi></td>
                <td class="nowrap">${when(group.first_died_at)}</td>
                <td class="nowrap">${when(group.last_died_at)}</td>
                <td class="id"><a class="mono" href=${addresses.to(["jobs", group.example])} title=${group.example}>${shortId(group.example)}</a></td>
                <td class="nowrap">${buttons(group)}</td>
              </tr>
            `)}
          </tbody>
        </table>
      </div>
      ${more ? html`<p class="quiet">These are the ${format.count(GROUPS)} largest groups. There are more: filter by queue or kind.</p>` : nothing}
    `;
  }

  function opened() {
    // If the address has no queue or no kind, there may be several groups.
    const dead = groups.reduce((total, group) => total + group.jobs, 0);
    const first = groups.map((group) => group.first_died_at).sort()[0];
    const last = groups.map((group) => group.last_died_at).sort().at(-1);
    return html`
      <section class="panel" aria-labelledby="cause">
        <div class="row spread">
          <h2 id="cause"><bdi>${format.named(cause)}</bdi></h2>
          <div class="row">${dead ? buttons({ queue, kind, cause }) : nothing}</div>
        </div>
        <p class="quiet">
          ${dead ? format.jobs(dead) : "No job"}${kind ? html`, kind <b><bdi>${format.named(kind)}</bdi></b>` : nothing}${queue ? html`, queue <b><bdi>${format.named(queue)}</bdi></b>` : nothing}${dead ? html`; the first died ${when(first)}, the last ${when(last)}.` : "."}
        </p>
      </section>
      ${jobs.jobs.length ? listed() : html`<div class="empty panel"><p>No dead letter of this cause is left.</p></div>`}
      <div class="row">
        ${after ? html`<button @click=${() => addresses.go(["dead"], { ...query, after: undefined })}>Newest</button>` : nothing}
        ${jobs.next ? html`<button @click=${further} title="n">Next page</button>` : nothing}
      </div>
    `;
  }

  const further = () => addresses.go(["dead"], { ...query, after: jobs.next });

  function listed() {
    return html`
      <div class="scroll panel">
        <table>
          <thead><tr><th>Id</th><th>Error</th><th class="number">Attempts</th><th>Created</th><th>Died</th></tr></thead>
          <tbody>
            ${repeat(jobs.jobs, ({ id }) => id, (job) => html`
              <tr>
                <td class="id"><a class="mono" data-row href=${addresses.to(["jobs", job.id])} title=${job.id}>${shortId(job.id)}</a>${copier(page, job.id)}</td>
                <td class="cause">${format.cut(String(job.error ?? job.reason), ERROR)}</td>
                <td class="number">${job.attempt}</td>
                <td class="nowrap">${when(job.created_at)}</td>
                <td class="nowrap">${when(job.died_at)}</td>
              </tr>
            `)}
          </tbody>
        </table>
      </div>
    `;
  }

  function none() {
    if (queue || kind)
      return html`
        <div class="empty panel">
          <p>No dead letter matches this filter.</p>
          <a href=${addresses.to(["dead"])}>Clear the filter</a>
        </div>
      `;
    return html`
      <div class="empty panel">
        <p>No dead letters.</p>
        <p>Jobs that fail all their attempts appear here until they are retried or discarded.</p>
      </div>
    `;
  }

  return {
    title: "Dead letters",
    render,
    key(name) {
      if (name === "r") look();
      else if (name === "n" && jobs?.next) further();
      else return false;
      return true;
    },
  };
}
