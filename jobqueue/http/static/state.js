// The states of jobs: their order, their look, and which of them are waiting or unfinished.

import { html } from "./vendor/lit-html/lit-html.js";

export const STATES = ["scheduled", "pending", "blocked", "inflight", "succeeded", "cancelled", "dead"];
export const UNFINISHED = ["scheduled", "pending", "blocked", "inflight"];

export const waits = (state) => state === "scheduled" || state === "pending" || state === "blocked";
export const isUnfinished = (state) => UNFINISHED.includes(state);

/** Return a template of a state with its mark and color. */
export const stateOf = (state) => html`<span class="state" data-state=${state}>${state}</span>`;
