import { html } from "../vendor/lit-html/lit-html.js";

export function open(page, address) {
  return { title: "schedules", render: () => html`<h1>schedules</h1>` };
}
