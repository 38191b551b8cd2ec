// Why a group or device can or can't be given away, and the way out.

import { h } from "./dom.js";
import { badge, command, deviceLink, ownerBadge, processList } from "./parts.js";
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
  const told = blocking.length > 0;
  const verdicts = [...together(answer.policies)];
  // One refusal of everything says what the summary would.
  const summary =
    verdicts.length === 1 && !verdicts[0][0].may ? "No policy may have it now." : answer.summary;
  const policies = verdicts.map((items) => policy(items, answer, store, told));
  const notes = answer.hostNotes.map((note) => h("p", { class: "muted" }, note));
  return [
    h("p", { class: "summary" }, summary),
    h("ul", { class: "verdicts", "aria-label": "Policies" }, ...policies),
    blocking.length
      ? [h("h3", null, "What blocks"), h("ul", { class: "verdicts" }, ...blocking.map(device))]
      : null,
    others.length
      ? [h("h3", null, "What doesn't block"), h("ul", { class: "verdicts" }, ...others.map(device))]
      : null,
    notes.length ? [h("h3", null, "About the host"), ...notes] : null,
  ].flat();
}

/**
 * Policies that are refused for the same reason, with the same way out, are told together.
 * @param {PolicyVerdict[]} verdicts
 */
function together(verdicts) {
  /** @type {Map<string, PolicyVerdict[]>} */
  const found = new Map();
  for (const verdict of verdicts) {
    const { reason = "", errno = 0, resolve = [] } = verdict.refusal || {};
    const key = JSON.stringify([verdict.may, reason, errno, resolve]);
    found.set(key, [...(found.get(key) || []), verdict]);
  }
  return found.values();
}

/**
 * @param {PolicyVerdict[]} verdicts
 * @param {Explanation} answer
 * @param {Store} store
 * @param {boolean} told whether the blocking devices are told apart
 */
function policy(verdicts, answer, store, told) {
  const [first] = verdicts;
  const name = verdicts.map((verdict) => word(verdict.policy)).join(", ");
  const mark = first.may ? badge("good", "possible") : badge("bad", "refused");
  const head = h("div", { class: "verdict-head" }, h("strong", null, name), mark);
  if (first.may || !first.refusal) return h("li", { key: name }, head);
  const given = told ? { ...first.refusal, blockers: [] } : first.refusal;
  return h("li", { key: name }, head, ...refusal(given), ownerLine(answer, store, given));
}

/**
 * A refusal: what, why, and the way out.
 * @param {Pick<Refusal, "message" | "reason" | "errnoName" | "blockers" | "resolve">} given
 */
export function refusal(given) {
  const code = [given.reason, given.errnoName].filter(Boolean).join(", ");
  const blockers = given.blockers.filter((item) => item.text);
  return [
    h("p", { class: "why" }, given.message),
    h("p", { class: "small muted mono" }, code),
    blockers.length
      ? h(
          "ul",
          { class: "blockers" },
          ...blockers.map((item) =>
            h(
              "li",
              null,
              deviceLink(item.device),
              ` ${withoutAddress(item.text, address(item.device))}`,
            ),
          ),
        )
      : null,
    given.resolve.length
      ? h(
          "div",
          { class: "way-out" },
          h("p", { class: "small muted" }, "Way out"),
          ...given.resolve.map(wayOut),
        )
      : null,
  ];
}

/**
 * A command to copy, or what else is to be done.
 * @param {string} text
 */
const wayOut = (text) =>
  text.startsWith("berth ") ? command(text) : h("p", { class: "act" }, text);

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
    verdict.resolve ? wayOut(verdict.resolve) : null,
  );
}

/**
 * The sentence without the address that stands before it.
 * @param {string} text
 * @param {string} name
 */
const withoutAddress = (text, name) =>
  text.startsWith(`${name} `) ? text.slice(name.length + 1).replace(/^: /, "") : text;
