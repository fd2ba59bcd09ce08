// Loads the bundle that this page lies in, and classifies text with it: `(await load("./"))("some text")`.

import * as ort from "./web/ort.wasm.min.mjs";
import { Tokenizer } from "./web/tokenizers.min.mjs";

ort.env.wasm.numThreads = 1; // more need a server that sends COOP and COEP, and help a small model little
ort.env.wasm.wasmPaths = new URL("./web/", import.meta.url).href;

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be had: ${response.status}`);
  return response;
}

/** `folder` is the bundle's address; the function that comes back gives a text's classes, the likeliest first. */
export async function load(folder) {
  const json = async (name) => (await fetched(folder + name)).json();
  const [manifest, words, config] = await Promise.all(
    ["manifest.json", "tokenizer.json", "tokenizer_config.json"].map(json),
  );
  const tokenizer = new Tokenizer(words, config);
  const bytes = new Uint8Array(await (await fetched(folder + manifest.model)).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });

  const bare = (text) => tokenizer.encode(text, { add_special_tokens: false }).ids;
  const framed = tokenizer.encode("a").ids;
  const begin = framed.indexOf(bare("a")[0]);
  const [before, after] = [framed.slice(0, begin), framed.slice(begin + bare("a").length)]; // [CLS] and [SEP], mostly
  const room = manifest.max_length - before.length - after.length;

  return async function classify(text) {
    const ids = [...before, ...bare(text).slice(0, room), ...after];
    const of = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
    const known = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: ids.map(() => 0) };
    const feeds = Object.fromEntries(session.inputNames.map((name) => [name, of(known[name])]));
    const [logits] = Object.values(await session.run(feeds));
    const values = Array.from(logits.data);
    const powers = values.map((value) => Math.exp(value - Math.max(...values)));
    const sum = powers.reduce((a, b) => a + b);
    return manifest.labels
      .map((label, place) => ({ label, score: powers[place] / sum }))
      .sort((a, b) => b.score - a.score);
  };
}
