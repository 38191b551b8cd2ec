// Reservations and events.

import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { closePage, launch, openPage, picture } from "./browser.js";
import { Daemon } from "./daemon.js";

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

test("reservations show state, holder, time left, epoch and processes", async () => {
  const page = await openPage(browser, daemon, "#/reservations");
  await page.getByText("Nothing is reserved on this host.").waitFor();
  const leased = await daemon.reserve("vm1", "00:05.0", "--policy", "exclusive", "--ttl", "10m");
  const held = await daemon.reserve("vm2", "00:06.0", "--policy", "exclusive");
  const row = page.locator("tr", { hasText: "vm1" });
  assert.match(
    await row.innerText(),
    /reserved[^]*exclusive[^]*0000:00:05.0[^]*(9|10) min \d+ s left/,
  );
  assert.ok((await row.innerText()).includes(leased.epoch));
  await page.locator("tr", { hasText: "vm2" }).getByText("no limit").waitFor();

  // A lease runs down in its own cell: nothing else of the page is touched meanwhile.
  const changed = await page.evaluate(
    () =>
      new Promise((resolve) => {
        const seen = new Set();
        new MutationObserver((list) => {
          for (const { target } of list) {
            const at = target instanceof Element ? target : target.parentElement;
            seen.add(at.closest("[data-lease]") ? "lease" : at.outerHTML.slice(0, 80));
          }
        }).observe(document.body, {
          subtree: true,
          childList: true,
          attributes: true,
          characterData: true,
        });
        setTimeout(() => resolve([...seen]), 2500);
      }),
  );
  assert.deepEqual(changed, ["lease"]);

  await page.getByRole("searchbox").fill("00:06");
  await page.locator("tr", { hasText: "vm1" }).waitFor({ state: "detached" });
  assert.equal(await page.locator(".found").innerText(), "1 of 2 reservations");
  await page.getByRole("searchbox").fill("");
  await row.waitFor();
  await picture(page, "reservations-light");
  for (const { id } of [leased, held]) await daemon.berth("release", id);
  await page.getByText("Nothing is reserved on this host.").waitFor();
  await closePage(page);
});

test("the process that has a device is named by its pid", async () => {
  const page = await openPage(browser, daemon, "#/reservations");
  const { id } = await daemon.reserve("vm-run", "00:06.0", "--policy", "exclusive");
  await daemon.berth("attach", id);
  const holder = daemon.run(id, "sleep", "60");
  await page.locator("tr", { hasText: "vm-run" }).getByText(`(pid ${holder.pid})`).waitFor();
  holder.kill("SIGKILL");
  await page
    .locator("tr", { hasText: "vm-run" })
    .getByText(`(pid ${holder.pid})`)
    .waitFor({ state: "detached" });
  await daemon.berth("release", id);
  await closePage(page);
});

test("a lease that ends is told as ended by the daemon, not by the page", async () => {
  const page = await openPage(browser, daemon, "#/reservations");
  await daemon.reserve("vm-short", "00:05.0", "--policy", "exclusive", "--ttl", "2s");
  await page.locator("tr", { hasText: "vm-short" }).waitFor();
  await page.getByText("Nothing is reserved on this host.").waitFor();
  await closePage(page);
});

test("events come live, and are filtered by device, holder and kind", async () => {
  const page = await openPage(browser, daemon, "#/events");
  const one = await daemon.reserve("vm-a", "00:05.0", "--policy", "exclusive");
  await page.locator(".event", { hasText: "vm-a" }).first().waitFor();
  await daemon.reserve("vm-b", "00:06.0", "--policy", "exclusive");
  await page.locator(".event", { hasText: "vm-b" }).first().waitFor();
  await picture(page, "events-light");
  const texts = () => page.locator(".event").allInnerTexts();
  const only = async (name, value, wanted) => {
    await page.getByLabel(name).fill(value);
    await page.waitForFunction(
      ([text]) => {
        const all = [...document.querySelectorAll(".event")];
        return all.length > 0 && all.every((item) => item.innerText.includes(text));
      },
      [wanted],
    );
    assert.ok((await texts()).length > 0);
    await page.getByLabel(name).fill("");
  };
  await only("Holder", "vm-b", "vm-b");
  await only("Device", "0000:00:05.0", "0000:00:05.0");
  await only("Kind", "reservation.created", "reservation.created");
  // A filter is an address that can be passed on, and what comes passes through it.
  await page.goto(`${daemon.url}#/events?holder=vm-a&kind=reservation`);
  assert.equal(await page.getByLabel("Holder").inputValue(), "vm-a");
  await daemon.berth("release", one.id);
  await page.locator(".event", { hasText: "reservation.released" }).waitFor();
  assert.ok((await texts()).every((text) => text.includes("vm-a")));
  const event = page.locator(".event", { hasText: "reservation.released" });
  await event.locator("summary").click();
  await event.locator("pre", { hasText: '"state": "RELEASED"' }).waitFor();
  await page.getByLabel("Kind").fill("no.such.kind");
  await page.getByText("No event is like that.").waitFor();
  await page.getByRole("button", { name: "Clear filters" }).click();
  await page.locator(".event", { hasText: "vm-b" }).first().waitFor();
  await closePage(page);
});

test("older events are read on demand", async () => {
  for (let round = 0; round < 25; round += 1) {
    const { id } = await daemon.reserve("vm-many", "00:05.0", "--policy", "exclusive");
    await daemon.berth("release", id);
  }
  const page = await openPage(browser, daemon, "#/events");
  await page.locator(".event").first().waitFor();
  for (let presses = 0; await page.locator(".more button").count(); presses += 1) {
    assert.ok(presses < 20);
    await page.locator(".more button").click();
    await page.waitForTimeout(100);
  }
  const seqs = (await page.locator(".event .seq").allInnerTexts()).map(Number);
  assert.ok(seqs.length > 200, `${seqs.length} events`);
  assert.deepEqual(
    seqs,
    seqs.map((_, at) => seqs.length - at),
    "every event since the first, once",
  );
  await closePage(page);
});
