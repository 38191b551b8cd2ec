// The host: what is there, search, filter, keyboard, what changes by itself.

import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { closePage, launch, openPage, picture } from "./browser.js";
import { Daemon } from "./daemon.js";

let daemon;
let browser;
before(async () => {
  daemon = await Daemon.start("sim:gpu-server");
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await daemon?.stop();
});

const row = (page, key) => page.locator(`[data-row="${key}"]`);
const focused = (page) => page.evaluate(() => document.activeElement?.getAttribute("data-row"));

test("shows each device with its group, driver, node and owner, in words", async () => {
  const page = await openPage(browser, daemon);
  await assert.doesNotReject(page.getByText("simulated host gpu-server").waitFor());
  const nic = row(page, "d:0000:29:00.0");
  assert.match(
    await nic.innerText(),
    /0000:29:00.0[^]*ConnectX-7[^]*x16 at 32.0 GT\/s[^]*25[^]*mlx5_core[^]*0[^]*kernel[^]*ok/,
  );
  assert.equal(await nic.getAttribute("aria-level"), "3");
  const { groups } = await daemon.get("groups");
  const devices = groups.flatMap((group) => group.devices).filter((device) => !device.isBridge);
  assert.equal(await page.locator(".found").innerText(), `${devices.length} devices`);
  await picture(page, "host-light");
  await closePage(page);
});

test("finds by name and holder, filters by owner, and the address remembers", async () => {
  const page = await openPage(browser, daemon);
  await page.getByRole("searchbox", { name: "Search devices" }).fill("h100 0000:0");
  await page.waitForFunction(() => document.querySelector(".found").textContent.includes(" of "));
  const names = await page.locator('[data-kind="function"] .cell-0').allInnerTexts();
  assert.ok(names.length > 0 && names.every((name) => name.includes("0000:0")), `${names}`);
  assert.match(page.url(), /#\/host\?q=h100\+0000%3A0/);

  await page.goto(`${daemon.url}#/host?owner=kernel`);
  await page.waitForFunction(() => !document.querySelector('[data-row="d:0000:1b:00.0"]'));
  assert.equal(
    await page.getByRole("button", { name: /^kernel/ }).getAttribute("aria-pressed"),
    "true",
  );
  // Back leads to the search as it was.
  await page.locator('[data-kind="function"] a').first().click();
  await page.locator("#why-title").waitFor();
  await page.goBack();
  await page.locator(".grid").waitFor();
  assert.match(page.url(), /owner=kernel/);

  await page.getByRole("searchbox", { name: "Search devices" }).fill("no such thing");
  await page.getByText("No device is like that.").waitFor();
  await page.getByRole("button", { name: "Show all devices" }).click();
  await row(page, "d:0000:1b:00.0").waitFor();
  await closePage(page);
});

test("the way back leads to where the tree was scrolled to", async () => {
  const page = await openPage(browser, daemon);
  await row(page, "d:0000:1b:00.0").waitFor();
  await page.evaluate(() => scrollTo(0, 700));
  await page.waitForFunction(() => scrollY === 700);
  await row(page, "d:0000:42:01.0").locator("a").first().click();
  await page.locator("#why-title").waitFor();
  assert.equal(await page.evaluate(() => scrollY), 0, "another page begins at its top");
  await page.goBack();
  await row(page, "d:0000:42:01.0").waitFor();
  await page.waitForFunction(() => scrollY === 700);
  await closePage(page);
});

test("the keyboard alone moves, folds and opens", async () => {
  const page = await openPage(browser, daemon);
  // From the top of the page to the tree, by Tab.
  for (let presses = 0; !(await focused(page)); presses += 1) {
    assert.ok(presses < 30, "the Tab key doesn't reach the tree");
    await page.keyboard.press("Tab");
  }
  const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(ring, "solid", "the focus is seen");
  const first = await focused(page);
  assert.equal(first, "r:0000:00");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await row(page, first).getAttribute("aria-expanded"), "false");
  await page.keyboard.press("ArrowDown");
  const next = await focused(page);
  assert.match(next, /^r:/);
  await page.keyboard.press("ArrowRight");
  assert.match(await focused(page), /^d:/);
  await page.keyboard.press("End");
  const last = await focused(page);
  const visible = await page.evaluate(() => {
    const { top, bottom } = document.activeElement.getBoundingClientRect();
    return top >= 0 && bottom <= innerHeight;
  });
  assert.ok(visible, "the last row is in sight");
  await page.keyboard.press("Enter");
  await page.locator("#why-title").waitFor();
  assert.ok(page.url().endsWith(`#/device/${last.slice(2)}`), page.url());
  await page.goBack();
  await page.locator(".grid").waitFor();
  await page.keyboard.press("Tab");
  await closePage(page);
});

test("a reservation appears by itself, and what a person does stays", async () => {
  const page = await openPage(browser, daemon);
  await row(page, "d:0000:07:00.0").focus();
  const before = await page.evaluate(() => scrollY);
  const reservation = await daemon.reserve("vm-live", "0000:1b:00.0", "--policy", "exclusive");
  await row(page, "d:0000:1b:00.0").getByText("reserved").waitFor();
  assert.match(await row(page, "d:0000:1b:00.0").innerText(), /vm-live/);
  assert.equal(await focused(page), "d:0000:07:00.0");
  assert.equal(await page.evaluate(() => scrollY), before);
  await daemon.berth("release", reservation.id);
  await row(page, "d:0000:1b:00.0").getByText("free").waitFor();
  await daemon.berth("cordon", "0000:52:00.0");
  await page.getByRole("button", { name: "needs attention 1" }).click();
  await row(page, "d:0000:52:00.0").getByText("cordoned").waitFor();
  await daemon.berth("uncordon", "0000:52:00.0");
  await page.getByText("No device is like that.").waitFor();
  await closePage(page);
});
