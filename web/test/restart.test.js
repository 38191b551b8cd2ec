// A daemon that goes away and comes back under an open page.

import assert from "node:assert/strict";
import test, { after, before, beforeEach, afterEach } from "node:test";
import { closePage, launch, openPage, picture } from "./browser.js";
import { Daemon } from "./daemon.js";

let browser;
let daemon;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());
beforeEach(async () => {
  daemon = await Daemon.start("sim:small");
});
afterEach(() => daemon.stop());

/** Notes each moment at which the page calls itself current and shows `text` in a part of it. */
const watchFor = (page, text, part = "#main") =>
  page.evaluate(
    ([wanted, within]) => {
      globalThis.lies = [];
      const look = () => {
        const { phase } = document.body.dataset;
        const main = document.getElementById("main");
        const current =
          phase === "live" ||
          !main.hasAttribute("data-stale") ||
          document.getElementById("stale").hidden;
        const shown = main.matches(within) ? main : main.querySelector(within);
        if (current && shown?.innerText.includes(wanted)) globalThis.lies.push(phase);
      };
      new MutationObserver(look).observe(document, {
        subtree: true,
        childList: true,
        attributes: true,
        characterData: true,
      });
    },
    [text, part],
  );

test("a killed daemon makes the page stale, and a new one current again", async () => {
  const old = await daemon.reserve("vm-old", "00:05.0", "--policy", "exclusive", "--ttl", "1h");
  const page = await openPage(browser, daemon, "#/reservations");
  await page.getByText("vm-old").waitFor();
  await daemon.kill();
  await page.getByText("Not current: what you see is from").waitFor();
  assert.equal(await page.locator("#live").innerText(), "stale");
  const place = await page.locator("#live").boundingBox();
  assert.ok(place.y < 60 && place.x > 1000, "the mark stays in the page's head");
  await page.getByText(/was to end at/).waitFor();
  assert.ok(await page.getByText("vm-old").isVisible(), "what was known is still there to be read");
  await picture(page, "stale-light");

  // While the page can't reach the daemon, everything changes.
  await page.route("**/api/**", (route) => route.abort());
  await daemon.up();
  await daemon.berth("release", old.id);
  await daemon.reserve("vm-new", "00:06.0", "--policy", "exclusive");
  await watchFor(page, "vm-old");
  await page.unroute("**/api/**");
  await page.getByRole("button", { name: "Try now" }).click();
  await page.locator("#live", { hasText: "live" }).waitFor();
  await page.getByText("vm-new").waitFor();
  assert.equal(await page.getByText("vm-old").count(), 0);
  assert.deepEqual(
    await page.evaluate(() => globalThis.lies),
    [],
    "stale state was shown as current",
  );
  assert.ok(await page.locator("#stale").isHidden());
  await closePage(page);
});

test("an explanation from before is not shown beside what is current", async () => {
  const old = await daemon.reserve("vm-old", "00:05.0", "--policy", "exclusive");
  const page = await openPage(browser, daemon, "#/device/0000:00:05.0");
  await page.locator(".columns").getByText(`berth release ${old.id}`).first().waitFor();
  await daemon.kill();
  await page.locator("#stale").waitFor();
  await page.route("**/api/**", (route) => route.abort());
  await daemon.up();
  await daemon.berth("release", old.id);
  await watchFor(page, old.id, ".columns");
  // The answer about the device is late.
  await page.route("**/explain", async (route) => {
    await new Promise((resolve) => setTimeout(resolve, 500));
    await route.continue();
  });
  await page.unroute("**/api/**");
  await page.locator("#live", { hasText: "live" }).waitFor();
  await page.locator(".verdicts").getByText("possible").first().waitFor();
  assert.deepEqual(
    await page.evaluate(() => globalThis.lies),
    [],
    "stale state was shown as current",
  );
  await closePage(page);
});

test("the events go on where they were: none is missing, none is there twice", async () => {
  const page = await openPage(browser, daemon, "#/events");
  await daemon.reserve("vm1", "00:05.0", "--policy", "exclusive");
  await page.locator(".event", { hasText: "reservation.prepared" }).waitFor();
  const seqs = () => page.locator(".event .seq").allInnerTexts();
  const before = await seqs();
  await daemon.kill();
  await page.locator("#live", { hasText: "stale" }).waitFor();
  await page.route("**/api/**", (route) => route.abort());
  await daemon.up();
  await daemon.reserve("vm2", "00:06.0", "--policy", "exclusive");
  const asked = [];
  page.on("request", (request) => {
    if (request.url().endsWith("/events")) asked.push(request.headers()["last-event-id"]);
  });
  await page.unroute("**/api/**");
  await page.locator(".event", { hasText: "vm2" }).first().waitFor();
  const { resumeSeq } = await daemon.get("groups");
  await page.waitForFunction(
    (last) => document.querySelector(".event .seq")?.textContent === last,
    resumeSeq,
  );
  const numbers = (await seqs()).map(Number);
  assert.deepEqual(
    numbers,
    numbers.map((_, at) => numbers[0] - at),
    "a gap, or one twice",
  );
  assert.ok(numbers[0] > Number(before[0]));
  assert.equal(asked[0], before[0], "the stream is resumed by the last event that was seen");
  await closePage(page);
});

test("a daemon that hangs is noticed by its silence", async () => {
  const page = await openPage(browser, daemon);
  await page.clock.install();
  await page.reload();
  await page.locator("#live", { hasText: "live" }).waitFor();
  process.kill(daemon.child.pid, "SIGSTOP");
  try {
    await page.clock.fastForward(45_000);
    await page.getByText("berthd has gone silent").waitFor();
  } finally {
    process.kill(daemon.child.pid, "SIGCONT");
  }
  await page.clock.resume();
  await page.locator("#live", { hasText: "live" }).waitFor();
  await closePage(page);
});

test("a daemon with another record is shown as it is", async () => {
  await daemon.reserve("vm-gone", "00:05.0", "--policy", "exclusive");
  const page = await openPage(browser, daemon, "#/events");
  await page.locator(".event", { hasText: "vm-gone" }).first().waitFor();
  await daemon.kill();
  await daemon.forget();
  await daemon.up();
  await page.locator("#live", { hasText: "live" }).waitFor();
  await page.waitForFunction(() => !document.body.innerText.includes("vm-gone"));
  await closePage(page);
});
