// The overview's figures, and the list of conditions that need attention.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { to } from "../address.js";
import { count, duration, jobs, named, rate } from "../format.js";

export const LATE = 6; // s without a heartbeat after which a node counts as late: it has missed three renewals of its lease

const SHOWN = 10; // maximum number of conditions shown

/** Add up the figures of all queues: rates, depth by state, and the longest wait. */
export function totals(queues) {
  const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
  const waits = queues.map(({ oldest }) => oldest?.pending).filter((age) => age !== undefined);
  return {
    completed: sum(queues.map(({ throughput }) => throughput?.completed)),
    failed: sum(queues.map(({ throughput }) => throughput?.failed)),
    depth: (state) => sum(queues.map(({ depth }) => depth?.[state])),
    oldest: waits.length ? Math.max(...waits) : null,
  };
}

export function figures({ queues, nodes }) {
  const all = totals(queues);
  return html`
    <dl class="figures">
      ${figure("Completed", rate(all.completed), "jobs, last minute")}
      ${figure("Failed", rate(all.failed), "attempts, last minute", all.failed > 0 && "bad")}
      ${figure("Pending", count(all.depth("pending")), "waiting jobs")}
      ${figure("Running", count(all.depth("inflight")), "jobs claimed by nodes")}
      ${figure("Oldest waiting", all.oldest === null ? "–" : duration(all.oldest), all.oldest === null ? "no waiting job" : "since it became available")}
      ${figure("Dead letters", html`<a href=${to(["dead"])}>${count(all.depth("dead"))}</a>`, "dead jobs")}
      ${figure("Nodes", count(nodes.length), nodes.length === 1 ? "runs jobs" : "run jobs", nodes.length === 0 && "bad")}
    </dl>
  `;
}

function figure(name, value, meaning, kind) {
  return html`<div><dt>${name}</dt><dd class="value ${kind || ""}">${value}</dd><dd class="quiet">${meaning}</dd></div>`;
}

export function attention(state) {
  const found = troubles(state);
  if (!found.length) return nothing;
  return html`
    <section class="notice" aria-labelledby="attention">
      <h2 id="attention">Needs attention</h2>
      <ul>
        ${found.slice(0, SHOWN).map((trouble) => html`<li>${trouble}</li>`)}
        ${found.length > SHOWN ? html`<li>and ${count(found.length - SHOWN)} more</li>` : nothing}
      </ul>
    </section>
  `;
}

function troubles({ now, queues, nodes }) {
  const found = [];
  const worked = new Set(nodes.flatMap((node) => Object.keys(node.queues)));
  for (const node of nodes) {
    const { age, over } = heartbeat(node, now);
    if (over > 0) found.push(html`Node <bdi>${named(node.host)}:${node.pid}</bdi> has sent no heartbeat for ${duration(age)}: other nodes take over its jobs.`);
    else if (age > LATE) found.push(html`Node <bdi>${named(node.host)}:${node.pid}</bdi> is late: its last heartbeat was ${duration(age)} ago.`);
  }
  for (const { name, paused, depth } of queues) {
    const waiting = depth?.pending ?? 0;
    if (waiting && paused) found.push(html`Queue <bdi>${named(name)}</bdi> is paused, and ${jobs(waiting)} wait${waiting === 1 ? "s" : ""} in it.`);
    else if (waiting && nodes.length && !worked.has(name)) {
      found.push(html`No node works queue <bdi>${named(name)}</bdi>, and ${jobs(waiting)} wait${waiting === 1 ? "s" : ""} in it.`);
    }
  }
  return found;
}

/**
 * Return the age of a node's last heartbeat, and the time since its lease ended (negative while the lease is valid).
 * Both are in s, by the database's clock.
 */
export function heartbeat(node, now) {
  return { age: Math.max(0, (Date.parse(now) - Date.parse(node.heartbeat_at)) / 1000), over: (Date.parse(now) - Date.parse(node.lease_until)) / 1000 };
}
