// The overview of all nodes: charts of the last 15 minutes to 24 hours, queues, and nodes. It updates while it is open.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { to } from "../address.js";
import { follow, token } from "../api.js";
import { Chart } from "../chart.js";
import { count, duration, rate, time, zone } from "../format.js";
import { History } from "../history.js";
import { attention, figures, totals } from "../overview/figures.js";
import { nodesTable } from "../overview/nodes.js";
import { actions, queuesTable } from "../overview/queues.js";

const RANGES = [
  { seconds: 900, label: "15 min" },
  { seconds: 3_600, label: "1 h" },
  { seconds: 21_600, label: "6 h" },
  { seconds: 86_400, label: "24 h" },
];

const DEPTHS = ["pending", "inflight", "scheduled", "blocked", "dead"]; // the unfinished states, and "dead", because a dead job waits for a person to act

const SILENCE = 10_000; // ms without an event after which the data counts as old; the service sends one every 2 s
const SECOND = 1_000;

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

const percentile = (of, name, colour) => ({ label: name, colour, value: (point) => point[of]?.[name] });
const percentiles = (of) => [percentile(of, "p50", "--good"), percentile(of, "p95", "--accent"), percentile(of, "p99", "--bad")];
const perSecond = (name, label, colour) => ({ label, colour, value: (point) => point[name] });
const depth = (state) => ({ label: state, colour: `--${state}`, value: (point) => point.depth?.[state] });

const CHARTS = [
  {
    title: "Jobs per second",
    unit: "on all nodes",
    scale: "linear",
    format: rate,
    tick: (value) => `${COMPACT.format(value)}/s`,
    lines: [
      perSecond("submitted", "submitted", "--accent"),
      perSecond("completed", "completed", "--good"),
      perSecond("failed", "failed attempts", "--warn"),
      perSecond("dead", "dead", "--bad"),
    ],
  },
  {
    title: "Depth by state",
    unit: "jobs, logarithmic",
    scale: "wide",
    format: count,
    tick: (value) => COMPACT.format(value),
    lines: DEPTHS.map(depth),
  },
  { title: "Wait", unit: "from available to claimed, logarithmic", scale: "durations", format: duration, lines: percentiles("wait") },
  { title: "Run", unit: "of an attempt, logarithmic", scale: "durations", format: duration, lines: percentiles("run") },
];

/** The part of the service's data that the view shows. */
export class State {
  now = null; // {now, node, queues, nodes}: the latest overview
  heardAt = null; // time of the last event, in ms
  trouble = null; // why the data is old, though the service can be reached

  constructor(seconds) {
    this.history = new History(seconds);
  }

  /** Whether the data is old, though the service can be reached. */
  get isOld() {
    return this.trouble !== null || (this.heardAt !== null && Date.now() - this.heardAt > SILENCE);
  }

  /** Apply an event of GET /overview/events. */
  take(name, data) {
    if (name === "history") {
      this.history.add(data);
    } else if (name === "overview") {
      this.now = data;
      this.trouble = null;
      this.heardAt = Date.now();
    } else if (name === "trouble") {
      this.trouble = data.reasons.join("; ");
    }
  }

  /** Apply a known change of a queue before its event arrives. */
  change(name, known) {
    if (!this.now) return;
    this.now = { ...this.now, queues: this.now.queues.map((queue) => (queue.name === name ? { ...queue, ...known } : queue)) };
  }
}

export function open(page, address) {
  const { seconds, label } = RANGES.find((range) => String(range.seconds) === address.query.range) ?? RANGES[0];
  const state = new State(seconds);
  const charts = CHARTS.map((chart) => new Chart({ ...chart, signal: page.signal }));
  let drawn = -1; // the version of the history that the charts show
  let lost = null; // {since: ms, why}
  let refused = null;
  let wanted = "";

  const tell = () => {
    page.connection(lost ? "lost" : state.isOld ? "stale" : "open");
    page.update();
  };
  follow("/overview/events", { seconds }, {
    signal: page.signal,
    onEvent(name, data) {
      state.take(name, data);
      tell();
    },
    onState(connection, problem) {
      if (connection === "refused") {
        refused = problem;
        page.connection("idle");
        page.fail(problem);
        page.update();
        return;
      }
      lost = connection === "open" ? null : (lost ?? { since: Date.now() });
      if (lost) lost.why = problem?.status ? problem.message : null; // the service's message, if any
      tell();
    },
  });
  // Normally an event arrives every 2 s and causes an update. Then this timer does nothing.
  const timer = setInterval(() => {
    if (lost || state.isOld) tell();
  }, SECOND);
  page.signal.addEventListener("abort", () => clearInterval(timer), { once: true });

  const act = actions(page, (name, known) => {
    state.change(name, known);
    page.update();
  });
  const look = (text) => {
    wanted = text;
    page.update();
  };

  function render() {
    if (drawn !== state.history.version) {
      drawn = state.history.version;
      const slots = state.history.slots(state.now ? Date.parse(state.now.now) / 1000 : 0);
      for (const chart of charts) chart.show(slots, drawn ? "The first points appear after ten seconds." : "Loading …");
    }
    return html`
      <div class="row spread">
        <h1>Overview</h1>
        <nav class="ranges" aria-label="Range of the charts">
          ${RANGES.map(
            (range) => html`<a href=${to(["overview"], { range: range.seconds })} aria-current=${range.seconds === seconds ? "true" : nothing}>${range.label}</a>`,
          )}
        </nav>
      </div>
      ${refused ? html`<p class="notice" role="alert">${refused.status === 401 ? "This view requires a token." : refused.message}</p>` : old(lost, state)}
      <div class=${lost || state.isOld ? "old" : ""}>
        ${state.now ? html`${figures(state.now)} ${attention(state.now)} ${state.history.version ? nothingYet(state, label) : nothing}` : nothing}
        <div class="grid charts">${charts.map((chart) => chart.element)}</div>
        <p class="quiet">All times are in ${zone()}. A gap in a line means that nothing was measured: no node was running, or no job started.</p>
        ${state.now ? html`${queuesTable({ ...state.now, wanted, look, act })} ${nodesTable(state.now)}` : nothing}
      </div>
    `;
  }

  return { title: "Overview", render };
}

function old(lost, { isOld, heardAt, trouble }) {
  if (!lost && !isOld) return nothing;
  const what = lost
    ? html`<b>The connection to the service is lost</b> since ${time(lost.since)}. ${lost.why ?? nothing} The page keeps trying.`
    : html`<b>The service has no current data</b>: ${trouble ?? "it has stopped sending events"}. The page continues when new data arrives.`;
  const shown = heardAt === null ? "No data has arrived yet." : `The page shows the data of ${time(heardAt)}, ${duration(Math.round((Date.now() - heardAt) / 1000))} ago.`;
  return html`<p class="notice lost">${what} ${shown}</p>`;
}

function nothingYet(state, label) {
  const all = totals(state.now.queues);
  const some = DEPTHS.some((name) => all.depth(name) > 0);
  if (some || state.history.some(({ submitted, completed }) => submitted > 0 || completed > 0)) return nothing;
  const authorization = token.get() ? ` -H "Authorization: Bearer $TOKEN"` : "";
  return html`
    <div class="panel empty">
      <p>No job was submitted in the last ${label}, and none is waiting. Submit one with a kind that has a handler:</p>
      <p><code>curl ${location.origin}/submit${authorization} -H 'Content-Type: application/json' -d '{"kind": "default"}'</code></p>
    </div>
  `;
}
