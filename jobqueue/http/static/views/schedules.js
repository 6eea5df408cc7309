// The list of cron schedules: their ticks and actions.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import * as addresses from "../address.js";
import { get, path } from "../api.js";
import { example } from "../example.js";
import * as format from "../format.js";
import { tick, trouble } from "../parts.js";

export function open(page) {
  let schedules = null;
  let problem = null;

  tick(page, 10_000);
  look();

  async function look() {
    try {
      schedules = await get("/schedules", {}, { signal: page.signal });
      problem = null;
    } catch (error) {
      if (page.signal.aborted) return;
      problem = error;
      if (error.status === 401) page.fail(error);
    }
    page.update();
  }

  async function steer(question, method, way, done) {
    if (!(await page.confirm(question))) return;
    await page.act(method, path("schedules", question.name, ...way), {}, done);
    look();
  }

  const pause = ({ name }) =>
    steer({ name, title: "Pause this schedule?", text: html`<bdi>${format.named(name)}</bdi> submits no jobs until it is resumed.`, action: "Pause" }, "POST", ["pause"], "The schedule is paused.");

  const resume = ({ name }) =>
    steer({ name, title: "Resume this schedule?", text: html`<bdi>${format.named(name)}</bdi> submits jobs again, from its next tick on.`, action: "Resume" }, "POST", ["resume"], "The schedule is resumed.");

  const trigger = ({ name, kind, queue }) =>
    steer(
      { name, title: "Trigger this schedule now?", text: html`This submits a job of kind <bdi>${format.named(kind)}</bdi> to queue <bdi>${format.named(queue)}</bdi> now. The next tick does not change.`, action: "Trigger now" },
      "POST",
      ["trigger"],
      ({ id }) => html`Submitted: <a href=${addresses.to(["jobs", id])}>the job</a>.`,
    );

  const remove = ({ name }) =>
    steer({ name, title: "Delete this schedule?", text: html`<bdi>${format.named(name)}</bdi> is deleted for good. Its existing jobs remain.`, action: "Delete", danger: true }, "DELETE", [], "The schedule is deleted.");

  function render() {
    return html`
      <div class="row spread">
        <h1>Schedules</h1>
        <button @click=${look} title="r">Refresh</button>
      </div>
      ${trouble(problem)}
      ${schedules === null ? (problem ? nothing : html`<p class="quiet">Loading …</p>`) : schedules.length ? table() : none()}
    `;
  }

  function table() {
    return html`
      <div class="scroll panel">
        <table>
          <thead>
            <tr><th>Name</th><th>Cron</th><th>Next</th><th>Last</th><th>Kind</th><th>Queue</th><th><span class="hidden">Actions</span></th></tr>
          </thead>
          <tbody>${repeat(schedules, ({ name }) => name, row)}</tbody>
        </table>
      </div>
      <p class="quiet">Times are in your time zone, ${format.zone()}. To delete a schedule that code declares, remove it from the code.</p>
    `;
  }

  function row(schedule) {
    return html`
      <tr>
        <td class="name"><bdi>${format.named(schedule.name)}</bdi>${schedule.source ? html` <span class="quiet">from ${schedule.source}</span>` : nothing}</td>
        <td><code>${schedule.cron}</code> <span class="quiet">${schedule.timezone}</span></td>
        <td>
          ${schedule.paused ? html`<b class="warn">Paused</b>` : schedule.error ? nothing : at(schedule.next_at)}
          ${schedule.error ? html`<span class="bad">${schedule.error}</span>` : nothing}
        </td>
        <td>${schedule.last_at ? at(schedule.last_at) : html`<span class="quiet">never</span>`}</td>
        <td class="name"><bdi>${format.named(schedule.kind)}</bdi></td>
        <td class="name"><bdi>${format.named(schedule.queue)}</bdi></td>
        <td>
          <div class="row">
            <button data-row @click=${() => (schedule.paused ? resume : pause)(schedule)}>${schedule.paused ? "Resume" : "Pause"}</button>
            <button @click=${() => trigger(schedule)}>Trigger now</button>
            ${schedule.source === null ? html`<button @click=${() => remove(schedule)}>Delete</button>` : nothing}
          </div>
        </td>
      </tr>
    `;
  }

  function none() {
    return html`
      <div class="empty panel">
        <p>No schedules. Declare one with its handler:</p>
        <pre>${'@app.periodic("0 3 * * *", timezone="Europe/Berlin")\n@app.handler("report")\nasync def report() -> None: ...'}</pre>
        <p>Or create one for an existing handler:</p>
        <pre>${example("/schedules/nightly", { cron: "0 3 * * *", timezone: "Europe/Berlin", kind: "report" }, "PUT")}</pre>
      </div>
    `;
  }

  return {
    title: "Schedules",
    render,
    key(name) {
      if (name !== "r") return false;
      look();
      return true;
    },
  };
}

const at = (iso) => (iso ? html`<span class="nowrap">${format.time(iso)}</span> <span class="quiet nowrap">${format.ago(iso)}</span>` : html`<span class="quiet">not known yet</span>`);
