// The table of queues: their jobs, limits, and actions.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { to } from "../address.js";
import { path } from "../api.js";
import { count, duration, jobs, named, rate } from "../format.js";

const SHOWN = 50; // maximum number of queues shown; the user can search for others by name

const STATES = [
  ["pending", "Pending"],
  ["inflight", "Inflight"],
  ["scheduled", "Scheduled"],
  ["blocked", "Blocked"],
  ["dead", "Dead"],
];

/** Return the table. wanted: the search text; look(text): changes the search text. */
export function queuesTable({ queues, wanted, look, act }) {
  const found = queues.filter(({ name }) => name.toLowerCase().includes(wanted.toLowerCase()));
  const shown = found.slice(0, SHOWN);
  return html`
    <section class="panel">
      <div class="row spread">
        <h2 id="queues">Queues</h2>
        ${queues.length > SHOWN
          ? html`
              <label>Find a queue <input type="search" .value=${wanted} @input=${(event) => look(event.target.value)} /></label>
              <span class="quiet">${count(shown.length)} of ${count(queues.length)} queues are shown</span>
            `
          : nothing}
      </div>
      ${shown.length
        ? html`
            <div class="scroll" tabindex="0" role="region" aria-labelledby="queues">
              <table class="live">
                <thead>
                  <tr>
                    <th scope="col">Queue</th>
                    ${STATES.map(([, label]) => html`<th scope="col" class="number">${label}</th>`)}
                    <th scope="col" class="number">Oldest waiting</th>
                    <th scope="col" class="number">Completed</th>
                    <th scope="col" class="number">Failed</th>
                    <th scope="col">Limits</th>
                    <th scope="col"><span class="hidden">Actions</span></th>
                  </tr>
                </thead>
                <tbody>${repeat(shown, ({ name }) => name, (queue) => row(queue, act))}</tbody>
              </table>
            </div>
          `
        : html`<p class="empty">${queues.length ? `No queue's name contains “${wanted}”.` : "No queue yet. A queue appears when a node works it, or when a job is submitted to it."}</p>`}
    </section>
  `;
}

function row(queue, act) {
  const { name, paused, depth = {}, oldest = {}, throughput } = queue;
  return html`
    <tr>
      <th scope="row" class="name">
        <a data-row href=${to(["jobs"], { queue: name })}><bdi title=${named(name)}>${named(name)}</bdi></a>
        ${paused ? html`<span class="badge warn">Paused</span>` : nothing}
      </th>
      ${STATES.map(([state]) => html`<td class="number value">${count(depth[state] ?? 0)}</td>`)}
      <td class="number value">${duration(oldest.pending)}</td>
      <td class="number value">${throughput ? rate(throughput.completed) : "–"}</td>
      <td class="number value">${throughput ? rate(throughput.failed) : "–"}</td>
      <td class="words">${limits(queue)}</td>
      <td class="actions">
        <button type="button" aria-label=${`Limits of ${named(name)}`} @click=${() => act.limit(queue)}>Limits …</button>
        <button type="button" aria-label=${`${paused ? "Resume" : "Pause"} ${named(name)}`} @click=${() => act.pause(queue)}>
          ${paused ? "Resume" : "Pause"}
        </button>
      </td>
    </tr>
  `;
}

/** Return the limits of a queue as a text. */
export function limits(queue) {
  const words = [];
  if (queue.max_running) words.push(`${count(queue.max_running)} running at once`);
  if (queue.rate) words.push(`${rate(queue.rate)} started${queue.burst ? `, ${count(queue.burst)} at once` : ""}`);
  if (queue.key_max_running) words.push(`${count(queue.key_max_running)} running at once per key`);
  if (queue.key_rate) words.push(`${rate(queue.key_rate)} started per key${queue.key_burst ? `, ${count(queue.key_burst)} at once` : ""}`);
  return words.length ? `At most ${words.join("; ")}` : html`<span class="quiet">None</span>`;
}

/** Return the actions on a queue. After a change they call `changed(name, values)` with the new values. */
export function actions(page, changed) {
  return {
    async pause(queue) {
      const { name, paused, depth = {} } = queue;
      const wanted = await page.confirm(
        paused
          ? {
              title: html`Resume queue <bdi>${named(name)}</bdi>?`,
              text: html`<p>Its jobs start again on every node, within its limits. Waiting now: ${jobs(depth.pending ?? 0)}.</p>`,
              action: "Resume",
            }
          : {
              title: html`Pause queue <bdi>${named(name)}</bdi>?`,
              text: html`<p>Running jobs continue. No other jobs start on any node until you resume the queue. Submissions are still accepted.</p>`,
              action: "Pause",
            },
      );
      if (!wanted) return;
      const does = paused ? "resume" : "pause";
      const answer = await page.act("POST", path("queues", name, does), {}, `Queue ${named(name)} is ${does}d.`);
      if (answer) changed(name, { paused: answer.paused });
    },

    async limit(queue) {
      const { name } = queue;
      const given = await page.form({
        title: html`Limits of queue <bdi>${named(name)}</bdi>`,
        text: html`<p>The limits apply to all nodes together, from the next job that starts. Leave a field empty for no limit.</p>`,
        action: "Set the limits",
        fields: [
          { name: "max_running", label: "Running at once", value: queue.max_running, hint: "jobs", min: 1, step: 1 },
          { name: "rate", label: "Started per second", value: queue.rate, hint: "jobs per second, in the long run", min: 0, step: "any" },
          { name: "burst", label: "Started at once", value: queue.burst, hint: "jobs after a pause; leave empty for as many as start in one second", min: 1, step: 1 },
        ],
      });
      if (!given) return;
      const body = Object.fromEntries(Object.entries(given).map(([field, text]) => [field, text === "" ? null : Number(text)]));
      const answer = await page.act("PUT", path("queues", name), { body }, `The limits of queue ${named(name)} are set.`);
      if (answer) changed(name, body);
    },
  };
}
