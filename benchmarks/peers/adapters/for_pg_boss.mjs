// pg-boss: two workers with batches of 1,000 jobs, woken by notifications, without a pause while batches are full.

import { CONNECTIONS, load, main } from "./adapter.mjs";

const { PgBoss } = await load("pg-boss");

const QUEUE = "noop";

let boss;

async function start(connectionString, options) {
  boss = new PgBoss({ connectionString, ...options });
  boss.on("error", console.error);
  await boss.start();
}

await main({
  open: (connectionString) => start(connectionString, { max: CONNECTIONS, supervise: false, schedule: false }),
  install: () => boss.createQueue(QUEUE, { notify: true }),
  submit: (job) => boss.send(QUEUE, job),
  submitMany: (jobs) => boss.insert(QUEUE, jobs.map((data) => ({ data }))),
  async work(connectionString, handle) {
    await start(connectionString, { useListenNotify: true });
    const options = { batchSize: 1000, localConcurrency: 2, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
    await boss.work(QUEUE, options, async (jobs) => {
      for (const job of jobs) handle(job.data);
    });
  },
  close: () => boss.stop({ graceful: false }),
});
