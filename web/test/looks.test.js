// How every view looks and works: phone, dark, accessible, without a shift, under its policy.

import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import {
  assertAccessible,
  assertNoSideScroll,
  closePage,
  launch,
  layoutShift,
  openPage,
  PHONE,
  picture,
} from "./browser.js";
import { Daemon } from "./daemon.js";

let daemon;
let browser;
let views;
before(async () => {
  daemon = await Daemon.start("sim:gpu-server");
  browser = await launch();
  const held = await daemon.reserve(
    "vm1",
    "1b:00.0",
    "--policy",
    "exclusive",
    "--delivery",
    "held",
    "--for",
    "uid:60001",
    "--ttl",
    "1h",
  );
  await daemon.berth("attach", held.id);
  await daemon.reserve("a-holder-with-a-name-that-is-rather-long", "43:00.0", "--policy", "group");
  await daemon.berth("cordon", "52:00.0");
  const { stableId } = await daemon.get("groups/0000:1b:00.0");
  views = {
    host: "",
    group: `#/group/${stableId}`,
    device: "#/device/0000:29:00.0",
    reservations: "#/reservations",
    reservation: `#/reservations/${held.id}`,
    events: "#/events",
    doctor: "#/doctor",
    nothing: "#/host?q=nothing-is-like-this",
  };
});
after(async () => {
  await browser?.close();
  await daemon?.stop();
});

/** The view is there, whole. */
const settled = async (page) => {
  await page.locator("main > *").first().waitFor();
  await page.waitForFunction(
    () => !/Asking berthd|Reading the history/.test(document.body.innerText),
  );
};

for (const [look, options] of Object.entries({
  light: {},
  dark: { colorScheme: "dark" },
  phone: { viewport: PHONE, hasTouch: true, isMobile: true },
})) {
  test(`every view, ${look}: accessible, no sideways scroll, nothing moves`, async (t) => {
    const shifts = {};
    for (const [name, hash] of Object.entries(views)) {
      const page = await openPage(browser, daemon, hash, options);
      await settled(page);
      shifts[name] = Math.round((await layoutShift(page)) * 1000) / 1000;
      await assertNoSideScroll(page, name);
      // Colours are all that is dark; what is narrow is arranged anew.
      await assertAccessible(
        page,
        `${name}, ${look}`,
        look === "dark" ? ["color-contrast"] : undefined,
      );
      if (look !== "light")
        await picture(page, `${name}-${look}`, {
          fullPage: look === "phone" && !["host", "events"].includes(name),
        });
      await closePage(page);
    }
    t.diagnostic(`layout shift, ${look}: ${JSON.stringify(shifts)}`);
    for (const [name, shift] of Object.entries(shifts))
      assert.ok(shift < 0.03, `${name} moves: ${shift}`);
  });
}

test("nothing moves where it is narrow", async (t) => {
  // A screen that only is narrow: shifts are not reported of one that says it is a phone's.
  const shifts = {};
  for (const name of ["host", "group", "device", "reservations", "events"]) {
    const page = await openPage(browser, daemon, views[name], { viewport: PHONE });
    await settled(page);
    shifts[name] = Math.round((await layoutShift(page)) * 1000) / 1000;
    await closePage(page);
  }
  t.diagnostic(`layout shift, narrow: ${JSON.stringify(shifts)}`);
  for (const [name, shift] of Object.entries(shifts)) assert.ok(shift < 0.03, `${name} moves: ${shift}`);
});

test("a stale page is accessible, and fits a phone", async () => {
  const own = await Daemon.start("sim:small");
  const page = await openPage(browser, own, "", { viewport: PHONE, colorScheme: "dark" });
  await own.kill();
  await page.locator("#stale").waitFor();
  await assertNoSideScroll(page, "stale");
  await assertAccessible(page, "stale");
  await picture(page, "stale-phone-dark");
  await closePage(page);
  await own.stop();
});

test("the page obeys a strict policy and asks nobody else", async () => {
  const page = await openPage(browser, daemon);
  const response = await page.reload();
  const policy = response.headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe|https?:|data:|\*/);
  // The browser enforces it: an inline script and a style attribute do nothing.
  const inline = await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "globalThis.injected = true";
    document.body.append(script);
    const part = document.createElement("p");
    part.setAttribute("style", "color: rgb(1, 2, 3)");
    document.body.append(part);
    return [globalThis.injected === true, getComputedStyle(part).color === "rgb(1, 2, 3)"];
  });
  assert.deepEqual(inline, [false, false]);
  page.wrong = page.wrong.filter((text) => !text.includes("Content Security Policy"));
  await closePage(page);
});

test("every link and field is reached by the Tab key alone", async () => {
  const page = await openPage(browser, daemon, views.device);
  await settled(page);
  const wanted = await page.evaluate(
    () =>
      [...document.querySelectorAll("a, button, input, summary, pre")].filter(
        (item) =>
          item.checkVisibility({ visibilityProperty: true }) &&
          !item.closest("details:not([open]) > :not(summary)"),
      ).length,
  );
  const seen = new Set();
  for (let presses = 0; presses < wanted + 5; presses += 1) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const item = document.activeElement;
      if (!item || item === document.body) return null;
      item.dataset.tab ||= `${Math.random()}`;
      return { id: item.dataset.tab, ring: getComputedStyle(item).outlineStyle };
    });
    if (!at) break;
    assert.equal(at.ring, "solid");
    seen.add(at.id);
  }
  assert.equal(seen.size, wanted);
  await closePage(page);
});
