// The states of jobs: in their order, as they are shown, and what may be done in which.

import { html } from "./vendor/lit-html/lit-html.js";

export const STATES = ["scheduled", "pending", "blocked", "inflight", "succeeded", "cancelled", "dead"];
export const UNFINISHED = ["scheduled", "pending", "blocked", "inflight"];

export const waits = (state) => state === "scheduled" || state === "pending" || state === "blocked";
export const isUnfinished = (state) => UNFINISHED.includes(state);

/** A state with its mark and colour. */
export const stateOf = (state) => html`<span class="state" data-state=${state}>${state}</span>`;
