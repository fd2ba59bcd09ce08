// `node compress.mjs FILE...`: their bytes in all, and those that travel where a server compresses as well as it can.

import { readFile } from "node:fs/promises";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const total = { bytes: 0, gzip_bytes: 0, brotli_bytes: 0 };
for (const file of process.argv.slice(2)) {
  const data = await readFile(file);
  const best = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: data.length };
  total.bytes += data.length;
  total.gzip_bytes += gzipSync(data, { level: 9 }).length;
  total.brotli_bytes += brotliCompressSync(data, { params: best }).length;
}
console.log(JSON.stringify(total));
