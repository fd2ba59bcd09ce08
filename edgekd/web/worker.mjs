// Serves a Python that measures: `node worker.mjs node|chromium PACKAGES [CHROMIUM]`. A line of JSON on stdin asks
// ([method, ...arguments]), one on stdout answers ({value} or {error}). Ends with its stdin.

import { createInterface } from "node:readline";

const [where, packages, browser] = process.argv.slice(2);
const { host } = await import(where === "chromium" ? "./chromium.mjs" : "./node.mjs");

let model;
const methods = {
  start: async () => ({ pid: process.pid, ...(await (model = await host(packages, browser)).start()) }),
  open: (path) => model.open(path),
  run: (feeds) => model.run(feeds),
  keep: (calls) => model.keep(calls),
  time: (...given) => model.time(...given),
};

let closing;
const end = async (code) => {
  await (closing ??= model?.close());
  process.exit(code);
};
if (where === "chromium") process.on("SIGTERM", () => end(143)); // in Node a call that hangs would keep it from coming

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const [method, ...given] = JSON.parse(line);
    answer = { value: (await methods[method](...given)) ?? null };
  } catch (error) {
    answer = { error: String(error?.message ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await end(0);
