// Graphile Worker: a local queue of 2,000 jobs and batched completion, as its performance documentation recommends.

import { CONNECTIONS, load, main } from "./adapter.mjs";

const { Logger, makeWorkerUtils, run, runMigrations } = await load("graphile-worker");

const quiet = new Logger(() => (level, message) => level === "error" && console.error(message));

let utils;

await main({
  async open(connectionString) {
    utils = await makeWorkerUtils({ connectionString, maxPoolSize: CONNECTIONS, logger: quiet });
  },
  install: () => utils.migrate(),
  submit: (job) => utils.addJob("noop", job),
  submitMany: (jobs) => utils.addJobs(jobs.map((payload) => ({ identifier: "noop", payload }))),
  async work(connectionString, handle) {
    const worker = {
      concurrentJobs: 24,
      localQueue: { size: 2000 },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    };
    const taskList = { noop: async (payload) => handle(payload) };
    const runner = await run({ preset: { worker: { connectionString, maxPoolSize: 26, logger: quiet, ...worker } }, taskList });
    await runner.promise;
  },
  close: () => utils.release(),
});
