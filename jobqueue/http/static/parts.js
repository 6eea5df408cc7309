// Small pieces that several views show.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { get } from "./api.js";
import { ago, time } from "./format.js";

/** How long ago a time was, with the time itself for who points at it. */
export const when = (iso) => (Number.isFinite(Date.parse(iso)) ? html`<time datetime=${iso} title=${time(iso)}>${ago(iso)}</time>` : "–");

/** An id of version 7 begins with its time, and ends with what tells it from those of the same moment. */
export const shortId = (id) => `${id.slice(0, 13)}…${id.slice(-4)}`;

/** A button that copies an id. Browsers let only pages of HTTPS and of this machine do so; others are shown it. */
export function copier(page, id) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(id);
      page.say("The id is copied.");
    } catch {
      page.say(`The browser does not let this page copy: ${id}`);
    }
  };
  return html`<button class="plain copy" title="Copy the id" aria-label="Copy the id ${id}" @click=${copy}>
    <svg viewBox="0 0 16 16" aria-hidden="true"><rect x="5.5" y="5.5" width="8" height="9" rx="1"></rect><path d="M10.5 2.5v-1h-8v9h1"></path></svg>
  </button>`;
}

/** What an answer that is a problem leaves to show, in the place of what was asked for. */
export const trouble = (problem) =>
  problem ? html`<p class="notice" role="alert">${problem.status === 401 ? "This service asks for a token: look again to give one." : problem.message}</p>` : nothing;

/** Tell the names of the queues, for suggestions, once they are known; where they cannot be, there are none. */
export function queueNames(page, tell) {
  get("/queues", {}, { signal: page.signal }).then(
    (queues) => tell(queues.map(({ name }) => name)),
    () => {},
  );
}

/** What a field with this list offers. */
export const suggestions = (id, names) => html`<datalist id=${id}>${[...new Set(names)].sort().map((name) => html`<option value=${name}></option>`)}</datalist>`;

/** Draw again every so many ms while the view is open: what is shown as "3 s ago" is not so for long. */
export function tick(page, ms) {
  const timer = setInterval(page.update, ms);
  page.signal.addEventListener("abort", () => clearInterval(timer), { once: true });
}
