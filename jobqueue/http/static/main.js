// The page: which view is open, and what all views have around them. A view is made by `open(page, address)`, and is an object of
//   title             what the tab is called
//   render()          what it shows, as a template; called again after each page.update()
//   key(name)         optional: a key was pressed outside of a field; true when it was for the view
// It stops what it has begun when page.signal is aborted.

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

const SAID_FOR = 6_000; // ms that a message stands

const root = document.getElementById("page");
const dialogs = new Dialogs(update);
let opened = null;
let said = null;
let connection = { state: "idle", since: null };
let drawing = false;

/** Show what is known by now, once before the next picture: a hidden page draws nothing. */
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

/** What a view may do with the page for as long as it is open. */
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
    /** Do what changes something, say how it went, and tell whether it went well. */
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

/** Tell of a problem; where it is that a token is needed, ask for one and begin anew. */
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
  if (!focused.isConnected) document.getElementById("content").focus(); // what had the focus is gone: the keyboard goes on from here
}

function skip(event) {
  event.preventDefault(); // the address is the view's
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
