// The task tree: the live Trio tasks of one node, each within the nursery that waits for it.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { to } from "../address.js";
import { get } from "../api.js";
import { count, duration, named, time } from "../format.js";
import { Tree } from "../tree.js";

const INTERVAL = 2_000; // ms between two requests
const RUNNING = "running"; // the value of waits_on for the task that makes the response
const LONG = [1, 10, 60, 600, 3_600]; // choices for the minimum wait, in s

export function open(page) {
  const tree = new Tree();
  let seen = null;
  let wanted = "";
  let long = 60;
  let lost = null; // why the last request failed
  let paused = false;
  let timer;

  async function look() {
    clearTimeout(timer);
    try {
      seen = await get("/tasks", {}, { signal: page.signal });
      tree.take(seen.root);
      lost = null;
      page.connection("open");
    } catch (problem) {
      if (page.signal.aborted) return;
      if (problem.status === 0 || problem.status >= 500) {
        lost = problem.message;
        page.connection("lost");
      } else {
        paused = true;
        page.fail(problem);
      }
    }
    page.update();
    if (!paused && !document.hidden && !page.signal.aborted) timer = setTimeout(look, INTERVAL);
  }

  function pause() {
    paused = !paused;
    if (paused) clearTimeout(timer);
    else look();
    page.update();
  }

  document.addEventListener("visibilitychange", () => paused || document.hidden || look(), { signal: page.signal });
  page.signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  look();

  function render() {
    const text = wanted.trim().toLowerCase();
    const found = seen && tree.found(({ name }) => name.toLowerCase().includes(text), long);
    return html`
      <h1>Task tree</h1>
      <p>The live Trio tasks of one node, each within the nursery that waits for it. Each task shows the call that it waits on, and the minimum time that it has waited.</p>
      ${lost ? html`<p class="notice lost"><b>${lost}</b> The page shows old data, and keeps trying.</p>` : nothing}
      <form class="panel row" @submit=${(event) => event.preventDefault()}>
        <label>Name <input type="search" .value=${live(wanted)} @input=${(event) => ((wanted = event.target.value), page.update())} /></label>
        <label>
          Mark tasks that have waited for
          <select @change=${(event) => ((long = Number(event.target.value)), page.update())}>
            ${LONG.map((seconds) => html`<option value=${seconds} ?selected=${seconds === long}>${duration(seconds)}</option>`)}
          </select>
        </label>
        <button type="button" @click=${pause}>${paused ? "Resume" : "Pause"}</button>
        ${found ? html`<span class="tally quiet" role=${text ? "status" : nothing}>${tally(found, text !== "")}</span>` : nothing}
      </form>
      ${found
        ? html`
            <p class="quiet">
              These are the tasks of node <span class="mono">${seen.node}</span>, which serves this page. Other nodes have their own task trees.
              ${paused ? "Paused" : "Updated"} at ${time(seen.at)}.
            </p>
            <div class="panel tree">
              ${found.root ? html`<ul>${task(found.root, text !== "")}</ul>` : html`<p class="empty">No task's name contains “${wanted.trim()}”.</p>`}
            </div>
          `
        : html`<p class="quiet">Loading …</p>`}
    `;
  }

  /** Return the summary. Screen readers announce it only during a search, not every two seconds. */
  function tally(found, some) {
    const those = some ? `${count(found.tasks)} of ${tasks(seen.tasks)} match` : tasks(seen.tasks);
    return `${those}; ${found.long === 1 ? "1 has" : `${count(found.long)} have`} waited for ${duration(long)} or longer`;
  }

  function task({ key, task: { name, waits_on: waitsOn, since, stack, job, more }, nurseries, isLong }, all) {
    return html`
      <li>
        <div class="task">
          <b class="mono"><bdi>${named(name)}</bdi></b>
          ${job ? html`<a data-row href=${to(["jobs", job.id])}>job <bdi>${named(job.kind)}</bdi></a> <span class="quiet">in <bdi>${named(job.queue)}</bdi></span>` : nothing}
          <span class="waits">${waitsOn === RUNNING ? "runs" : waitsOn ? html`waits on <span class="mono">${waitsOn}</span>` : "ends"}</span>
          ${since === null ? nothing : html`<span class="number">${duration(since)}</span>`} ${isLong ? html`<span class="badge warn">long</span>` : nothing}
          ${stack.length
            ? html`
                <details ?open=${tree.isOpen(`${key} stack`, false)} @toggle=${(event) => toggle(event, `${key} stack`, false)}>
                  <summary>Stack</summary>
                  ${tree.isOpen(`${key} stack`, false) ? html`<ol class="mono">${stack.map((frame) => html`<li>${frame}</li>`)}</ol>` : nothing}
                </details>
              `
            : nothing}
        </div>
        ${repeat(nurseries, (nursery) => nursery.key, (nursery) => level(nursery, all))}
        ${more ? html`<p class="quiet">and ${tasks(more)} that are not shown</p>` : nothing}
      </li>
    `;
  }

  /** Return the template of a nursery. During a search (`all`), every nursery is open. */
  function level({ key, tasks: children, total, opened }, all) {
    const isOpen = all || tree.isOpen(key, opened);
    return html`
      <details class="nursery" .open=${live(isOpen)} @toggle=${(event) => all || toggle(event, key, opened)}>
        <summary>nursery of ${tasks(total)}</summary>
        ${isOpen ? html`<ul>${repeat(children, (child) => child.key, (child) => task(child, all))}</ul>` : nothing}
      </details>
    `;
  }

  function toggle(event, key, before) {
    if (event.target.open === tree.isOpen(key, before)) return;
    tree.setOpen(key, event.target.open, before);
    page.update();
  }

  return {
    title: "Task tree",
    render,
    key(name) {
      if (name !== "r") return false;
      look();
      return true;
    },
  };
}

const tasks = (n) => `${count(n)} ${n === 1 ? "task" : "tasks"}`;
