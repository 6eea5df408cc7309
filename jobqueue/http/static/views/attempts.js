// The attempts on a job's page: the timeline, and the errors with their tracebacks.

import { html, nothing, svg } from "../vendor/lit-html/lit-html.js";
import * as format from "../format.js";
import { shortId, when } from "../parts.js";
import { timeline } from "../timeline.js";
import { leaves, message, parse } from "../tracebacks.js";

const KEPT_ERRORS = 10; // number of errors that the service keeps
const WIDTH = 1000; // the width of the whole timeline, in units of a bar's viewBox
const NARROWEST = 4;
const MESSAGE = 300; // maximum characters of a message on one line
const WAITS = { "": "Waited", retry: "Waited to retry", again: "Waited after a retry by hand" };

/** Return the steps of a job as a list. The length of a bar is the step's share of the job's whole time. */
export function steps(job, now) {
  const { begin, end, steps } = timeline(job, now);
  const errors = job.errors.length;
  return html`
    <ol class="timeline">
      ${steps.map((step) => html`
        <li data-what=${step.what} data-outcome=${step.outcome ?? step.state ?? nothing}>
          <span class="what">${name(step)}</span>
          ${bar(step, begin, end)}
          <span class="number">${took(step)}</span>
          <span class="quiet at">${format.time(step.from)}</span>
          ${step.what === "attempt" ? more(step) : nothing}
        </li>
      `)}
    </ol>
    ${errors >= KEPT_ERRORS ? html`<p class="quiet">Only the last ${KEPT_ERRORS} errors of a job are kept. The timeline does not show earlier ones.</p>` : nothing}
  `;
}

function name(step) {
  if (step.what === "created") return "Created";
  if (step.what === "missing") return `At least ${step.attempts} attempts without stored details`;
  if (step.what === "scheduled") return step.open ? "Scheduled" : "Was scheduled";
  if (step.what === "waited") return step.open ? (step.reason === "retry" ? "Waits to retry" : "Waits") : WAITS[step.reason];
  if (step.what === "dead") return "Was dead until a retry by hand";
  if (step.what === "ended") return `Ended: ${step.state}`;
  return `Attempt ${step.attempt} ${step.outcome === "running" ? "runs" : step.outcome}`;
}

function more({ node, error }) {
  return html`
    ${typeof node === "string" ? html`<span class="more quiet">on <span class="mono" title=${node}>${shortId(node)}</span></span>` : nothing}
    ${error ? html`<span class="more error">${format.cut(error, MESSAGE)}</span>` : nothing}
  `;
}

function took(step) {
  if (step.what === "created" || step.what === "ended") return nothing;
  if (step.what === "attempt" && step.seconds === null) return "unknown";
  return format.duration(step.seconds);
}

function bar({ what, from, to }, begin, end) {
  if (what === "created" || what === "ended") return html`<span></span>`;
  const whole = Math.max(1, end - begin);
  const width = Math.min(WIDTH, Math.max(NARROWEST, ((to - from) / whole) * WIDTH));
  const x = Math.min(((from - begin) / whole) * WIDTH, WIDTH - width);
  return html`
    <svg viewBox="0 0 ${WIDTH} 10" preserveAspectRatio="none" aria-hidden="true">${svg`<rect x=${x} width=${width} height="10"></rect>`}</svg>
  `;
}

/** Return the errors of a job, the latest first. Only the latest is open. */
export function failures(errors) {
  const latest = errors.length - 1;
  return errors
    .map((error, place) => {
      const text = error.error;
      return html`
        <details class="failure" ?open=${place === latest}>
          <summary>
            Attempt ${String(error.attempt)} <span class="quiet">${when(error.at)}${Number.isFinite(error.duration) ? html`, after ${format.duration(error.duration)}` : nothing}</span>
            <span class="error">${format.cut(text, MESSAGE)}</span>
          </summary>
          ${text.length > MESSAGE ? html`<pre>${text}</pre>` : nothing} ${typeof error.traceback === "string" ? tree(parse(error.traceback)) : nothing}
        </details>
      `;
    })
    .reverse();
}

function tree(parts) {
  return parts.map(({ text, members }) => html`
    ${text ? html`<pre>${text}</pre>` : nothing}
    ${members.length ? html`<div class="members" role="group" aria-label="Exceptions of the group">${members.map(member)}</div>` : nothing}
  `);
}

function member({ title, parts }) {
  const own = parts.at(-1);
  if (title === "..." || !own) return html`<p class="quiet">… ${parts.map(({ text }) => text).join("\n")}</p>`;
  return html`
    <details>
      <summary>
        <span class="quiet">${title}</span> <span class="error">${format.cut(message(own.text), MESSAGE)}</span>
        ${own.members.length ? leaves(parts).map((said) => html`<span class="leaf">${format.cut(said, MESSAGE)}</span>`) : nothing}
      </summary>
      ${tree(parts)}
    </details>
  `;
}
