// The table of nodes: their heartbeats, load, and running jobs.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { count, duration, jobs, named, rate, time } from "../format.js";
import { LATE, heartbeat } from "./figures.js";

const SHOWN = 100; // maximum number of nodes shown
const KINDS = 6; // maximum number of kinds of jobs shown per node

export function nodesTable({ now, node: answering, nodes }) {
  return html`
    <section class="panel">
      <div class="row spread">
        <h2 id="nodes">Nodes</h2>
        ${nodes.length > SHOWN ? html`<span class="quiet">${count(SHOWN)} of ${count(nodes.length)} nodes are shown</span>` : nothing}
      </div>
      ${nodes.length
        ? html`
            <div class="scroll" tabindex="0" role="region" aria-labelledby="nodes">
              <table class="live">
                <thead>
                  <tr>
                    <th scope="col">Node</th>
                    <th scope="col">Load</th>
                    <th scope="col">Runs</th>
                    <th scope="col" class="number">Completed</th>
                    <th scope="col" class="number">Failed</th>
                    <th scope="col">Heartbeat</th>
                    <th scope="col">Started</th>
                    <th scope="col">Version</th>
                  </tr>
                </thead>
                <tbody>${repeat(nodes.slice(0, SHOWN), ({ id }) => id, (node) => row(node, now, answering))}</tbody>
              </table>
            </div>
          `
        : html`
            <div class="empty">
              <p>No node is running, so submitted jobs wait. Start a node with your handlers on the same database:</p>
              <p><code>jobqueue serve your_module --database-url postgresql://…</code></p>
            </div>
          `}
    </section>
  `;
}

function row(node, now, answering) {
  const holds = node.running.reduce((total, { jobs: held }) => total + held, 0);
  const room = Object.values(node.queues).reduce((total, workers) => total + workers, 0);
  return html`
    <tr>
      <th scope="row" class="name">
        <bdi title=${named(node.host)}>${named(node.host)}</bdi>:${node.pid}
        ${node.id === answering ? html`<span class="badge">serves this page</span>` : nothing}
        <div class="quiet mono" title="The node's id">${node.id}</div>
      </th>
      <td class="load">
        <meter min="0" max=${Math.max(room, 1)} .value=${Math.min(holds, room)} aria-label=${`Load of ${named(node.host)}:${node.pid}`}></meter>
        <span class="value">${count(holds)} of ${count(room)} workers</span>
      </td>
      <td class="words">
        ${node.running.length
          ? html`
              <ul class="plain value">
                ${node.running.slice(0, KINDS).map(
                  ({ queue, kind, jobs: held, oldest }) => html`<li><bdi title=${named(queue)}>${named(queue)}</bdi> / <bdi title=${named(kind)}>${named(kind)}</bdi>: ${jobs(held)}, oldest ${duration(oldest)}</li>`,
                )}
                ${node.running.length > KINDS ? html`<li class="quiet">and ${count(node.running.length - KINDS)} more</li>` : nothing}
              </ul>
            `
          : html`<span class="quiet">Nothing</span>`}
      </td>
      <td class="number value">${rate(node.throughput.completed)}</td>
      <td class="number value">${rate(node.throughput.failed)}</td>
      <td class="words value">${pulse(node, now)}</td>
      <td class="when">${time(node.started_at)}</td>
      <td>${node.version}</td>
    </tr>
  `;
}

function pulse(node, now) {
  const { age, over } = heartbeat(node, now);
  if (over > 0) return html`<b class="bad">Lost:</b> ${duration(age)} ago; other nodes take over its jobs`;
  if (age > LATE) return html`<b class="warned">Late:</b> ${duration(age)} ago; other nodes take over its jobs in ${duration(-over)}`;
  return html`${duration(age)} ago`;
}
