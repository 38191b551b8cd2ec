// What needs no browser: the parser of events, the tree, the address bar, the words of a change.

import assert from "node:assert/strict";
import test from "node:test";
import { changesOf } from "../event-row.js";
import { against, linkText } from "../health.js";
import { link, parse } from "../router.js";
import { Parser } from "../sse.js";
import { build, rows } from "../tree.js";
import { span } from "../words.js";

test("messages are cut out of a stream, however it is chopped", () => {
  const text =
    ': follows\nretry: 2000\n\nid: 7\ndata: {"a":\ndata: 1}\n\n: alive\n\nevent: problem\r\ndata: x\r\n\r\n';
  const wanted = [
    { event: "", data: '{"a":\n1}', id: "7" },
    { event: "problem", data: "x", id: "" },
  ];
  for (let size = 1; size <= text.length; size += 1) {
    const parser = new Parser();
    const found = [];
    for (let at = 0; at < text.length; at += size)
      found.push(...parser.feed(text.slice(at, at + size)));
    assert.deepEqual(found, wanted, `in parts of ${size}`);
  }
});

test("a link leads where it says", () => {
  const hash = link("events", "", { device: "0000:65:00.0", kind: "", holder: "a b&c" });
  assert.deepEqual(Object.fromEntries(parse(hash).params), {
    device: "0000:65:00.0",
    holder: "a b&c",
  });
  assert.equal(link("device", "0000:65:00.0"), "#/device/0000:65:00.0");
  assert.deepEqual([parse("").view, parse("#/device/0000%3A65:00.0").id], ["host", "0000:65:00.0"]);
  assert.equal(parse("#/group/%").id, "%");
});

const device = (pci, parentPort, more = {}) => ({
  address: { pci },
  parentPort,
  deviceName: "",
  vendorName: "",
  className: "NIC",
  driver: "",
  vendorId: 1,
  deviceId: 2,
  condition: "OK",
  isBridge: false,
  numaNode: 0,
  ...more,
});
const group = (number, devices, more = {}) => ({
  stableId: `g-${number}`,
  number,
  devices,
  ownership: "FREE",
  reservations: [],
  condition: "OK",
  drift: "",
  ...more,
});
const NO_FILTER = { words: [], owner: "", numa: "", attention: false };
const shown = (roots, filter = NO_FILTER, collapsed = new Set()) =>
  rows(roots, filter, collapsed).rows.map(
    (row) => `${row.level} ${row.node.kind} ${row.node.name}`,
  );

const HOST = build(
  [
    group(1, [device("0000:01:00.1", "0000:00:01.0"), device("0000:01:00.0", "0000:00:01.0")]),
    group(0, [device("0000:00:01.0", "", { isBridge: true })]),
    // The port is a member itself, and something of another group hangs below it.
    group(2, [
      device("0000:80:01.0", "", { isBridge: true }),
      device("0000:81:00.0", "0000:80:01.0"),
    ]),
    group(3, [device("0000:82:00.0", "0000:80:01.0", { numaNode: 1, driver: "nvme" })], {
      ownership: "KERNEL",
    }),
  ],
  new Map(),
);

test("the tree goes from the root complex over bridges and groups to functions", () => {
  assert.deepEqual(shown(HOST), [
    "1 root 0000:00",
    "2 bridge 0000:00:01.0",
    "3 group Group 1",
    "4 function 0000:01:00.0",
    "4 function 0000:01:00.1",
    "1 root 0000:80",
    "2 group Group 2",
    "3 bridge 0000:80:01.0",
    "4 function 0000:82:00.0",
    "3 function 0000:81:00.0",
  ]);
  assert.deepEqual(shown(HOST, NO_FILTER, new Set(["r:0000:00", "g:g-2"])), [
    "1 root 0000:00",
    "1 root 0000:80",
    "2 group Group 2",
  ]);
});

test("a filter shows what it finds and the way there", () => {
  const way = [
    "1 root 0000:80",
    "2 group Group 2",
    "3 bridge 0000:80:01.0",
    "4 function 0000:82:00.0",
  ];
  assert.deepEqual(shown(HOST, { ...NO_FILTER, words: ["nvme"] }), way);
  assert.deepEqual(shown(HOST, { ...NO_FILTER, owner: "kernel" }), way);
  assert.deepEqual(shown(HOST, { ...NO_FILTER, numa: "1" }), way);
  assert.deepEqual(shown(HOST, { ...NO_FILTER, words: ["nvme"], owner: "free" }), []);
  assert.equal(rows(HOST, { ...NO_FILTER, words: ["group 1"] }, new Set()).functions, 2);
});

test("what an event changed is told, and the order of names is no change", () => {
  const before = {
    state: "PREPARING",
    holder: { name: "vm1", uid: "0" },
    claims: [],
    pending: "prepare",
  };
  const after = { pending: "", holder: { uid: "0", name: "vm1" }, claims: [], state: "RESERVED" };
  assert.deepEqual(changesOf({ before, after }), [
    "state preparing → reserved",
    "pending prepare → none",
  ]);
  const drivers = (driver) => ({ drivers: { "0000:00:05.0": driver, "0000:00:06.0": "nvme" } });
  assert.deepEqual(changesOf({ before: drivers(""), after: drivers("vfio-pci") }), [
    "drivers of 0000:00:05.0 none → vfio-pci",
  ]);
  assert.deepEqual(changesOf({ before: { state: "RESERVED" } }), []);
  assert.deepEqual(changesOf({ after: { state: "RESERVED", context: "c-1", claims: [] } }), [
    "state reserved",
  ]);
});

test("a time is told in the two units that matter", () => {
  assert.deepEqual([0, 59, 61, 3725, 90061].map(span), [
    "0 s",
    "59 s",
    "1 min 1 s",
    "1 h 2 min",
    "1 d 1 h",
  ]);
});

test("what stands against a device, and its link, are said in numbers", () => {
  assert.equal(against({}), "");
  const causes = [
    { code: "AER_NONFATAL", what: "3" },
    { code: "LINK_WIDTH", what: "x4 of x16" },
  ];
  assert.equal(against({ health: { causes } }), "AER_NONFATAL 3, LINK_WIDTH x4 of x16");
  const link = { width: 4, speedMts: 2500, maxWidth: 16, maxSpeedMts: 0 };
  assert.equal(
    linkText(link),
    "x4 at 2.5 GT/s of x16 at unknown speed: fewer lanes than its ends can do",
  );
  const whole = { width: 16, speedMts: 32000, maxWidth: 16, maxSpeedMts: 32000 };
  assert.equal(linkText(whole), "x16 at 32.0 GT/s of x16 at 32.0 GT/s");
  assert.match(linkText({ ...whole, width: 8, speedMts: 2500 }), /: fewer lanes and slower than/);
});
