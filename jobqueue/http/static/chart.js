// A chart over time: lines on a canvas (uPlot), with the same data in text and as a table. Each line has its own dash pattern, so
// color is never the only difference. The colors for light and dark mode are in style.css.

import { html, nothing, render } from "./vendor/lit-html/lit-html.js";
import { clock, time } from "./format.js";

const SYNCHRONISED = "charts"; // all charts of the page share the cursor's time
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [16, 4]];
const ROWS = 30; // maximum number of rows in the table

const DARK = matchMedia("(prefers-color-scheme: dark)");

/**
 * The scales. "linear" starts at zero. "wide" is nearly logarithmic but includes zero, for counts of very different sizes. "durations" is
 * logarithmic. `range` returns the limits of the axis. `splits` returns the positions of its labels, if uPlot's own positions do not fit.
 */
const SCALES = {
  linear: { scale: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
  wide: {
    scale: { distr: 4, asinh: 1, range: (_, __, max) => [0, Math.max(10, max * 1.5)] },
    splits: (_, __, ___, max) => [0, ...powers(1, max)],
  },
  durations: {
    scale: { distr: 3, range: (_, min, max) => (max > 0 ? [floorPower(min), Math.max(ceilPower(max), floorPower(min) * 10)] : [0.001, 1]) },
    splits: (_, __, min, max) => powers(min, max),
  },
};

export class Chart {
  /** The chart's element, for use in a template. */
  element = document.createElement("figure");

  #plot = document.createElement("div");
  #title;
  #unit;
  #lines;
  #format;
  #tick;
  #uplot;
  #slots = [];
  #cursor = null; // the slot under the pointer
  #tabled = false;
  #colours = new Map();

  /**
   * title, unit: texts. scale: a name in SCALES. format(number), tick(number): format a value, and a label of the axis, with units.
   * lines: [{label, colour: a variable of style.css, value(point): a number, or null or undefined for a gap}], at most as many as DASHES.
   * signal: removes the chart when aborted.
   */
  constructor({ title, unit, scale, format, tick = format, lines, signal }) {
    this.#title = title;
    this.#unit = unit;
    this.#lines = lines;
    this.#format = format;
    this.#tick = tick;
    this.element.className = "chart panel";
    this.#plot.className = "plot";
    this.#plot.setAttribute("role", "img");
    const sized = new ResizeObserver(() => this.#fit(scale));
    sized.observe(this.#plot);
    DARK.addEventListener("change", () => this.#recolour(), { signal });
    signal.addEventListener("abort", () => (sized.disconnect(), this.#uplot?.destroy()), { once: true });
    this.#describe();
  }

  /** Show the slots of a History, or the text `missing` if there are none. */
  show(slots, missing) {
    this.#slots = slots;
    this.#cursor = null;
    this.#uplot?.setData(this.#data());
    this.#describe(missing);
  }

  /** Resize the plot. It is created once, when its size is first known. */
  #fit(scale) {
    const size = { width: this.#plot.clientWidth, height: this.#plot.clientHeight };
    if (size.width === 0) return;
    if (this.#uplot) this.#uplot.setSize(size);
    else this.#uplot = new uPlot(this.#options(size, scale), this.#data(), this.#plot);
  }

  #options(size, scale) {
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const axis = {
      stroke: () => this.#colour("--quiet"),
      font: `${Math.round(rem * 0.8)}px system-ui, sans-serif`,
      grid: { stroke: () => this.#colour("--line"), width: 1 },
      ticks: { stroke: () => this.#colour("--line"), width: 1, size: 4 },
    };
    return {
      ...size,
      padding: [rem * 0.5, rem * 1.4, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, sync: { key: SYNCHRONISED } },
      scales: { x: { time: true }, y: SCALES[scale].scale },
      axes: [
        { ...axis, size: rem * 1.8, space: rem * 5, values: (_, splits) => splits.map((at) => clock(at * 1000)) },
        {
          ...axis,
          size: rem * 4.2,
          space: rem * 2,
          splits: SCALES[scale].splits,
          filter: (_, splits) => splits,
          values: (_, splits) => splits.map((value) => this.#tick(value)),
        },
      ],
      series: [
        {},
        ...this.#lines.map(({ label, colour }, place) => ({
          label,
          stroke: () => this.#colour(colour),
          width: 1.75,
          dash: DASHES[place],
          points: { show: false, size: 5, filter: alone },
        })),
      ],
      hooks: {
        setCursor: [
          ({ cursor: { idx } }) => {
            const slot = this.#slots[idx] ?? null;
            if (slot === this.#cursor) return;
            this.#cursor = slot;
            this.#describe();
          },
        ],
      },
    };
  }

  #data() {
    return [this.#slots.map(({ at }) => at), ...this.#lines.map(({ value }) => this.#slots.map(({ point }) => (point && value(point)) ?? null))];
  }

  #recolour() {
    this.#colours.clear();
    this.#uplot?.redraw(false);
  }

  /** Return the current color of a variable of style.css. */
  #colour(token) {
    if (!this.#colours.has(token)) {
      this.#plot.style.color = `var(${token})`;
      this.#colours.set(token, getComputedStyle(this.#plot).color);
      this.#plot.style.color = "";
    }
    return this.#colours.get(token);
  }

  #told(slot, { value }) {
    const number = slot?.point && value(slot.point);
    return typeof number === "number" ? this.#format(number) : "–";
  }

  #describe(missing) {
    const latest = this.#slots.findLast(({ point }) => point) ?? null;
    const slot = this.#cursor ?? latest;
    this.#plot.setAttribute(
      "aria-label",
      latest
        ? `${this.#title}, ${this.#unit}, from ${time(this.#slots[0].at * 1000)} to ${time(this.#slots.at(-1).at * 1000)}. ` +
            `Latest: ${this.#lines.map((line) => `${line.label} ${this.#told(latest, line)}`).join(", ")}.`
        : `${this.#title}: ${missing ?? "nothing yet."}`,
    );
    render(
      html`
        <figcaption>
          <div class="row spread">
            <h2>${this.#title} <span class="quiet">${this.#unit}</span></h2>
            <span class="quiet number">${slot ? `${this.#cursor ? "At" : "Latest:"} ${time(slot.at * 1000)}` : nothing}</span>
          </div>
          <ul class="legend">
            ${this.#lines.map(
              (line, place) => html`
                <li>
                  <svg class="dash" data-colour=${line.colour} viewBox="0 0 30 4" aria-hidden="true">
                    <line x1="0" y1="2" x2="30" y2="2" stroke-dasharray=${DASHES[place].join(" ") || nothing}></line>
                  </svg>
                  ${line.label} <b class="number value">${this.#told(slot, line)}</b>
                </li>
              `,
            )}
          </ul>
        </figcaption>
        <div class="drawn">${this.#plot} ${latest ? nothing : html`<p class="missing quiet">${missing}</p>`}</div>
        <details @toggle=${(event) => this.#table(event.target.open)}>
          <summary>Show as table</summary>
          ${this.#tabled ? this.#rows() : nothing}
        </details>
      `,
      this.element,
    );
  }

  #table(open) {
    this.#tabled = open;
    this.#describe();
  }

  #rows() {
    return html`
      <div class="scroll" tabindex="0" role="region" aria-label=${`${this.#title} as a table`}>
        <table>
          <caption class="hidden">${this.#title}, ${this.#unit}: the last ${ROWS} points, the latest first</caption>
          <thead>
            <tr><th scope="col">Time</th>${this.#lines.map(({ label }) => html`<th scope="col" class="number">${label}</th>`)}</tr>
          </thead>
          <tbody>
            ${this.#slots
              .slice(-ROWS)
              .reverse()
              .map(
                (slot) => html`
                  <tr>
                    <th scope="row" class="number">${time(slot.at * 1000)}</th>
                    ${this.#lines.map((line) => html`<td class="number">${this.#told(slot, line)}</td>`)}
                  </tr>
                `,
              )}
          </tbody>
        </table>
      </div>
    `;
  }
}

/** Return the positions of the points without neighbors. They need dots, because a line does not show single points. */
function alone(uplot, series) {
  const values = uplot.data[series];
  const found = [];
  values.forEach((value, place) => {
    if (value !== null && (values[place - 1] ?? null) === null && (values[place + 1] ?? null) === null) found.push(place);
  });
  return found.length ? found : null;
}

function powers(min, max) {
  const found = [];
  for (let exponent = Math.ceil(Math.log10(min) - 1e-9); 10 ** exponent <= max; exponent += 1) found.push(10 ** exponent);
  return found;
}

const floorPower = (number) => 10 ** Math.floor(Math.log10(number));
const ceilPower = (number) => 10 ** Math.ceil(Math.log10(number));
