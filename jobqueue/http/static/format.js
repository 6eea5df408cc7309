// Format numbers with their units, and times in the user's time zone.

const COUNT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const TIME = new Intl.DateTimeFormat("en-CA", {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "short",
});
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Format a number: 1,307. Numbers of 100,000 and more are short: 1.31M. */
export const count = (n) => (n < 100_000 ? COUNT : SHORT).format(n);

/** Format a number of jobs: 1 job, 12 jobs. */
export const jobs = (n) => `${COUNT.format(n)} ${n === 1 ? "job" : "jobs"}`;

/** Format a rate: 3.6/s. Rates below 0.1/s are per minute: 1.2/min. */
export function rate(perSecond) {
  if (perSecond === 0) return "0/s";
  if (perSecond < 0.1) return `${significant(perSecond * 60)}/min`;
  return `${significant(perSecond)}/s`;
}

/** Format a duration: 850 µs, 2.1 ms, 1.9 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0) return `-${duration(-seconds)}`;
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return `${significant(seconds * 1e6)} µs`;
  if (seconds < 1) return `${significant(seconds * 1000)} ms`;
  if (seconds < 60) return `${significant(seconds)} s`;
  const whole = Math.round(seconds);
  for (const [unit, size, smaller, part] of [["d", 86_400, "h", 3_600], ["h", 3_600, "min", 60], ["min", 60, "s", 1]]) {
    if (whole >= size) {
      const rest = Math.floor((whole % size) / part);
      return `${Math.floor(whole / size)} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
    }
  }
  return `${whole} s`;
}

/** Format a time (ISO 8601, or ms since 1970) in the user's time zone: 2026-11-25 14:03:07 GMT+1. */
export function time(when) {
  const part = Object.fromEntries(TIME.formatToParts(new Date(when)).map(({ type, value }) => [type, value]));
  return `${part.year}-${part.month}-${part.day} ${part.hour}:${part.minute}:${part.second} ${part.timeZoneName}`;
}

/** Format a time of day without its zone: 14:03. */
export const clock = (when) => CLOCK.format(new Date(when));

/** Return the user's time zone: Europe/Berlin. */
export const zone = () => CLOCK.resolvedOptions().timeZone;

/** Format a time relative to now: 3 min 20 s ago, or in 2 h. */
export function ago(iso, now = Date.now()) {
  const seconds = Math.round((now - Date.parse(iso)) / 1000);
  if (seconds === 0) return "now";
  return seconds > 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`;
}

/** Shorten a text to `length` characters. */
export const cut = (text, length) => (text.length > length ? `${text.slice(0, length)} …` : text);

/** Escape the characters of a name that are invisible or change the text direction: \u202e. */
export const named = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (sign) => `\\u${sign.codePointAt(0).toString(16).padStart(4, "0")}`);

function significant(n) {
  return n >= 1000 ? SHORT.format(n) : String(Number(n.toPrecision(n >= 100 ? 3 : 2)));
}
