// Small parts that several views are made of.

import { h } from "./dom.js";
import { link } from "./router.js";
import { address, moment, ownerOf, word } from "./words.js";

/** @import {Address, Group, Process, Reservation} from "./types.d.ts" */
/** @import {Child, Children} from "./dom.js" */

/**
 * @param {string} kind a class for the colour; the text says the same
 * @param {string} text
 */
export const badge = (kind, text) => h("span", { class: `badge ${kind}` }, text);

/** @param {Address | undefined} device */
export const deviceLink = (device) => deviceLinkTo(address(device));

/** @param {string} name */
export const deviceLinkTo = (name) => h("a", { class: "mono", href: link("device", name) }, name);

/** @param {string} id */
export const reservationLink = (id) =>
  h("a", { class: "mono", href: link("reservations", id) }, id);

/**
 * @param {string} id
 * @param {string} [text]
 */
export const groupLink = (id, text = id) =>
  h("a", { class: text === id ? "mono" : null, href: link("group", id) }, text);

/**
 * @param {Group} group
 * @param {Map<string, Reservation>} reservations
 */
export function ownerBadge(group, reservations) {
  const owner = ownerOf(group, reservations);
  return [
    badge(`owner-${owner.kind}`, owner.text),
    owner.who ? h("span", { class: "who", title: owner.who }, owner.who) : null,
  ];
}

/** @param {string} condition */
export function conditionBadge(condition) {
  const text = word(condition) || "unknown";
  return badge(text === "ok" ? "good" : "bad", text);
}

/** @param {string} state */
export const stateBadge = (state) => badge(`state-${word(state)}`, word(state));

/** @param {Process[]} processes */
export const processList = (processes) =>
  processes.map((item) =>
    h(
      "div",
      { class: "small" },
      `${item.name} (pid ${item.pid})${item.unit ? ` in ${item.unit}` : ""}`,
      item.what ? `: ${item.what}` : "",
    ),
  );

/**
 * Names and values. A value that is empty leaves its name out.
 * @param {[string, Children][]} pairs
 */
export function facts(pairs) {
  const given = pairs.filter(([, value]) =>
    Array.isArray(value)
      ? value.flat().some(Boolean)
      : value !== "" && value !== null && value !== undefined && value !== false,
  );
  return h(
    "dl",
    { class: "facts" },
    ...given.map(([name, value]) =>
      h("div", { key: name }, h("dt", null, name), h("dd", null, value)),
    ),
  );
}

/**
 * A command that resolves something, to be copied.
 * @param {string} text
 */
export function command(text) {
  const copy = h(
    "button",
    { type: "button", class: "copy", "aria-label": `Copy: ${text}` },
    "Copy",
  );
  copy.onclick = async (event) => {
    const button = /** @type {HTMLElement} */ (event.currentTarget);
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Without the permission the text is selected, and the keyboard copies it.
      const code = button.parentElement?.querySelector("code");
      if (code) getSelection()?.selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };
  return h("div", { class: "command" }, h("code", null, text), copy);
}

/**
 * A section with a heading.
 * @param {string} id
 * @param {string} title
 * @param {...Children} children
 */
export const section = (id, title, ...children) =>
  h(
    "section",
    { key: id, class: "card", "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title),
    ...children,
  );

/**
 * Buttons of what can be done here.
 * @param {Child[]} buttons
 */
export const actionRow = (buttons) =>
  buttons.length ? h("div", { key: "actions", class: "actions" }, ...buttons) : null;

/**
 * Says that there is nothing, and what that means.
 * @param {string} title
 * @param {...Children} children
 */
export const empty = (title, ...children) =>
  h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), ...children);

/** @param {string | undefined} text */
export const time = (text) => h("time", { datetime: text, title: text }, moment(text));

/**
 * Separates parts that stand in one line.
 * @param {Child[]} parts
 * @returns {Child[]}
 */
export const list = (parts) => parts.flatMap((part, at) => (at ? [", ", part] : [part]));
