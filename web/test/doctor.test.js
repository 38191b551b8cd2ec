// The doctor: what is in the way is there, with its way out, and goes when it is done.

import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { closePage, launch, openPage, picture } from "./browser.js";
import { Daemon } from "./daemon.js";

let daemon;
let browser;
before(async () => {
  daemon = await Daemon.start("sim:desktop-no-acs");
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await daemon?.stop();
});

test("a cause that comes is shown with its way out, and goes with it", async () => {
  const page = await openPage(browser, daemon, "#/doctor");
  const cards = page.locator(".finding");
  await cards.first().waitFor();
  const missing = cards.filter({ hasText: "MISSING_ACS" }).first();
  assert.match(await missing.innerText(), /warning[^]*one holder only[^]*ACS in the firmware/);
  const { findings } = await daemon.get("doctor");
  assert.equal(await cards.count(), findings.length);
  await picture(page, "doctor-light");

  const { groups } = await daemon.get("groups");
  const devices = groups.flatMap((group) => group.devices).filter((device) => !device.isBridge);
  const address = devices[0].address.pci;
  await daemon.berth("cordon", address, "--note", "the fan is loud");
  const cordoned = cards.filter({ hasText: "CORDONED" });
  await cordoned.waitFor();
  assert.match(await cordoned.innerText(), /the fan is loud[^]*berth uncordon/);
  assert.equal(await cordoned.locator("a").innerText(), address);
  await daemon.berth("uncordon", address);
  await cordoned.waitFor({ state: "detached" });
  await closePage(page);
});
