// The condition of devices: what stands against them, what they show, how long they are cordoned.

import { h } from "./dom.js";
import { ending } from "./lease.js";
import { conditionBadge, time } from "./parts.js";

/** @import {Children} from "./dom.js" */
/** @import {Device, DeviceHealth, Link} from "./types.d.ts" */

/**
 * What the machine shows against a device, in a line.
 * @param {Device} device
 */
export const against = (device) =>
  (device.health?.causes || []).map((cause) => `${cause.code} ${cause.what}`).join(", ");

/**
 * What is known of a device's condition, as names and values.
 * @param {Device} device
 * @returns {[string, Children][]}
 */
export function healthFacts(device) {
  const { health, cordon } = device;
  /** @type {[string, Children][]} */
  const facts = [];
  if (cordon) facts.push(["Cordon", [cordon.note, h("div", null, until(cordon.expiresAt))]]);
  if (!health) return facts;
  facts.push(
    ["Health", health.causes.length ? conditionBadge(health.condition) : ""],
    [
      "Against it",
      health.causes.map((cause) =>
        h(
          "div",
          { key: cause.code },
          h("code", null, cause.code),
          ` ${cause.what} since `,
          time(cause.since || ""),
        ),
      ),
    ],
    ["Worth knowing", health.notes.map((note) => h("div", { key: note }, note))],
    ["Power", power(health)],
    ["Link", health.link ? linkText(health.link) : ""],
    ["Errors", errors(health)],
  );
  return facts;
}

/** @param {string | undefined} end */
const until = (end) => (end ? ending(end) : h("span", { class: "muted" }, "until it is ended"));

/** @param {DeviceHealth} health */
const power = (health) =>
  health.asleep
    ? `${health.powerState || "asleep"}: it sleeps, and isn't woken to be looked at`
    : health.powerState;

/** @param {DeviceHealth} health */
const errors = ({ aer }) =>
  aer ? `${aer.correctable} correctable, ${aer.nonfatal} nonfatal, ${aer.fatal} fatal` : "";

/** @param {number} mts */
const speed = (mts) => (mts ? `${(mts / 1000).toFixed(1)} GT/s` : "unknown speed");

/**
 * How a link runs, and could, and what it lacks. A slow one may only idle: that is for the condition.
 * @param {Link} link
 */
export function linkText(link) {
  const lacks = [
    link.width < link.maxWidth ? "fewer lanes" : "",
    link.speedMts < link.maxSpeedMts ? "slower" : "",
  ].filter(Boolean);
  const best = `x${link.maxWidth} at ${speed(link.maxSpeedMts)}`;
  const than = lacks.length ? `: ${lacks.join(" and ")} than its ends can do` : "";
  return `${linkNow(link)} of ${best}${than}`;
}

/**
 * How a link runs.
 * @param {Link} link
 */
export const linkNow = (link) => `x${link.width} at ${speed(link.speedMts)}`;
