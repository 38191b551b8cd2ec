// One event: what happened, to what, by whom, and what it changed.

import { h } from "./dom.js";
import { deviceLink, groupLink, reservationLink, time } from "./parts.js";
import { address, word } from "./words.js";

/** @import {Event} from "./types.d.ts" */

/** What changes with everything, and says nothing. */
const SILENT = new Set(["stableId", "id", "createdAt", "warnings"]);
/** What is told first, and of something new alone. */
const FIRST = [
  "state",
  "pending",
  "condition",
  "conditionNote",
  "ownership",
  "ownerCnt",
  "drivers",
  "policy",
  "delivery",
  "claims",
];
const SHOWN = 4;
const NOTHING = "none";

/**
 * @param {Event} event
 * @param {string} [about] the object whose history this is: it isn't named again
 */
export function eventRow(event, about = "") {
  const changes = changesOf(event);
  const objects = [
    event.reservation && event.reservation !== about ? reservationLink(event.reservation) : null,
    ...event.devices.filter((device) => address(device) !== about).map(deviceLink),
    ...(event.devices.length
      ? []
      : event.groups.filter((id) => id !== about).map((id) => groupLink(id))),
    ...(event.reservation || event.groups.length || event.devices.length ? [] : [named(event)]),
  ];
  return h(
    "li",
    { key: event.seq, class: "event" },
    h("span", { class: "seq" }, event.seq),
    h("span", { class: "when" }, time(event.time)),
    h("strong", { class: "kind" }, event.kind),
    h("span", { class: "objects" }, ...objects.flatMap((part) => [part, " "])),
    h(
      "span",
      { class: "by muted" },
      [holderOf(event), event.actor, event.cause].filter(Boolean).join(", "),
    ),
    changes.length ? details(event, changes) : null,
  );
}

/** What has no page of its own: a context, a domain. @param {Event} event */
const named = (event) => {
  const { id } = /** @type {any} */ (event.after || event.before || {});
  return id ? h("span", { class: "mono" }, id) : null;
};

/**
 * @param {Event} event
 * @param {string[]} changes
 */
function details(event, changes) {
  const more = changes.length > SHOWN ? `, ${changes.length - SHOWN} more` : "";
  return h(
    "details",
    null,
    h("summary", null, changes.slice(0, SHOWN).join(", ") + more),
    h("div", { class: "states" }, state("Before", event.before), state("After", event.after)),
  );
}

/**
 * @param {string} name
 * @param {object | undefined} value
 */
function state(name, value) {
  if (!value) return null;
  return h(
    "div",
    null,
    h("p", { class: "small muted" }, name),
    h("pre", { tabindex: "0", "aria-label": name }, JSON.stringify(sorted(value), null, 1)),
  );
}

/** Documents come with their names in any order. @param {Record<string, any>} value */
const sorted = (value) =>
  Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));

/**
 * What an event changed, a few words each.
 * @param {Event} event
 */
export function changesOf(event) {
  const before = /** @type {Record<string, any> | undefined} */ (event.before);
  const after = /** @type {Record<string, any>} */ (event.after || {});
  if (!event.after) return [];
  if (!before) {
    const told = FIRST.filter((name) => said(after[name]) !== NOTHING);
    return told.map((name) => `${label(name)} ${said(after[name])}`);
  }
  const names = [...new Set([...FIRST, ...Object.keys(before), ...Object.keys(after)])];
  return names
    .filter((name) => !SILENT.has(name))
    .flatMap((name) => change(name, before[name], after[name]));
}

/**
 * A change of one value; of a table by device, of the devices that changed.
 * @param {string} name
 * @param {any} before
 * @param {any} after
 * @returns {string[]}
 */
function change(name, before, after) {
  if (isTable(before) && isTable(after)) {
    const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
    return keys.flatMap((key) => change(`${name} of ${key}`, before[key], after[key]));
  }
  const [from, to] = [said(before), said(after)];
  return from === to ? [] : [`${label(name)} ${from} → ${to}`];
}

/** @param {any} value */
const isTable = (value) =>
  value && typeof value === "object" && Object.keys(value).some((key) => key.includes(":"));

/** @param {string} name */
const label = (name) => name.replaceAll(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);

/**
 * A value in few words.
 * @param {any} value
 * @returns {string}
 */
function said(value) {
  if (value === undefined || value === null || value === "" || value === 0) return NOTHING;
  if (Array.isArray(value)) {
    return value.length
      ? typeof value[0] === "object"
        ? `${value.length}`
        : value.join(" ")
      : NOTHING;
  }
  if (typeof value !== "object") return /^[A-Z_]+$/.test(value) ? word(value) : `${value}`;
  const parts = Object.entries(sorted(value)).map(([key, part]) =>
    key.includes(":") ? `${key} ${said(part)}` : said(part),
  );
  return parts.join(" ");
}

/** @param {Event} event */
export function holderOf(event) {
  const state = /** @type {any} */ (event.after || event.before || {});
  return typeof state.holder === "object" ? state.holder?.name || "" : state.holder || "";
}
