// The page of one job: its live state, its timeline, and its actions.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as addresses from "../address.js";
import { follow, get, getText, path } from "../api.js";
import * as format from "../format.js";
import { members, pretty } from "../json.js";
import { copier, shortId, tick, trouble, when } from "../parts.js";
import { isUnfinished, stateOf, waits } from "../state.js";
import { timeline } from "../timeline.js";
import { failures, steps } from "./attempts.js";

const DOCUMENTS = ["payload", "result", "checkpoint", "options"];
const SHOWN = 20_000; // maximum characters of a document until the user asks for all of it
const MAX_PRIORITY = 1_000_000;

export function open(page, { parts }) {
  const id = parts[1];
  let job = null;
  let documents = {}; // the formatted texts of the documents with a value, by name
  const whole = new Set(); // names of the documents that are shown in full
  let problem = null;
  let gone = null; // why the job no longer exists
  let watching = false;
  let looks = 0;
  let hosts = new Map();

  tick(page, 1_000);
  look();
  get("/nodes", {}, { signal: page.signal }).then(
    (nodes) => {
      hosts = new Map(nodes.map((node) => [node.id, `${node.host}, process ${node.pid}`]));
      page.update();
    },
    () => {}, // after an error, the page shows the node's id instead of its host name
  );

  function take(text) {
    const texts = members(text);
    job = JSON.parse(text);
    // Show only well-formed errors, because SQL of other programs may have written the row.
    job.errors = Array.isArray(job.errors) ? job.errors.filter((error) => typeof error?.error === "string") : [];
    documents = Object.fromEntries(DOCUMENTS.filter((name) => (texts.get(name) ?? "null") !== "null").map((name) => [name, pretty(texts.get(name))]));
    problem = null;
  }

  async function look() {
    const number = ++looks;
    try {
      const text = await getText(path("jobs", id), {}, { signal: page.signal });
      if (number !== looks) return;
      take(text);
      gone = null;
      if (isUnfinished(job.state)) watch();
    } catch (error) {
      if (page.signal.aborted || number !== looks) return;
      if (error.status === 404 && job) gone ??= "It was deleted, or its retention period has passed.";
      else problem = error;
      if (error.status === 401) page.fail(error);
    }
    page.update();
  }

  /** Follow the job until it ends. After a change of state, get the whole job, because events lack parts such as the errors. */
  async function watch() {
    if (watching) return;
    watching = true;
    await follow(path("jobs", id, "events"), {}, {
      signal: page.signal,
      onState(state, error) {
        if (state !== "refused") page.connection(state);
        else if (error.status === 404) look();
        else page.fail(error);
      },
      onEvent(name, data, text) {
        if (name === "progress") job.progress = data;
        else if (name === "checkpoint") documents.checkpoint = pretty(text);
        else if (name === "end" && data.kind === undefined) gone = data.state === "gone" ? "It was deleted while you watched it." : `It has ended (${data.state}), and the service does not keep such jobs.`;
        else if (name === "end") take(text);
        else if (data.state !== job.state || data.attempt !== job.attempt) {
          Object.assign(job, data);
          look();
        }
        if (name === "end") looks += 1; // ignore responses that arrive later: they are older than this event
        page.update();
        return name === "end";
      },
    });
    watching = false;
    page.connection("idle");
  }

  async function steer(question, method, way, body, done) {
    if (!(await page.confirm(question))) return;
    await page.act(method, path("jobs", id, ...way), { body }, done);
    look();
  }

  const cancel = () => {
    const runs = job.state === "inflight";
    return steer(
      {
        title: "Cancel this job?",
        text: runs
          ? "The job is running: its node cancels the handler. Nothing that the handler has already done is undone."
          : "The job is waiting, and will not run. You cannot undo this.",
        action: "Cancel the job",
        danger: true,
      },
      "POST",
      ["cancel"],
      undefined,
      ({ state }) => (state === "inflight" ? "Cancellation requested." : "The job is cancelled."),
    );
  };

  const retry = () =>
    steer(
      {
        title: "Retry this job?",
        text: "The job returns to its queue with a full set of attempts. Its errors stay in its history.",
        action: "Retry",
      },
      "POST",
      ["retry"],
      undefined,
      "The job is in its queue again.",
    );

  async function discard() {
    const question = { title: "Discard this job?", text: "This deletes the job for good, with its payload and errors.", action: "Discard for good", danger: true };
    if (!(await page.confirm(question))) return;
    if (await page.act("DELETE", path("jobs", id), {}, "The job is discarded.")) gone = "It was discarded.";
    else look();
    page.update();
  }

  const runNow = () =>
    steer(
      { title: "Run this job now?", text: html`It is due ${when(job.run_at)}. It enters its queue at once.`, action: "Run now" },
      "PATCH",
      [],
      { delay: 0 },
      "The job is due now.",
    );

  async function change() {
    const given = await page.form({
      title: "Change this job",
      text: "The change takes effect at once.",
      action: "Change",
      fields: [
        { name: "priority", label: "Priority", value: job.priority, hint: "Higher runs first.", min: 0, max: MAX_PRIORITY, step: 1 },
        { name: "run_at", label: "Not before", hint: `In the time zone ${format.zone()}. Leave empty for no change.`, type: "datetime-local", step: 1 },
      ],
    });
    if (given === null) return;
    const body = {
      ...(given.priority === "" || Number(given.priority) === job.priority ? {} : { priority: Number(given.priority) }),
      ...(given.run_at ? { run_at: new Date(given.run_at).toISOString() } : {}),
    };
    if (Object.keys(body).length === 0) {
      page.say("Nothing was changed.");
      return;
    }
    await page.act("PATCH", path("jobs", id), { body }, "The job is changed.");
    look();
  }

  function render() {
    if (problem?.status === 404) return unknown();
    if (job === null) return html`<h1>Job</h1>${problem ? trouble(problem) : html`<p class="quiet">Loading …</p>`}`;
    return html`
      <div class="row spread">
        <h1 class="row"><bdi>${format.named(job.kind)}</bdi> ${gone ? html`<span class="state" data-state="cancelled">gone</span>` : stateOf(job.state)}</h1>
        <div class="row">${gone ? nothing : actions()}</div>
      </div>
      <p class="row"><span class="mono">${job.id}</span>${copier(page, job.id)}</p>
      ${gone ? html`<p class="notice" role="alert">This job is gone. ${gone} The page shows its last known state.</p>` : trouble(problem)}
      ${job.reason ? html`<p class="notice"><b>Dead:</b> ${job.reason}</p>` : nothing}
      ${job.cancel_requested_at && job.state === "inflight" ? html`<p class="notice">Its cancellation was requested ${when(job.cancel_requested_at)}.</p>` : nothing}
      ${progress()}
      <div class="about">
        <div>
          <section class="panel" aria-labelledby="timeline"><h2 id="timeline">Timeline</h2>${steps(job, Date.now())}</section>
          ${job.errors.length ? html`<section class="panel" aria-labelledby="errors"><h2 id="errors">Errors</h2>${failures(job.errors)}</section>` : nothing}
        </div>
        <div>
          <section class="panel" aria-label="Facts">${facts()}</section>
          ${DOCUMENTS.filter((name) => documents[name]).map(laidOut)}
        </div>
      </div>
    `;
  }

  function actions() {
    return html`
      <button @click=${look} title="r">Refresh</button>
      ${job.state === "scheduled" ? html`<button @click=${runNow}>Run now …</button>` : nothing}
      ${waits(job.state) ? html`<button @click=${change}>Change …</button>` : nothing}
      ${isUnfinished(job.state) ? html`<button @click=${cancel}>Cancel …</button>` : nothing}
      ${job.state === "dead" ? html`<button class="primary" @click=${retry}>Retry …</button><button @click=${discard}>Discard …</button>` : nothing}
    `;
  }

  function progress() {
    if (!job.progress) return nothing;
    const { fraction, message } = job.progress;
    return html`
      <div class="panel progress">
        ${fraction === null ? nothing : html`<progress max="1" .value=${fraction} aria-label="Progress"></progress><span class="number">${Math.floor(fraction * 100)} %</span>`}
        <span>${String(message)}</span>
      </div>
    `;
  }

  function facts() {
    const waited = timeline(job, Date.now()).steps.filter(({ what, to }) => what === "waited" && to <= Date.now()).reduce((sum, { seconds }) => sum + seconds, 0);
    const row = (name, value) => html`<dt>${name}</dt><dd>${value}</dd>`;
    const at = (iso) => html`${format.time(iso)} <span class="quiet">${format.ago(iso)}</span>`;
    return html`
      <dl class="facts">
        ${row("Queue", html`<a href=${addresses.to(["jobs"], { queue: job.queue })}><bdi>${format.named(job.queue)}</bdi></a>`)} ${row("Priority", format.count(job.priority))}
        ${row("Attempt", html`${job.attempt}${job.max_retries === null ? nothing : ` of ${job.max_retries + 1}`}${job.claims > job.attempt ? html` <span class="quiet">(claimed ${job.claims} times)</span>` : nothing}`)}
        ${row(waits(job.state) ? "Waits" : "Waited", format.duration(waited))}
        ${row("Created", at(job.created_at))} ${job.run_at ? row("Due", at(job.run_at)) : nothing} ${job.claimed_at ? row("Started", at(job.claimed_at)) : nothing}
        ${job.ended_at ? row("Ended", at(job.ended_at)) : nothing}
        ${job.node_id ? row("Node", html`${hosts.get(job.node_id) ?? nothing} <span class="mono" title=${job.node_id}>${shortId(job.node_id)}</span>`) : nothing}
        ${job.timeout === null ? nothing : row("Timeout", format.duration(job.timeout))}
      </dl>
    `;
  }

  function laidOut(name) {
    const text = documents[name];
    const cut = text.length > SHOWN && !whole.has(name);
    const all = () => {
      whole.add(name);
      page.update();
    };
    return html`
      <section class="panel" aria-labelledby=${name}>
        <h2 id=${name}>${name[0].toUpperCase()}${name.slice(1)}</h2>
        <pre tabindex="0" aria-labelledby=${name}>${cut ? text.slice(0, SHOWN) : text}</pre>
        ${cut ? html`<p><button @click=${all}>Show all</button> <span class="quiet">${format.count(text.length)} characters; the first ${format.count(SHOWN)} are shown.</span></p>` : nothing}
      </section>
    `;
  }

  function unknown() {
    return html`
      <h1>Job not found</h1>
      <div class="empty panel">
        <p>Job <bdi class="mono">${id}</bdi> was not found.</p>
        <p>Its retention period may have passed, it may have been discarded, or it may belong to another service. The id may also be incomplete.</p>
        <a href=${addresses.to(["jobs"])}>All jobs</a>
      </div>
    `;
  }

  return {
    title: "Job",
    render,
    key(name) {
      if (name !== "r") return false;
      look();
      return true;
    },
  };
}
