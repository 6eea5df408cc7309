// The timeline of a job, from its document: its waits and attempts. The service keeps only the last ten errors.

import { isUnfinished } from "./state.js";

/**
 * Return the steps of a job in order.
 *
 * Returns {begin, end, steps}, with times in ms since 1970. A step is {what, from, to, seconds, ...}, and `what` is one of:
 *   "created", "ended"    Moments without a duration. "ended" has the state.
 *   "missing"             Earlier attempts without details. There were at least `attempts` of them.
 *   "scheduled"           The job was not due.
 *   "waited"              The job was due, or waited for a retry. `reason` is "retry" between two attempts, "again" after a retry by hand.
 *   "dead"                The job was dead until it was retried by hand.
 *   "attempt"             An attempt, with the fields attempt, outcome ("failed", "running", or the final state), error, and node.
 * A step that has not ended has `open`. The `to` of such a step is now, or the time when the job is due. If the duration of an attempt is unknown,
 * `seconds` is null.
 */
export function timeline(job, now) {
  const at = (iso) => Date.parse(iso);
  const steps = [];
  const created = at(job.created_at);
  const available = at(job.available_since);
  const errors = Array.isArray(job.errors) ? job.errors.filter((error) => Number.isFinite(at(error?.at))) : [];
  const ended = job.ended_at ? at(job.ended_at) : null;
  let here = created;
  const step = (what, to, more = {}) => {
    const end = Math.max(here, to);
    steps.push({ what, from: here, to: end, seconds: (end - here) / 1000, ...more });
    here = end;
  };

  step("created", created);
  const first = errors[0];
  if (first && first.attempt > 1) {
    const known = begins(first);
    steps.push({ what: "missing", from: here, to: known, seconds: (known - here) / 1000, attempts: first.attempt - 1 });
    here = Math.max(here, known);
  } else if (!first || available <= begins(first)) {
    if (available > here && available <= now) step("scheduled", available);
  }

  let last = null;
  for (const error of errors) {
    const from = begins(error);
    if (last && error.attempt <= last.attempt) step("dead", from);
    else if (from > here) step("waited", from, { reason: last ? "retry" : "" });
    const unknown = !Number.isFinite(error.duration);
    const outcome = ended !== null && at(error.at) === ended ? (job.state === "cancelled" ? "cancelled" : "failed") : "failed";
    step("attempt", at(error.at), { attempt: error.attempt, outcome, error: String(error.error ?? ""), node: error.node ?? null });
    if (unknown) steps.at(-1).seconds = null;
    last = error;
  }

  const claimed = job.claimed_at ? at(job.claimed_at) : null;
  const told = last !== null && ended !== null && at(last.at) === ended; // whether the last error belongs to the last attempt
  if (!told) {
    const again = last !== null && (claimed === null ? job.attempt < last.attempt : job.attempt <= last.attempt);
    if (again && available > here) step("dead", Math.min(available, now));
    const reason = again ? "again" : last ? "retry" : "";
    if (claimed !== null && (job.state === "inflight" || ended !== null)) {
      if (claimed > here) step("waited", claimed, { reason });
      if (job.state === "inflight") step("attempt", now, { attempt: job.attempt, outcome: "running", node: job.node_id, open: true });
      else step("attempt", ended, { attempt: job.attempt, outcome: job.state, node: job.node_id });
    } else if (job.state === "scheduled" && job.run_at) {
      step(last ? "waited" : "scheduled", at(job.run_at), { reason, open: true });
    } else if (isUnfinished(job.state)) {
      step("waited", now, { reason, open: true });
    } else if (ended !== null && ended > here) {
      step("waited", ended, { reason });
    }
  }
  if (ended !== null) {
    here = Math.max(here, ended);
    step("ended", here, { state: job.state });
  }
  return { begin: created, end: Math.max(here, created), steps };
}

function begins(error) {
  return Date.parse(error.at) - (Number.isFinite(error.duration) ? error.duration * 1000 : 0);
}
