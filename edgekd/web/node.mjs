// onnxruntime-web in this very process.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { Model } from "./model.mjs";

export async function host(packages) {
  const file = join(packages, "node_modules/onnxruntime-web/dist/ort.node.min.mjs");
  const { default: ort } = await import(pathToFileURL(file));
  const model = new Model(ort);
  return {
    start: async () => ({ version: `${await model.start()}, Node ${process.versions.node}` }),
    open: async (path) => model.open(await readFile(path)),
    run: (feeds) => model.run(feeds),
    keep: (calls) => model.keep(calls),
    time: (...given) => model.time(...given),
    close: async () => {},
  };
}
