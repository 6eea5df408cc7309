import { html } from "../vendor/lit-html/lit-html.js";

export function open(page, address) {
  return { title: "tasks", render: () => html`<h1>tasks</h1>` };
}
