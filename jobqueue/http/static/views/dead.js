import { html } from "../vendor/lit-html/lit-html.js";

export function open(page, address) {
  return { title: "dead", render: () => html`<h1>dead</h1>` };
}
