// Two thousand devices: only rows in sight are elements. Times are printed, not judged.

import assert from "node:assert/strict";
import test from "node:test";
import { closePage, launch, openPage, picture } from "./browser.js";
import { Daemon } from "./daemon.js";

/** How long until `act` shows in a painted frame, measured in the page. */
const frameAfter = (page, act, value) =>
  page.evaluate(
    ([name, given]) =>
      new Promise((resolve) => {
        const start = performance.now();
        if (name === "search") {
          const search = document.querySelector(".search");
          search.value = given;
          search.dispatchEvent(new Event("input"));
        } else if (name === "scroll") scrollTo(0, given);
        else document.querySelector(".under-bar button").click();
        requestAnimationFrame(() =>
          setTimeout(() => resolve(Math.round(performance.now() - start))),
        );
      }),
    [act, value],
  );

test("two thousand devices", async (t) => {
  const daemon = await Daemon.start("sim:large");
  const browser = await launch();
  t.after(async () => {
    await browser.close();
    await daemon.stop();
  });
  const page = await openPage(browser, daemon);
  await page.locator(".found", { hasText: "2,000 devices" }).waitFor();
  const first = await page.evaluate(() => {
    const paint = performance.getEntriesByName("first-contentful-paint")[0]?.startTime || 0;
    return { paint: Math.round(paint), all: Math.round(performance.now()) };
  });
  const rows = () => page.locator(".grid-body .grid-row").count();
  assert.ok((await rows()) < 80, `${await rows()} rows are elements`);
  const total = Number(await page.locator(".grid").getAttribute("aria-rowcount"));
  assert.ok(total > 2_125, `${total} rows are told`);
  await picture(page, "large-light");

  const times = {};
  times.scroll = await frameAfter(page, "scroll", 40_000);
  assert.ok((await rows()) < 80);
  const inSight = await page.evaluate(
    () => document.elementFromPoint(300, 500).closest("[data-row]") !== null,
  );
  assert.ok(inSight, "the middle of the tree is there once it is scrolled to");
  times.search = await frameAfter(page, "search", "nvme 0002:");
  await page.locator(".found", { hasText: "of 2,000" }).waitFor();
  times.clear = await frameAfter(page, "search", "");
  times.fold = await frameAfter(page, "fold");
  assert.equal(await rows(), 25, "root complexes alone");
  times.unfold = await frameAfter(page, "fold");
  await page.evaluate(() => scrollTo(0, 0));
  await page.locator('[data-row="r:0000:00"]').focus();
  await page.keyboard.press("End");
  const last = await page.evaluate(() => document.activeElement.getAttribute("aria-rowindex"));
  assert.equal(Number(last), total);

  const start = Date.now();
  await daemon.reserve("vm-large", "0000:01:00.0", "--policy", "group");
  await page.keyboard.press("Home");
  await page.locator('[data-row="d:0000:01:00.0"]', { hasText: "vm-large" }).waitFor();
  times.live = Date.now() - start;
  t.diagnostic(`first paint ${first.paint} ms, first whole view by ${first.all} ms`);
  t.diagnostic(
    `to the next frame: ${Object.entries(times)
      .map(([name, ms]) => `${name} ${ms} ms`)
      .join(", ")}`,
  );
  await closePage(page);
});
