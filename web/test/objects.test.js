// Groups, devices and reservations: what they are, why, and what happened.

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
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

const fact = (page, name) =>
  page
    .locator(".facts > div", { has: page.locator("dt", { hasText: new RegExp(`^${name}$`) }) })
    .locator("dd");

test("a group says who owns it, why it can't be given away, and the way out", async () => {
  const { stableId } = await daemon.get("groups/0000:02:01.0");
  const page = await openPage(browser, daemon, `#/group/${stableId}`);
  await page.getByRole("heading", { level: 1, name: /^Group \d+$/ }).waitFor();
  assert.equal(await fact(page, "Stable id").innerText(), stableId);
  assert.equal(await page.locator(".members li").count(), 3);
  const exclusive = page.locator(".verdicts li", { hasText: "exclusive" });
  await exclusive.getByText("refused").waitFor();
  assert.match(await exclusive.innerText(), /GROUP_NOT_SINGLETON, EINVAL/);
  const wayOut = `berth reserve --holder NAME --group ${stableId} --policy group`;
  await exclusive.getByText(wayOut).waitFor();
  await exclusive.getByRole("button", { name: `Copy: ${wayOut}` }).click();
  await exclusive.getByText(/^(Copied|Selected)$/).waitFor();
  await page.locator(".verdicts li", { hasText: "shared, group" }).getByText("possible").waitFor();
  await picture(page, "group-light", { fullPage: true });
  await closePage(page);
});

test("a device in use names its driver, its use and who blocks it", async () => {
  const page = await openPage(browser, daemon, "#/device/0000:03:00.0");
  await page.getByRole("heading", { level: 1, name: "0000:03:00.0" }).waitFor();
  const device = await daemon.get("devices/0000:03:00.0");
  assert.ok(device.driver && device.hostUses.length > 0, "the host uses it");
  assert.match(await fact(page, "Driver").innerText(), new RegExp(device.driver));
  assert.match(
    await fact(page, "The host uses it for").innerText(),
    new RegExp(device.hostUses[0].kind),
  );
  await page.getByText("HOST_USES_DEVICE").first().waitFor();
  await page.locator("h3", { hasText: "What blocks" }).waitFor();
  await closePage(page);
});

test("a page follows its device through a reservation, attached and given back", async () => {
  const page = await openPage(browser, daemon, "#/device/0000:00:05.0");
  await page.locator(".owner-line", { hasText: "free" }).waitFor();
  await page.getByText("Driver override").waitFor({ state: "detached" });
  const reservation = await daemon.reserve(
    "vm1",
    "00:05.0",
    "--policy",
    "exclusive",
    "--delivery",
    "held",
    "--for",
    "uid:60001",
  );
  await page.locator(".owner-line", { hasText: "reserved" }).getByText("vm1").waitFor();
  await page.getByText("GROUP_OWNED").first().waitFor();
  await page.getByText(`berth release ${reservation.id}`).first().waitFor();
  await page.locator(".history .event", { hasText: "reservation.prepared" }).waitFor();
  await daemon.berth("attach", reservation.id);
  await page.locator(".owner-line", { hasText: "exclusive" }).waitFor();
  await page.waitForFunction(
    (domain) => document.body.innerText.includes(domain),
    reservation.domain,
  );
  assert.match(await fact(page, "Domain").innerText(), /0 B mapped, 1 device/);
  assert.match(await fact(page, "Claims").innerText(), /0000:00:05.0/);
  assert.match(await fact(page, "Policy").innerText(), /exclusive, held on iommufd/);
  await picture(page, "device-light", { fullPage: true });

  // From there to the reservation, which stays to be read once it was given back.
  await page.getByRole("link", { name: reservation.id }).first().click();
  await page.getByRole("heading", { level: 1, name: "vm1" }).waitFor();
  assert.equal(await fact(page, "May fetch").innerText(), "uid:60001");
  await picture(page, "reservation-light", { fullPage: true });
  await daemon.berth("release", reservation.id);
  await page.locator(".history .event", { hasText: "reservation.released" }).waitFor();
  await page.locator(".owner-line", { hasText: "released" }).waitFor();
  assert.match(await fact(page, "Given back").innerText(), /baseline restored/);
  await page.goBack();
  await page.locator(".owner-line", { hasText: "free" }).waitFor();
  await closePage(page);
});

test("what isn't there is said in words", async () => {
  const page = await openPage(browser, daemon, "#/device/0000:99:00.0");
  await page.getByText("There is no device 0000:99:00.0 on this host.").waitFor();
  await page.goto(`${daemon.url}#/group/g-000000000000`);
  await page.getByText("There is no group g-000000000000 on this host.").waitFor();
  await page.goto(`${daemon.url}#/nothing`);
  await page.getByText("There is no such view.").waitFor();
  await page.goto(`${daemon.url}#/reservations/r-000000000000`);
  await page.getByText("It isn't among the reservations now.").waitFor();
  await closePage(page);
});

test("a device that doesn't work as it should says what stands against it, and since when", async () => {
  const small = await readFile("crates/host/topologies/small.toml", "utf8");
  const link = "{ current = { width = 4, speed = 8000 }, device = { width = 16, speed = 8000 } }";
  const aer = "{ correctable = 7 }";
  const health = `health = { answers = true, power_state = "D0", aer = ${aer}, link = ${link} }`;
  const directory = await mkdtemp(join(tmpdir(), "berth-topology-"));
  const file = join(directory, "narrow.toml");
  const address = 'address = "0000:00:06.0"\n';
  assert.ok(small.includes(address));
  await writeFile(file, small.replace(address, `${address}${health}\n`));
  const narrow = await Daemon.start(`sim:${file}`);
  const page = await openPage(browser, narrow, "#/device/0000:00:06.0");
  await page.locator(".facts .badge", { hasText: "degraded" }).first().waitFor();
  assert.match(
    await fact(page, "Against it").innerText(),
    /^LINK_WIDTH x4 of x16 since \d{4}-\d\d-\d\d /,
  );
  assert.equal(
    await fact(page, "Link").innerText(),
    "x4 at 8.0 GT/s of x16 at 8.0 GT/s: fewer lanes than its ends can do",
  );
  assert.equal(await fact(page, "Errors").innerText(), "7 correctable, 0 nonfatal, 0 fatal");
  await narrow.berth("cordon", "00:06.0", "--note", "swap the riser", "--for", "2h");
  await fact(page, "Cordon").getByText("swap the riser").waitFor();
  assert.match(await fact(page, "Cordon").innerText(), /1 h 59 min left|2 h 0 min left/);
  await page.locator(".facts .badge", { hasText: "cordoned" }).first().waitFor();
  await page.locator(".facts .badge", { hasText: "degraded" }).first().waitFor();
  await picture(page, "condition-light", { fullPage: true });
  await closePage(page);
  await narrow.stop();
  await rm(directory, { recursive: true });
});
