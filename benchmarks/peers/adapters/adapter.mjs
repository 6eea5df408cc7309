// The base of all Node.js adapters. adapter.py describes the command line and the events.
//
// An adapter is {open, install, submit, submitMany, work, close}. Packages are resolved from the directory in PEER_MODULES, because
// Node.js looks for ES modules only near the importing file.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const PADDING = "x".repeat(40);

export const CONNECTIONS = 16;

export async function load(name) {
  const found = createRequire(`${process.env.PEER_MODULES}/`).resolve(name);
  return import(pathToFileURL(found).href);
}

// performance.now() has a resolution of microseconds; Date.now() does not.
const now = () => (performance.timeOrigin + performance.now()) / 1000;

const payload = () => ({ sent: Math.round(now() * 1e6) / 1e6, padding: PADDING });

const say = (event, fields = {}) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);

function seen({ jobs, timed }) {
  let count = 0;
  let first = 0;
  const latencies = [];
  return (job) => {
    if (timed) latencies.push(now() - job.sent);
    if (count === 0) {
      first = now();
      say("first");
    }
    count += 1;
    if (count === jobs) say("handled", { first, latencies });
  };
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function single(adapter, { jobs, producers }) {
  let left = jobs;
  const produce = async () => {
    while (left-- > 0) await adapter.submit(payload());
  };
  await Promise.all(Array.from({ length: producers }, produce));
}

async function bulk(adapter, { jobs, batch }) {
  for (let start = 0; start < jobs; start += batch) {
    await adapter.submitMany(Array.from({ length: Math.min(batch, jobs - start) }, payload));
  }
}

async function trickle(adapter, { jobs, pause: seconds }) {
  for (let number = 0; number < jobs; number += 1) {
    await adapter.submit(payload());
    await pause(seconds);
  }
}

export async function main(adapter) {
  const [role, address, text] = process.argv.slice(2);
  const { warm, ...options } = JSON.parse(text);
  if (role === "work") {
    await adapter.work(address, seen(options));
    return;
  }
  await adapter.open(address);
  if (warm) await single(adapter, { jobs: 2 * CONNECTIONS, producers: CONNECTIONS });
  const started = performance.now();
  await { install: () => adapter.install(), single, bulk, trickle }[role](adapter, options);
  say("done", { seconds: (performance.now() - started) / 1000 });
  await adapter.close();
}
