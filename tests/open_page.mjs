// `node open_page.mjs WEB PACKAGES CHROMIUM URL < TEXTS`: what the page at URL answers to a JSON list of texts, called
// from its console and, the first text, typed into its form; what it asked for, and what it complained of.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [web, packages, browser, url] = process.argv.slice(2);
const { launch } = await import(pathToFileURL(join(web, "chromium.mjs")));
const texts = JSON.parse(readFileSync(0, "utf8"));
const { context, close } = await launch(packages, browser);
try {
  const page = context.pages()[0];
  const [errors, requests] = [[], []];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("state").textContent !== "Loading the model…", null, {
    timeout: 120_000,
  });
  const state = await page.textContent("#state");
  let [answers, shown] = [null, null];
  if (state === "Ready.") {
    await page.fill("#text", texts[0]);
    await page.click("button");
    await page.waitForSelector("#answer td");
    shown = await page.textContent("#answer td");
    answers = await page.evaluate(async (all) => {
      const found = [];
      for (const text of all) found.push((await globalThis.classify(text))[0]);
      return found;
    }, texts);
  }
  console.log(JSON.stringify({ state, shown, answers, errors, requests }));
} finally {
  await close();
}
