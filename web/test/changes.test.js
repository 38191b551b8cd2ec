// What the page changes, signed in by a link of `berth web`: by mouse, by keyboard, refused, expired.

import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import {
  assertAccessible,
  assertNoSideScroll,
  closePage,
  launch,
  openPage,
  openTab,
  PHONE,
  picture,
} from "./browser.js";
import { Daemon } from "./daemon.js";

const DEVICE = "0000:00:06.0";

let daemon;
let browser;
before(async () => {
  daemon = await Daemon.start("sim:small");
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await daemon?.stop();
});

const newLink = async () => (await daemon.berth("web")).trim();

/** A page that is signed in, at a view. */
async function signedIn(hash, options = {}) {
  const url = await newLink();
  const page = await openPage(browser, daemon, url.slice(daemon.url.length), options);
  await page.getByRole("button", { name: "Sign out" }).waitFor();
  await page.locator("#said").getByRole("button", { name: "Close" }).click();
  await go(page, hash);
  return page;
}

async function go(page, hash) {
  await page.evaluate((to) => {
    location.hash = to;
  }, hash);
  await page.locator("#why").or(page.locator("main h1")).first().waitFor();
}

const button = (page, name) => page.locator("main").getByRole("button", { name });
const dialog = (page) => page.getByRole("dialog");
const said = (page) => page.locator("#said");

/** Presses Tab until the focus is where `name` says. */
async function tabTo(page, name) {
  for (let presses = 0; presses < 80; presses += 1) {
    await page.keyboard.press("Tab");
    const text = await page.evaluate(() => {
      const item = document.activeElement;
      const label = item?.closest("label")?.querySelector(".field-name");
      return (label || item)?.textContent;
    });
    if (text === name) return;
  }
  assert.fail(`Tab doesn't come to ${name}`);
}

const reservationsOf = async (holder) =>
  (await daemon.get("reservations")).reservations.filter((item) => item.holder.name === holder);

test("a link signs in once, leaves the address bar, and is in no request's address", async () => {
  const url = await newLink();
  const token = url.split("/").pop();
  const hash = url.slice(daemon.url.length);
  const asked = [];
  const page = await openPage(browser, daemon, "");
  page.on("request", (request) => asked.push(request.url() + JSON.stringify(request.headers())));
  await page.getByText("This page reads.").waitFor();
  assert.equal(await page.locator("#sign-in code").innerText(), "berth web");
  // Followed in a page that is open: only what is behind # changes.
  await go(page, hash);
  await page.getByRole("button", { name: "Sign out" }).waitFor();
  assert.match(await page.locator("#session").innerText(), /uid:\d+, operator[^]*left/);
  assert.match(await said(page).innerText(), /Signed in as uid:\d+, operator/);
  assert.ok(!page.url().includes(token), page.url());
  assert.deepEqual(
    asked.filter((text) => text.includes(token)),
    [],
  );
  const [cookie] = await page.context().cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path], [true, "Strict", "/"]);
  assert.equal(await page.evaluate(() => document.cookie), "");
  // It stays over a reload, and in another tab.
  await page.reload();
  await page.getByRole("button", { name: "Sign out" }).waitFor();
  // Used up, also for another browser.
  const late = await openPage(browser, daemon, hash);
  await said(late).getByText("Not signed in").waitFor();
  assert.match(await said(late).innerText(), /it was used[^]*berth web/);
  assert.equal(await late.getByRole("button", { name: "Sign out" }).count(), 0);
  await closePage(late);
  await closePage(page);
});

test("a device is reserved, renewed and released by mouse", async () => {
  const page = await signedIn(`#/device/${DEVICE}`);
  await button(page, "Reserve…").click();
  await dialog(page).getByRole("textbox", { name: /^Holder/ }).fill("vm-mouse");
  await dialog(page).getByLabel("Policy").selectOption("exclusive");
  await dialog(page).getByText("possible").waitFor();
  await dialog(page).getByLabel("For", { exact: false }).first().fill("uid:60001");
  await dialog(page).getByLabel("Time to live").fill("1h 30m");
  await dialog(page).getByRole("button", { name: "Reserve", exact: true }).click();
  await dialog(page).waitFor({ state: "detached" });
  await said(page).getByText("Reserved:").waitFor();
  const [made] = await reservationsOf("vm-mouse");
  assert.deepEqual(
    [made.policy, made.holder.forIdentity, made.ttlMs, made.targets[0].devices[0].pci],
    ["EXCLUSIVE", "uid:60001", "5400000", DEVICE],
  );
  await said(page).getByRole("link", { name: made.id }).click();

  await button(page, "Renew…").click();
  await dialog(page).getByLabel("Time to live").fill("2h");
  await dialog(page).getByRole("button", { name: "Renew" }).click();
  await said(page).getByText("Renewed:").waitFor();
  assert.equal((await reservationsOf("vm-mouse"))[0].ttlMs, "7200000");

  await button(page, "Release…").click();
  const text = await dialog(page).innerText();
  assert.match(text, /vm-mouse[^]*0000:00:06\.0/);
  await dialog(page).getByRole("button", { name: "Cancel" }).click();
  assert.equal((await reservationsOf("vm-mouse")).length, 1, "cancelled");
  await button(page, "Release…").click();
  await dialog(page).getByRole("button", { name: "Release" }).click();
  await said(page).getByText("Released:").waitFor();
  await button(page, "Release…").waitFor({ state: "detached" });
  assert.equal((await daemon.get(`reservations/${made.id}`)).state, "RELEASED");
  await closePage(page);
});

test("the same by keyboard alone, and the focus comes back", async () => {
  const page = await signedIn(`#/device/${DEVICE}`);
  await button(page, "Reserve…").waitFor();
  await tabTo(page, "Reserve…");
  await page.keyboard.press("Enter");
  await dialog(page).waitFor();
  // Escape gives up, and the focus is where it was.
  await page.keyboard.press("Escape");
  await dialog(page).waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Reserve…");
  await page.keyboard.press("Enter");
  await dialog(page).waitFor();
  await tabTo(page, "Holder");
  // What is wanting is said, and the field has the focus.
  await page.keyboard.press("Enter");
  await dialog(page).getByText("Holder is needed.").waitFor();
  await page.keyboard.type("vm-keys");
  await tabTo(page, "Time to live");
  await page.keyboard.type("soon");
  await page.keyboard.press("Enter");
  await dialog(page).getByText(/Time to live isn't understood: write it like/).waitFor();
  await page.keyboard.press("Control+A");
  await page.keyboard.type("10m");
  await page.keyboard.press("Enter");
  await dialog(page).waitFor({ state: "detached" });
  const [made] = await reservationsOf("vm-keys");
  assert.equal(made.ttlMs, "600000");
  assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Reserve…");

  await go(page, `#/reservations/${made.id}`);
  await button(page, "Release…").waitFor();
  await tabTo(page, "Release…");
  await page.keyboard.press("Enter");
  await dialog(page).waitFor();
  await tabTo(page, "Release");
  await page.keyboard.press("Enter");
  await said(page).getByText("Released:").waitFor();
  // What had the focus is gone: it is at the content, not lost.
  await button(page, "Release…").waitFor({ state: "detached" });
  await closePage(page);
});

test("a refusal says why and the way out, and nothing that was typed is lost", async () => {
  const page = await signedIn("#/device/0000:02:01.0");
  await button(page, "Reserve…").click();
  await dialog(page).getByRole("textbox", { name: /^Holder/ }).fill("vm-refused");
  await dialog(page).getByLabel("Policy").selectOption("exclusive");
  await dialog(page).getByText("would be refused").waitFor();
  assert.match(await dialog(page).locator(".verdict-now").innerText(), /GROUP_NOT_SINGLETON/);
  await dialog(page).getByRole("button", { name: "Reserve", exact: true }).click();
  const told = dialog(page).locator(".told");
  await told.getByText("GROUP_NOT_SINGLETON, EINVAL").waitFor();
  assert.match(await told.innerText(), /Way out[^]*berth reserve --holder NAME --group/);
  assert.equal(await dialog(page).locator(".verdict-now").innerText(), "", "it is told once");
  await picture(page, "dialog-refused-light");
  assert.equal(await dialog(page).getByRole("textbox", { name: /^Holder/ }).inputValue(), "vm-refused");
  assert.deepEqual(await reservationsOf("vm-refused"), []);
  // Who has it is named.
  const held = await daemon.reserve("vm-first", DEVICE, "--policy", "exclusive");
  await page.keyboard.press("Escape");
  await go(page, `#/device/${DEVICE}`);
  await button(page, "Reserve…").click();
  await dialog(page).getByRole("textbox", { name: /^Holder/ }).fill("vm-second");
  await dialog(page).getByRole("button", { name: "Reserve", exact: true }).click();
  await told.getByText("Owner: ").waitFor();
  assert.match(await told.innerText(), /holder vm-first[^]*/);
  assert.match(await told.innerText(), new RegExp(`berth release ${held.id}`));
  await daemon.berth("release", held.id);
  // What was typed is good now.
  await dialog(page).getByRole("button", { name: "Reserve", exact: true }).click();
  await said(page).getByText("Reserved:").waitFor();
  const [made] = await reservationsOf("vm-second");
  await daemon.berth("release", made.id);
  await closePage(page);
});

test("a cordon has a reason, and ends", async () => {
  const page = await signedIn(`#/device/${DEVICE}`);
  await button(page, "Cordon…").click();
  await dialog(page).getByLabel("Reason").fill("the fan is loud");
  await dialog(page).getByLabel("For how long").fill("2h");
  await dialog(page).getByRole("button", { name: "Cordon" }).click();
  await said(page).getByText("Cordoned:").waitFor();
  const { cordon } = await daemon.get(`devices/${DEVICE}`);
  assert.deepEqual([cordon.note, cordon.ttlMs], ["the fan is loud", "7200000"]);
  await button(page, "End the cordon…").click();
  assert.match(await dialog(page).innerText(), /the fan is loud/);
  await dialog(page).getByRole("button", { name: "End the cordon" }).click();
  await said(page).getByText("Not cordoned any more:").waitFor();
  await button(page, "Cordon…").waitFor();
  await closePage(page);
});

test("a quarantine is cleared with a reason, which is kept", async () => {
  // It has no reset: with a policy that asks for one it isn't given to the next.
  const device = "0000:00:05.0";
  const words = ["--policy", "exclusive", "--reset-policy", "require"];
  const held = await daemon.reserve("vm-spoiled", device, ...words);
  await daemon.berth("attach", held.id);
  await daemon.berth("release", held.id);
  const page = await signedIn(`#/device/${device}`);
  await button(page, "Clear quarantine…").click();
  await picture(page, "dialog-quarantine-light");
  await assertAccessible(page, "clear quarantine");
  await dialog(page).getByRole("button", { name: "Clear quarantine" }).click();
  await dialog(page).getByText("Reason is needed.").waitFor();
  await dialog(page).getByLabel("Reason").fill("power cycled");
  await dialog(page).getByRole("button", { name: "Clear quarantine" }).click();
  await said(page).getByText("Out of quarantine:").waitFor();
  await button(page, "Clear quarantine…").waitFor({ state: "detached" });
  assert.equal((await daemon.get(`devices/${device}`)).condition, "OK");
  const { events } = await daemon.get("events?limit=1000");
  const told = events.filter((event) => event.cause === "clear quarantine (web)");
  assert.match(JSON.stringify(told), /power cycled/);
  await closePage(page);
});

test("who signs out can change nothing, and a dialog keeps its text over the end of a session", async () => {
  const page = await signedIn(`#/device/${DEVICE}`);
  await button(page, "Reserve…").click();
  await dialog(page).getByRole("textbox", { name: /^Holder/ }).fill("vm-kept");
  const other = await openTab(page, daemon, "");
  await other.getByRole("button", { name: "Sign out" }).click();
  await other.locator("#said").getByText("Signed out.").waitFor();
  assert.deepEqual(await page.context().cookies(), []);
  await dialog(page).getByRole("button", { name: "Reserve", exact: true }).click();
  await dialog(page).getByText("what you typed stays").waitFor();
  assert.equal(await dialog(page).locator(".told code").innerText(), "berth web");
  await picture(page, "dialog-signed-out-light");
  await assertAccessible(page, "a dialog without a session");
  const next = await openTab(page, daemon, (await newLink()).slice(daemon.url.length));
  await next.getByRole("button", { name: "Sign out" }).waitFor();
  await dialog(page).getByRole("button", { name: "Reserve", exact: true }).click();
  await said(page).getByText("Reserved:").waitFor();
  const [made] = await reservationsOf("vm-kept");
  await daemon.berth("release", made.id);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("This page reads.").waitFor();
  assert.equal(await page.locator("[aria-haspopup=dialog]").count(), 0);
  await Promise.all([other.close(), next.close()]);
  await closePage(page);
});

test("a daemon that restarts knows no session, and the page says so", async () => {
  const own = await Daemon.start("sim:small");
  const url = (await own.berth("web")).trim();
  const page = await openPage(browser, own, url.slice(own.url.length));
  await page.getByRole("button", { name: "Sign out" }).waitFor();
  await own.kill();
  await page.locator("#stale").waitFor();
  await own.up();
  await said(page).getByText("To sign in again:").waitFor();
  assert.equal(await page.getByRole("button", { name: "Sign out" }).count(), 0);
  await closePage(page);
  await own.stop();
});

for (const [look, options] of Object.entries({
  light: {},
  dark: { colorScheme: "dark" },
  phone: { viewport: PHONE, hasTouch: true, isMobile: true },
})) {
  test(`dialogs are accessible and fit, ${look}`, async () => {
    const held = await daemon.reserve("vm-looks", "00:05.0", "--policy", "exclusive");
    const page = await signedIn(`#/device/${DEVICE}`, options);
    await assertAccessible(page, `signed in, ${look}`);
    await assertNoSideScroll(page, `signed in, ${look}`);
    await picture(page, `signed-in-${look}`);
    for (const [name, hash, opener] of [
      ["reserve", `#/device/${DEVICE}`, "Reserve…"],
      ["cordon", `#/device/${DEVICE}`, "Cordon…"],
      ["release", `#/reservations/${held.id}`, "Release…"],
    ]) {
      await go(page, hash);
      await button(page, opener).click();
      await dialog(page).waitFor();
      await assertAccessible(page, `${name}, ${look}`);
      await assertNoSideScroll(page, `${name}, ${look}`);
      await picture(page, `dialog-${name}-${look}`);
      await page.keyboard.press("Escape");
      await dialog(page).waitFor({ state: "detached" });
    }
    await daemon.berth("release", held.id);
    await closePage(page);
  });
}
