import { html } from "../vendor/lit-html/lit-html.js";

export function open(page, address) {
  return { title: "overview", render: () => html`<h1>overview</h1>` };
}
