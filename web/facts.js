// What is known of a group and of a device, as names and values.

import { h } from "./dom.js";
import {
  badge,
  conditionBadge,
  deviceLink,
  deviceLinkTo,
  facts,
  list,
  processList,
  reservationLink,
} from "./parts.js";
import { against, healthFacts } from "./health.js";
import { address, count, deviceName, hex, hexAddress, numa, size, word } from "./words.js";

/** @import {Claim, Device, Domain, Group, Reservation} from "./types.d.ts" */
/** @import {Store} from "./store.js" */

/**
 * @param {Group} group
 * @param {Store} store
 * @param {Domain | null} domain
 */
export function groupFacts(group, store, domain) {
  const { owner } = group;
  const reservations = group.reservations
    .map((id) => store.reservations.get(id))
    .filter((item) => !!item);
  const claims = reservations
    .flatMap((item) => item.claims)
    .filter((claim) => claim.group === group.stableId);
  return facts([
    [
      "Owner",
      owner
        ? [word(owner.kind), owner.label ? `, label ${owner.label}` : null]
        : word(group.ownership),
    ],
    ["Owner count", count(group.ownerCnt, group.ownership === "KERNEL" ? "host driver" : "claim")],
    ["Claims", claims.map(claimLine)],
    ["Processes", processList(owner?.processes || [])],
    ["Policy", policies(reservations)],
    ["Reservation", list(group.reservations.map(reservationLink))],
    ["Domain", domainLine(owner?.domain || "", domain)],
    [
      "Condition",
      [conditionBadge(group.condition), group.conditionNote ? ` ${group.conditionNote}` : null],
    ],
    ["Drift", group.drift ? [badge("warn", "drift"), ` ${group.drift}`] : ""],
    ["Viable", group.viable ? "yes" : "no: a driver in the group keeps VFIO out"],
    ["Default domain", group.iommuType],
    [
      "Reserved I/O addresses",
      group.reservedRegions.map((range) =>
        h(
          "div",
          { class: "mono small" },
          `${hexAddress(range.first)} to ${hexAddress(range.last)} ${range.kind}`,
        ),
      ),
    ],
    ["Epoch", h("span", { class: "mono" }, group.epoch)],
    ["Stable id", h("span", { class: "mono" }, group.stableId)],
  ]);
}

/** @param {Claim} claim */
function claimLine(claim) {
  return h("div", null, deviceLink(claim.device), ...processList(claim.processes));
}

/** @param {Reservation[]} reservations */
function policies(reservations) {
  const text = reservations.map(
    (item) => `${word(item.policy)}, ${word(item.delivery)} on ${word(item.backend)}`,
  );
  return [...new Set(text)].join("; ");
}

/**
 * @param {string} id
 * @param {Domain | null} domain
 */
function domainLine(id, domain) {
  if (!id) return "";
  const name = h("span", { class: "mono" }, id);
  if (!domain || domain.id !== id) return name;
  return [
    name,
    `, ${size(domain.mappedBytes)} mapped, ${count(domain.claims.length, "device")}`,
    domain.context ? h("div", { class: "small muted" }, `in context ${domain.context}`) : null,
  ];
}

/**
 * @param {Group} group
 * @param {string} here the device whose page this is
 */
export function members(group, here) {
  return h(
    "ul",
    { class: "members" },
    ...group.devices.map((device) => {
      const name = address(device.address);
      return h(
        "li",
        { key: name },
        name === here ? h("strong", { class: "mono" }, name) : deviceLinkTo(name),
        device.isBridge ? h("span", { class: "tag" }, "bridge") : null,
        h("span", { class: "muted" }, deviceName(device)),
        h(
          "span",
          { class: "small" },
          device.driver ? ["driver ", h("code", null, device.driver)] : "no driver",
        ),
        device.condition === "OK" ? null : conditionBadge(device.condition),
        h("span", { class: "small muted" }, against(device)),
      );
    }),
  );
}

/** @param {Device} device */
export function deviceFacts(device) {
  const uses = {
    YES: ", uses kernel DMA",
    NO: "",
    ASSUMED: ", counted as using kernel DMA",
    USES_UNSPECIFIED: "",
  };
  return facts([
    [
      "Condition",
      [conditionBadge(device.condition), device.conditionNote ? ` ${device.conditionNote}` : null],
    ],
    ...healthFacts(device),
    [
      "Driver",
      device.driver ? [h("code", null, device.driver), uses[device.usesKernelDma]] : "none",
    ],
    ["Driver override", device.driverOverride ? h("code", null, device.driverOverride) : ""],
    ["Before Berth", device.baseline ? baseline(device.baseline) : ""],
    ["VFIO driver", h("code", null, device.vfioDriver)],
    ["VFIO node", device.cdev ? h("code", null, device.cdev) : ""],
    [
      "The host uses it for",
      device.hostUses.map((use) => h("div", null, `${use.kind} ${use.detail}`)),
    ],
    [
      "Class",
      device.className
        ? `${device.className} (${hex(device.classCode, 6)})`
        : hex(device.classCode, 6),
    ],
    ["Ids", h("span", { class: "mono" }, ids(device))],
    ["NUMA node", numa(device) || "unknown"],
    ["Behind", device.parentPort ? deviceLinkTo(device.parentPort) : "the root complex"],
    ["Grouping", device.grouping?.text || ""],
    ["Reset", device.resetMethods.join(", ") || "none: the device can't be reset by itself"],
    ["Reset together with", list(device.resetWith.map(deviceLink))],
    ["Physical function", device.physicalFunction ? deviceLink(device.physicalFunction) : ""],
    ["Virtual functions", virtual(device)],
    [
      "BARs",
      device.bars.map((bar) =>
        h(
          "div",
          { class: "small" },
          `${bar.index}: ${size(bar.sizeBytes)}${bar.io ? " I/O" : bar.memory64 ? " 64 bit" : " 32 bit"}${bar.prefetchable ? ", prefetchable" : ""}`,
        ),
      ),
    ],
  ]);
}

/** @param {Device} device */
const ids = (device) =>
  `${hex(device.vendorId, 4)}:${hex(device.deviceId, 4)}, subsystem ${hex(device.subsystemVendorId, 4)}:${hex(device.subsystemDeviceId, 4)}, revision ${hex(device.revision, 2)}`;

/** @param {{driver: string, driverOverride: string}} before */
const baseline = (before) =>
  `${before.driver ? `driver ${before.driver}` : "no driver"}${before.driverOverride ? `, override ${before.driverOverride}` : ""}`;

/** @param {Device} device */
function virtual(device) {
  if (!device.sriovTotalVfs) return "";
  const there = device.virtualFunctions;
  const before = device.sriov?.baseline;
  return [
    `${there.length} of ${device.sriovTotalVfs}`,
    before ? ` (${before.vfs} before Berth changed it)` : null,
    there.length ? ": " : null,
    ...list(there.map(deviceLink)),
  ];
}
