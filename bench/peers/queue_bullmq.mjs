// BullMQ at its best: 100 jobs at a time, nothing kept of what is done, addBulk. The same words as queue_agent.py.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

const [role, url, home] = process.argv.slice(2);
const require = createRequire(`${home}/package.json`);
const { Queue, Worker } = require("bullmq");
const { hostname: host, port, pathname } = new URL(url);
const connection = { host, port: Number(port), db: Number(pathname.slice(1)), maxRetriesPerRequest: null };
const removal = { removeOnComplete: true };
const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n");
const nanoseconds = () => Number(process.hrtime.bigint());

function work() {
  const numbers = [];
  const waits = [];
  let first = 0;
  let last = 0;
  const worker = new Worker("jobs", async (job) => {
    last = nanoseconds();
    first ||= last;
    numbers.push(job.data.number);
    if (job.data.sent_ns) waits.push(last - job.data.sent_ns);
  }, { connection, concurrency: 100, autorun: false, ...removal });
  const answers = {
    go: () => { worker.run(); return "going"; },
    count: () => ({ count: numbers.length, first_ns: first, last_ns: last }),
    numbers: () => numbers,
    waits: () => waits,
    held: () => 0,
  };
  return (words) => answers[words[0]]();
}

function produce() {
  const queue = new Queue("jobs", { connection, defaultJobOptions: removal });
  const one = (number, sent_ns) => queue.add("job", { number, sent_ns });
  return async ([order, first, end, pause]) => {
    const began = performance.now();
    if (order === "bulk") {
      for (let at = Number(first); at < end; at += 1000) {
        const size = Math.min(1000, end - at);
        const data = (i) => ({ name: "job", data: { number: at + i, sent_ns: 0 } });
        await queue.addBulk(Array.from({ length: size }, (_, i) => data(i)));
      }
    } else {
      for (let number = Number(first); number < end; number += 1) {
        await one(number, pause ? nanoseconds() : 0);
        if (pause) await new Promise((resume) => setTimeout(resume, pause * 1000));
      }
    }
    return (performance.now() - began) / 1000;
  };
}

const answer = role === "work" ? work() : produce();
say(["bullmq", "ioredis"].map((name) => {
  const about = JSON.parse(readFileSync(`${home}/node_modules/${name}/package.json`));
  return `${name} ${about.version}`;
}).join(", ") + `, node ${process.versions.node}`);
const lines = createInterface({ input: process.stdin });
for await (const line of lines) say(await answer(line.trim().split(" ")));
process.exit(0);
