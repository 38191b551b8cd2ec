// The browser, and what the tests ask of every page.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

// The tools are installed apart from the sources.
const tools = createRequire(
  resolve(process.env.BERTH_WEB_TOOLS || "target/web-tools", "package.json"),
);
const { chromium } = tools("playwright-core");
const AXE = tools.resolve("axe-core/axe.min.js");
const PICTURES = process.env.BERTH_PICTURES || "target/web";

export const DESKTOP = { width: 1280, height: 900 };
export const PHONE = { width: 390, height: 844 };

/** One browser for a file of tests. */
export function launch() {
  return chromium.launch({
    executablePath: process.env.BERTH_CHROMIUM || "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
  });
}

/**
 * A page that remembers what must not happen: errors, requests to others, what the policy blocked.
 */
export async function openPage(browser, daemon, hash = "", options = {}) {
  const context = await browser.newContext({ viewport: DESKTOP, ...options });
  const page = await context.newPage();
  page.wrong = [];
  page.on("pageerror", (error) => page.wrong.push(`error: ${error.message}`));
  page.on("console", (message) => {
    // A daemon that is away is a failed request, which the console tells too.
    const expected = message.text().includes("Failed to load resource");
    if (message.type() === "error" && !expected) page.wrong.push(`console: ${message.text()}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(daemon.url)) page.wrong.push(`asks ${request.url()}`);
  });
  if (process.env.BERTH_PAGE_FROM_DISK) await serveFromDisk(page, daemon);
  await page.goto(daemon.url + hash);
  await page.locator("#live", { hasText: "live" }).waitFor();
  return page;
}

/** Another tab of the same browser. */
export async function openTab(page, daemon, hash) {
  const tab = await page.context().newPage();
  if (process.env.BERTH_PAGE_FROM_DISK) await serveFromDisk(tab, daemon);
  await tab.goto(daemon.url + hash);
  await tab.locator("#live", { hasText: "live" }).waitFor();
  return tab;
}

/** While the page is worked on: its files as they are in web/, not as the daemon embeds them. */
async function serveFromDisk(page, daemon) {
  await page.route(new RegExp(`^${daemon.url}(web/(?!session$).*)?$`), async (route) => {
    const name = new URL(route.request().url()).pathname.replace(/^\/(web\/)?/, "") || "index.html";
    const response = await route.fetch();
    const types = {
      js: "text/javascript",
      css: "text/css",
      svg: "image/svg+xml",
      html: "text/html",
    };
    const headers = { ...response.headers(), "content-type": types[name.split(".").pop()] };
    await route.fulfill({ status: 200, headers, path: join("web", name) });
  });
}

/** Nothing went wrong on the page; it is closed. */
export async function closePage(page) {
  assert.deepEqual(page.wrong, []);
  await page.context().close();
}

/** Nothing of the page is wider than the screen. */
export async function assertNoSideScroll(page, what) {
  const wide = await page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const beyond = [...document.querySelectorAll("body *")].filter(
      (item) => item.getBoundingClientRect().right > width + 1,
    );
    return beyond.slice(0, 5).map((item) => `${item.tagName} ${item.className}`);
  });
  assert.deepEqual(wide, [], `${what} scrolls sideways`);
}

/**
 * axe finds nothing serious or critical, by all its rules or by those that are named.
 * @param {string[]} [rules]
 */
export async function assertAccessible(page, what, rules) {
  // The policy lets no script in; the debugger's own way isn't the page's.
  if (!(await page.evaluate(() => "axe" in globalThis))) {
    const { readFile } = await import("node:fs/promises");
    await page.evaluate(await readFile(AXE, "utf8"));
  }
  const { violations } = await page.evaluate((only) => {
    const runOnly = only && { type: "rule", values: only };
    return globalThis.axe.run(document, { resultTypes: ["violations"], ...(only && { runOnly }) });
  }, rules);
  const bad = violations.filter((item) => ["serious", "critical"].includes(item.impact));
  const told = bad.map(
    (item) =>
      `${item.id}: ${item.help}: ${item.nodes
        .slice(0, 3)
        .map((node) => `${node.html.slice(0, 160)} ${node.failureSummary}`)
        .join(" | ")}`,
  );
  assert.deepEqual(told, [], `${what} is not accessible`);
}

/** A picture for people: target/web/NAME.png. */
export async function picture(page, name, options = {}) {
  await mkdir(PICTURES, { recursive: true });
  await page.screenshot({ path: join(PICTURES, `${name}.png`), ...options });
}

/** The sum of layout shifts that no input caused, since the page was opened. */
export const layoutShift = (page) =>
  page.evaluate(
    () =>
      new Promise((resolve) => {
        let sum = 0;
        new PerformanceObserver((list) => {
          for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
        }).observe({ type: "layout-shift", buffered: true });
        setTimeout(() => resolve(sum), 300);
      }),
  );
