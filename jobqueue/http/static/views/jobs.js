import { html } from "../vendor/lit-html/lit-html.js";

export function open(page, address) {
  return { title: "jobs", render: () => html`<h1>jobs</h1>` };
}
