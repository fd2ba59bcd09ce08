// onnxruntime-web in a page of headless Chromium: a profile of its own, removed afterwards, and no network but this
// process's own server on the loopback, whose headers give the page the exact clock.

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { pathToFileURL } from "node:url";

const TYPES = { ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html" };
const PAGE = `<!doctype html><title>edgekd</title><script type="module">
  import * as ort from "/ort/ort.wasm.min.mjs";
  import { Model } from "/model.mjs";
  ort.env.wasm.wasmPaths = "/ort/";
  globalThis.model = new Model(ort);
</script>`;

async function serve(files) {
  const server = createServer(async (request, response) => {
    try {
      const body = await files(request.url);
      response.writeHead(200, {
        "Content-Type": TYPES[extname(request.url)] ?? (request.url === "/" ? TYPES[".html"] : "application/octet-stream"),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cache-Control": "no-store",
      });
      response.end(body);
    } catch (error) {
      response.writeHead(404).end(String(error));
    }
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return { server, origin: `http://127.0.0.1:${server.address().port}` };
}

/** Start Chromium without network; `close` ends it and removes its profile. */
export async function launch(packages, browser) {
  const profile = await mkdtemp(join(tmpdir(), "edgekd-chromium-"));
  const remove = () => rm(profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  try {
    const { chromium } = await import(pathToFileURL(join(packages, "node_modules/playwright-core/index.mjs")));
    const context = await chromium.launchPersistentContext(join(profile, "profile"), {
      executablePath: browser,
      headless: true,
      args: ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"],
      env: { ...process.env, HOME: profile, XDG_CONFIG_HOME: profile, XDG_CACHE_HOME: profile },
      handleSIGTERM: false,
    });
    const close = async () => {
      await context.close().catch(() => {});
      await remove();
    };
    return { context, close };
  } catch (error) {
    await remove();
    throw error;
  }
}

/** The process of the page: of all renderers the one whose CPU time is the page's own, as often as it takes. */
async function computing(context, page, ask) {
  const [browser, own] = [await context.browser().newBrowserCDPSession(), await context.newCDPSession(page)];
  await own.send("Performance.enable");
  const seconds = async () =>
    (await own.send("Performance.getMetrics")).metrics.find(({ name }) => name === "ProcessTime").value;
  const alike = async () => {
    await ask(() => {
      for (const end = performance.now() + 50; performance.now() < end; );
    });
    const least = await seconds();
    const { processInfo } = await browser.send("SystemInfo.getProcessInfo");
    const most = await seconds();
    const fits = ({ type, cpuTime }) => type === "renderer" && least <= cpuTime && cpuTime <= most;
    return processInfo.filter(fits).map(({ id }) => id);
  };
  let found = await alike();
  while (found.length > 1) {
    const again = await alike();
    found = found.filter((id) => again.includes(id));
  }
  await own.detach();
  if (!found.length) throw new Error("Chromium does not say which process computes");
  return found[0];
}

export async function host(packages, browser) {
  const dist = join(packages, "node_modules/onnxruntime-web/dist");
  let given = null; // the path of the model
  const { server, origin } = await serve((url) => {
    if (url === "/") return PAGE;
    if (url === "/model") return readFile(given);
    if (url === "/model.mjs") return readFile(new URL("./model.mjs", import.meta.url));
    if (/^\/ort\/[\w.-]+$/.test(url)) return readFile(join(dist, url.slice(5)));
    throw new Error(`no ${url} here`);
  });
  const { context, close } = await launch(packages, browser);
  const page = context.pages()[0] ?? (await context.newPage());
  const outside = [];
  page.on("request", (request) => request.url().startsWith(origin) || outside.push(request.url()));
  let crashed;
  const crash = new Promise((_, reject) => (crashed = reject));
  crash.catch(() => {});
  page.on("crash", () => crashed(new Error("the page crashed")));
  const ask = async (code, argument) => {
    const answer = await Promise.race([page.evaluate(code, argument), crash]);
    if (outside.length) throw new Error(`the page asked for ${outside[0]}`);
    return answer;
  };
  await page.goto(`${origin}/`);
  return {
    start: async () => {
      const version = await ask(() => globalThis.model.start());
      return { version: `${version}, Chromium ${context.browser().version()}`, pid: await computing(context, page, ask) };
    },
    open: (path) => {
      given = path;
      return ask(async () => globalThis.model.open(new Uint8Array(await (await fetch("/model")).arrayBuffer())));
    },
    run: (feeds) => ask((asked) => globalThis.model.run(asked), feeds),
    keep: (calls) => ask((asked) => globalThis.model.keep(asked), calls),
    time: (...asked) => ask((values) => globalThis.model.time(...values), asked),
    close: async () => {
      await close();
      server.close();
    },
  };
}
