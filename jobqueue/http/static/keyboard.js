// Keyboard shortcuts of one or two keys. The user can turn them off (WCAG 2.1.4), and they do not work in input fields.

import * as address from "./address.js";

const OFF = "jobqueue.shortcuts.off";
const SECOND_KEY = 1_500; // maximum ms between the first and the second of two keys

export const KEYS = [
  { keys: ["g", "o"], does: "Overview" },
  { keys: ["g", "j"], does: "Jobs" },
  { keys: ["g", "d"], does: "Dead letters" },
  { keys: ["g", "s"], does: "Schedules" },
  { keys: ["g", "t"], does: "Task tree" },
  { keys: ["/"], does: "Go to the first filter" },
  { keys: ["j"], does: "Next row" },
  { keys: ["k"], does: "Previous row" },
  { keys: ["Enter"], does: "Open the row" },
  { keys: ["n"], does: "Next page" },
  { keys: ["r"], does: "Refresh" },
  { keys: ["?"], does: "Show this list" },
];

export const enabled = () => localStorage.getItem(OFF) === null;

export function setEnabled(on) {
  if (on) localStorage.removeItem(OFF);
  else localStorage.setItem(OFF, "1");
}

/** Handle keys for the lifetime of the page. */
export function shortcuts({ tabs, help, view, busy }) {
  const byLetter = Object.fromEntries(tabs.map((name) => [name[0], name]));
  let goesAt = -Infinity;
  addEventListener("keydown", (event) => {
    if (!enabled() || busy() || event.ctrlKey || event.metaKey || event.altKey || isField(event.target)) return;
    const second = performance.now() - goesAt < SECOND_KEY;
    goesAt = -Infinity;
    if (second && byLetter[event.key]) address.go([byLetter[event.key]]);
    else if (event.key === "g") goesAt = performance.now();
    else if (event.key === "?") help();
    else if (event.key === "/") document.querySelector("main input, main select")?.focus();
    else if (event.key === "j" || event.key === "k") moveRow(event.key === "j" ? 1 : -1);
    else if (!view(event.key)) return;
    event.preventDefault();
  });
}

function isField(element) {
  return element.matches("input:not([type=checkbox]), select, textarea");
}

/** Move the focus by some rows. A row is a link or button with the attribute data-row, so Enter opens it. */
function moveRow(by) {
  const rows = [...document.querySelectorAll("main [data-row]")];
  const place = rows.indexOf(document.activeElement);
  rows[place === -1 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, place + by))]?.focus();
}
