// The page: opens views, and draws the frame around them. A view's module exports `open(page, address)`, which returns an object:
//   title             The title of the browser tab.
//   render()          Returns the view's template. Called after each page.update().
//   key(name)         Optional. Handles a key that was pressed outside of a field, and returns true if it used the key.
// A view stops its timers and requests when page.signal is aborted.

import { html, nothing, render } from "./vendor/lit-html/lit-html.js";
import * as address from "./address.js";
import { act, token } from "./api.js";
import { Dialogs } from "./dialogs.js";
import { shortcuts } from "./keyboard.js";
import * as dead from "./views/dead.js";
import * as job from "./views/job.js";
import * as jobs from "./views/jobs.js";
import * as overview from "./views/overview.js";
import * as schedules from "./views/schedules.js";
import * as tasks from "./views/tasks.js";

const TABS = [
  { name: "overview", label: "Overview", view: overview },
  { name: "jobs", label: "Jobs", view: jobs },
  { name: "dead", label: "Dead letters", view: dead },
  { name: "schedules", label: "Schedules", view: schedules },
  { name: "tasks", label: "Task tree", view: tasks },
];

const CONNECTIONS = { idle: "", open: "Live", lost: "Connection lost, trying again", stale: "The database cannot be reached" };

const SAID_FOR = 6_000; // ms that a message is shown

const root = document.getElementById("page");
const dialogs = new Dialogs(update);
let opened = null;
let said = null;
let connection = { state: "idle", since: null };
let drawing = false;

/** Redraw before the next animation frame, at most once per frame; a hidden page does not draw. */
function update() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function open() {
  opened?.controller.abort();
  dialogs.close();
  connection = { state: "idle", since: null };
  const controller = new AbortController();
  const asked = address.read();
  const tab = TABS.find(({ name }) => name === asked.parts[0]) ?? TABS[0];
  const view = tab.name === "jobs" && asked.parts.length === 2 ? job : tab.view;
  opened = { controller, tab, view: view.open(pageFor(controller.signal), asked) };
  document.title = `${opened.view.title} · jobqueue`;
  update();
}

/** Return the functions that a view may call; they do nothing after the view is closed. */
function pageFor(signal) {
  const still = (does) => (...given) => (signal.aborted ? undefined : does(...given));
  return {
    signal,
    update: still(update),
    say: still((text) => say(text)),
    fail: still(fail),
    connection: still((state) => {
      if (state === connection.state) return;
      connection = { state, since: Date.now() };
      update();
    }),
    confirm: (question) => dialogs.confirm(question),
    form: (question) => dialogs.form(question),
    /** Send a request that changes something, and show the result. Resolves to the response, or to null after an error. */
    async act(method, path, options, done) {
      try {
        const answer = await act(method, path, options);
        say(typeof done === "function" ? done(answer) : done);
        return answer;
      } catch (problem) {
        fail(problem);
        return null;
      }
    },
  };
}

function say(text, { bad = false } = {}) {
  const message = { text, bad };
  said = message;
  update();
  setTimeout(() => {
    if (said !== message) return;
    said = null;
    update();
  }, SAID_FOR);
}

/** Show a problem. After a 401, ask for a token and reopen the view. */
async function fail(problem) {
  if (problem.status === 401) {
    const wrong = token.get() !== null;
    token.forget();
    const secret = await dialogs.askToken(wrong);
    if (secret) {
      token.set(secret);
      open();
    }
    return;
  }
  say(problem.message, { bad: true });
}

function draw() {
  const { tab, view } = opened;
  const focused = document.activeElement;
  render(
    html`
      <a class="skip" href="#content" @click=${skip}>Skip to the content</a>
      <header class="bar">
        <a class="brand" href="#/">jobqueue</a>
        <nav aria-label="Views">
          ${TABS.map(
            ({ name, label }) => html`<a href=${address.to([name])} aria-current=${name === tab.name ? "page" : nothing}>${label}</a>`,
          )}
        </nav>
        <span class="connection" data-state=${connection.state} role="status">${CONNECTIONS[connection.state]}</span>
        ${token.get() ? html`<button class="plain" @click=${leave}>Forget the token</button>` : nothing}
        <button class="plain" aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)" @click=${() => dialogs.showKeys()}>?</button>
      </header>
      <main id="content" tabindex="-1">${view.render()}</main>
      <div class="said" role="status" aria-live="polite" data-bad=${said?.bad ?? nothing}>${said?.text ?? nothing}</div>
      ${dialogs.render()}
    `,
    root,
  );
  dialogs.show();
  if (!focused.isConnected) document.getElementById("content").focus(); // the update has removed the focused element
}

function skip(event) {
  event.preventDefault(); // the link's target, #content, would replace the view's address in the hash
  document.getElementById("content").focus();
}

function leave() {
  token.forget();
  open();
}

root.replaceChildren();
addEventListener("hashchange", open);
shortcuts({
  tabs: TABS.map(({ name }) => name),
  help: () => dialogs.showKeys(),
  view: (key) => opened.view.key?.(key) ?? false,
  busy: () => dialogs.open,
});
open();
