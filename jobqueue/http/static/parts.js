// Small templates and helpers that several views share.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { get } from "./api.js";
import { ago, time } from "./format.js";

/** Return a template of a relative time, with the absolute time as its tooltip. */
export const when = (iso) => (Number.isFinite(Date.parse(iso)) ? html`<time datetime=${iso} title=${time(iso)}>${ago(iso)}</time>` : "–");

/** Shorten a UUID of version 7: keep its beginning, which is the time, and its random end. */
export const shortId = (id) => `${id.slice(0, 13)}…${id.slice(-4)}`;

/** Return a button that copies an id. Browsers allow copying on HTTPS and loopback only. On other pages, the button shows the id. */
export function copier(page, id) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(id);
      page.say("The id is copied.");
    } catch {
      page.say(`The browser does not allow this page to copy: ${id}`);
    }
  };
  return html`<button class="plain copy" title="Copy the id" aria-label="Copy the id ${id}" @click=${copy}>
    <svg viewBox="0 0 16 16" aria-hidden="true"><rect x="5.5" y="5.5" width="8" height="9" rx="1"></rect><path d="M10.5 2.5v-1h-8v9h1"></path></svg>
  </button>`;
}

/** Return a template that shows a problem in place of the requested data. */
export const trouble = (problem) =>
  problem ? html`<p class="notice" role="alert">${problem.status === 401 ? "This service requires a token: refresh to enter one." : problem.message}</p>` : nothing;

/** Call `tell` with the names of all queues, for suggestions. If the request fails, do not call it. */
export function queueNames(page, tell) {
  get("/queues", {}, { signal: page.signal }).then(
    (queues) => tell(queues.map(({ name }) => name)),
    () => {},
  );
}

/** Return a datalist with the suggestions of a field. */
export const suggestions = (id, names) => html`<datalist id=${id}>${[...new Set(names)].sort().map((name) => html`<option value=${name}></option>`)}</datalist>`;

/** Redraw every `ms` milliseconds while the view is open, to keep relative times current. */
export function tick(page, ms) {
  const timer = setInterval(page.update, ms);
  page.signal.addEventListener("abort", () => clearInterval(timer), { once: true });
}
