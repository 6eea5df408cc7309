import { html } from "../vendor/lit-html/lit-html.js";

export function open(page, address) {
  return { title: "job", render: () => html`<h1>job</h1>` };
}
