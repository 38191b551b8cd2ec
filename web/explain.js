// Why a group or device can or can't be given away, and the way out.

import { h } from "./dom.js";
import { badge, command, deviceLink, list, ownerBadge, processList } from "./parts.js";
import { address, word } from "./words.js";

/** @import {DeviceVerdict, Explanation, PolicyVerdict, Refusal} from "./types.d.ts" */
/** @import {Store} from "./store.js" */

/**
 * @param {Explanation} answer
 * @param {Store} store
 */
export function explanation(answer, store) {
  const blocking = answer.devices.filter((device) => device.blocks);
  const others = answer.devices.filter((device) => !device.blocks);
  const notes = answer.hostNotes.map((note) => h("p", { class: "muted" }, note));
  return [
    h("p", { class: "summary" }, answer.summary),
    h("ul", { class: "verdicts", "aria-label": "Policies" }, ...answer.policies.map((item) => policy(item, answer, store))),
    blocking.length ? [h("h3", null, "What blocks"), h("ul", { class: "verdicts" }, ...blocking.map(device))] : null,
    others.length ? [h("h3", null, "What doesn't block"), h("ul", { class: "verdicts" }, ...others.map(device))] : null,
    notes.length ? [h("h3", null, "About the host"), ...notes] : null,
  ].flat();
}

/**
 * @param {PolicyVerdict} verdict
 * @param {Explanation} answer
 * @param {Store} store
 */
function policy(verdict, answer, store) {
  const name = word(verdict.policy);
  const mark = verdict.may ? badge("good", "possible") : badge("bad", "refused");
  const head = h("div", { class: "verdict-head" }, h("strong", null, name), mark);
  if (verdict.may || !verdict.refusal) return h("li", { key: name }, head);
  return h("li", { key: name }, head, ...refusal(verdict.refusal), ownerLine(answer, store, verdict.refusal));
}

/**
 * A refusal: what, why, and the way out.
 * @param {Refusal} given
 */
export function refusal(given) {
  const code = [given.reason, given.errnoName].filter(Boolean).join(", ");
  const blockers = given.blockers.filter((item) => item.text);
  return [
    h("p", { class: "why" }, given.message),
    h("p", { class: "small muted mono" }, code),
    blockers.length
      ? h("ul", { class: "blockers" }, ...blockers.map((item) => h("li", null, deviceLink(item.device), ` ${withoutAddress(item.text, address(item.device))}`)))
      : null,
    given.resolve.length ? h("div", { class: "way-out" }, h("p", { class: "small muted" }, "Way out"), ...given.resolve.map(command)) : null,
  ];
}

/**
 * @param {Explanation} answer
 * @param {Store} store
 * @param {Refusal} given
 */
function ownerLine(answer, store, given) {
  if (!given.owner || !answer.group || given.owner.kind === "FREE") return null;
  return h("p", { class: "small" }, "Owner: ", ...ownerBadge(answer.group, store.reservations));
}

/** @param {DeviceVerdict} verdict */
function device(verdict) {
  const name = address(verdict.device?.address);
  const mark = verdict.blocks ? badge("bad", "blocks") : badge("good", "ok");
  return h(
    "li",
    { key: name },
    h("div", { class: "verdict-head" }, deviceLink(verdict.device?.address), mark),
    h("p", { class: "why" }, withoutAddress(verdict.text, name)),
    ...processList(verdict.processes),
    verdict.resolve ? command(verdict.resolve) : null,
  );
}

/**
 * The sentence without the address that stands before it.
 * @param {string} text
 * @param {string} name
 */
const withoutAddress = (text, name) => (text.startsWith(`${name} `) ? text.slice(name.length + 1).replace(/^: /, "") : text);

/**
 * @param {string[]} ids
 * @param {(id: string) => HTMLElement} linkTo
 */
export const links = (ids, linkTo) => list(ids.map(linkTo));
