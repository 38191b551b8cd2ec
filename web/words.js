// Words and numbers as people read them. No elements.

/** @import {Address, Device, Group, Owner, Reservation} from "./types.d.ts" */

/** @param {Address | undefined | null} device */
export const address = (device) => device?.pci || device?.mdev || device?.platform || "";

/**
 * A constant of the API as a word: `COULD_NOT_TELL` is "could not tell".
 * @param {string | undefined} text
 */
export const word = (text) => (text || "").toLowerCase().replaceAll("_", " ");

/**
 * A size with the unit that keeps it short.
 * @param {string | number} bytes
 */
export function size(bytes) {
  let value = Number(bytes);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${Math.round(value * 10) / 10} ${unit}`;
    value /= 1024;
  }
  return `${Math.round(value * 10) / 10} TiB`;
}

/**
 * "1 device", "2 devices".
 * @param {number} count
 * @param {string} noun
 */
export const count = (count, noun) =>
  `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/**
 * @param {number} value
 * @param {number} digits
 */
export const hex = (value, digits) => value.toString(16).padStart(digits, "0");

/** @param {string} value */
export const hexAddress = (value) => `0x${BigInt(value).toString(16)}`;

/**
 * What a device is, by its names, else by its ids.
 * @param {Device} device
 */
export function deviceName(device) {
  const name = [device.vendorName, device.deviceName].filter(Boolean).join(" ");
  const ids = `${hex(device.vendorId, 4)}:${hex(device.deviceId, 4)}`;
  return name || [device.className, ids].filter(Boolean).join(" ");
}

/**
 * The NUMA node, in words; empty where it isn't known.
 * @param {Device} device
 */
export const numa = (device) => (device.numaNode >= 0 ? `${device.numaNode}` : "");

/**
 * Who holds a group, as the page shows it everywhere: a kind for the colour, words for people. A
 * reservation without claims blocks others and owns nothing yet.
 * @param {Group} group
 * @param {Map<string, Reservation>} reservations
 * @returns {{kind: string, text: string, who: string}}
 */
export function ownerOf(group, reservations) {
  const kind = word(group.ownership) || "unknown";
  const promised = group.reservations.map((id) => reservations.get(id)).filter((item) => !!item);
  const named = group.owner?.holder || promised.map((item) => item.holder?.name).join(", ");
  if (kind === "free" && group.reservations.length > 0) {
    return { kind: "reserved", text: "reserved", who: named };
  }
  const processes = group.owner?.processes || [];
  const who = named || processes.map((item) => `${item.name} (${item.pid})`).join(", ");
  return { kind, text: kind, who };
}

/**
 * An owner in a line, as a refusal names it; empty where nobody stands in the way.
 * @param {Owner} owner
 */
export function ownerText(owner) {
  const kind = owner.kind === "FREE" ? "" : word(owner.kind);
  const named = [
    owner.holder && `holder ${owner.holder}`,
    owner.label && `label ${owner.label}`,
    owner.reservation && `reservation ${owner.reservation}`,
    ...(owner.processes || []).map((item) => `${item.name} (pid ${item.pid})`),
  ];
  return [kind, ...named].filter(Boolean).join(", ");
}

/** The kinds of owners, in the order in which they are offered. */
export const OWNER_KINDS = [
  "free",
  "reserved",
  "exclusive",
  "shared",
  "group",
  "kernel",
  "private",
  "foreign",
  "unknown",
];

/**
 * Whether somebody should look at a group.
 * @param {Group} group
 */
export const needsAttention = (group) =>
  group.condition !== "OK" ||
  group.drift !== "" ||
  group.ownership === "FOREIGN" ||
  group.devices.some((device) => device.condition !== "OK");

/**
 * How long something takes, in the two units that matter.
 * @param {number} seconds
 */
export function span(seconds) {
  const units = /** @type {const} */ ([
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ]);
  const first = units.findIndex(([, length]) => seconds >= length);
  if (first < 0) return "0 s";
  const [unit, length] = units[first];
  const whole = `${Math.floor(seconds / length)} ${unit}`;
  const next = units[first + 1];
  if (!next) return whole;
  return `${whole} ${Math.floor((seconds % length) / next[1])} ${next[0]}`;
}

/** @param {Date} date */
export const clock = (date) => date.toLocaleTimeString("en-GB");

/** @param {string | undefined} text */
export function moment(text) {
  const date = new Date(text || 0);
  return `${date.toLocaleDateString("sv-SE")} ${clock(date)}`;
}
