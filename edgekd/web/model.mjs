// One model in onnxruntime-web, timed by the clock of the process or page that it runs in: the same code in both.

const NOTHING = "CAg6NwoQCgFhEgFiIghJZGVudGl0eRIBZ1oPCgFhEgoKCAgBEgQKAggBYg8KAWISCgoICAESBAoCCAFCBAoAEBE=";
// A graph that returns its input: opening it starts the runtime, which would else be taken for a part of the first model.

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const base64Of = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const empty = async () => null;

export class Model {
  #ort;
  #session = null;
  #calls = [];

  constructor(ort) {
    this.#ort = ort;
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = 1;
  }

  #load(bytes) {
    return this.#ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
  }

  /** Start the runtime; returns its version. */
  async start() {
    await (await this.#load(bytesOf(NOTHING))).release();
    return this.#ort.env.versions.web;
  }

  /** Open a model, in the place of the one before; returns the names of its inputs. */
  async open(bytes) {
    await this.#session?.release();
    this.#session = null;
    this.#calls = [];
    this.#session = await this.#load(bytes);
    return this.#session.inputNames;
  }

  #tensors(feeds) {
    const made = {};
    for (const [name, rows] of Object.entries(feeds)) {
      const shape = [rows.length, rows[0].length];
      made[name] = new this.#ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), shape);
    }
    return made;
  }

  #call(feeds) {
    const names = this.#session.outputNames;
    return this.#session.run(feeds, [names.includes("logits") ? "logits" : names[0]]);
  }

  /** The logits of one call: their shape, and float32 as base64. */
  async run(feeds) {
    const [logits] = Object.values(await this.#call(this.#tensors(feeds)));
    if (!(logits.data instanceof Float32Array)) throw new Error(`the model answers in ${logits.type}, not in float32`);
    const { buffer, byteOffset, byteLength } = logits.data;
    return { shape: logits.dims, data: base64Of(new Uint8Array(buffer, byteOffset, byteLength)) };
  }

  /** Take calls that will be timed; the first is number 0. */
  async keep(calls) {
    for (const feeds of calls) this.#calls.push(this.#tensors(feeds));
  }

  /** Time kept calls one by one, or as many calls of nothing, until `limit` milliseconds are over; milliseconds. */
  async time(numbers, limit, nothing) {
    const call = nothing ? empty : (feeds) => this.#call(feeds);
    const took = [];
    const begun = performance.now();
    for (const number of numbers) {
      const feeds = this.#calls[number];
      const before = performance.now();
      await call(feeds);
      const now = performance.now();
      took.push(now - before);
      if (limit !== null && now - begun >= limit) break;
    }
    return took;
  }
}
