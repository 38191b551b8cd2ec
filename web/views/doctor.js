// What keeps devices from being given away, and what ends it: the worst first.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { badge, empty } from "../parts.js";
import { link } from "../router.js";
import { count } from "../words.js";

/** @import {Context, Finding, View} from "../types.d.ts" */

/** @type {Record<string, string>} */
const BADGES = { problem: "bad", warning: "warn", note: "plain" };

/** Findings follow from events: they are read again so long after the last one. */
const SETTLE_MS = 300;

/** @type {Record<string, string>} */
const WORDS = { PROBLEM: "problem", WARNING: "warning", NOTE: "note" };

/**
 * @param {Element} main
 * @param {Context} context
 * @returns {View}
 */
export function doctorView(main, { store }) {
  const summary = h("p", { class: "found", role: "status" }, "Asking berthd…");
  const list = h("div", { class: "findings" });
  fill(main, h("h1", null, "Doctor"), summary, list);
  let seen = "";
  let timer = 0;
  let control = new AbortController();

  function read() {
    control.abort();
    control = new AbortController();
    const { signal } = control;
    get("doctor", signal)
      .then((/** @type {{findings: Finding[]}} */ { findings }) => show(findings))
      .catch((error) => {
        if (!signal.aborted) fill(summary, `The host can't be looked at now: ${error.message}`);
      });
  }

  /** @param {Finding[]} findings */
  function show(findings) {
    const of = (/** @type {string} */ level) => findings.filter((it) => it.level === level).length;
    const parts = Object.keys(WORDS)
      .filter((level) => of(level) > 0)
      .map((level) => count(of(level), WORDS[level] || level));
    fill(summary, parts.join(", ") || "Nothing is in the way.");
    fill(
      list,
      ...(findings.length > 0
        ? findings.map(card)
        : [empty("All is well.", h("p", null, "Nothing keeps a device from being given away."))]),
    );
  }

  return {
    title: "Doctor",
    update() {
      const now = `${store.phase} ${store.log.last}`;
      if (now === seen || store.phase !== "live") return;
      seen = now;
      clearTimeout(timer);
      timer = setTimeout(read, SETTLE_MS);
    },
    leave() {
      clearTimeout(timer);
      control.abort();
    },
  };
}

/** @param {Finding} finding */
function card(finding) {
  const level = WORDS[finding.level] || "note";
  return h(
    "article",
    { class: "card finding" },
    h(
      "h2",
      null,
      badge(BADGES[level] || "", level),
      " ",
      object(finding.object),
      " ",
      h("code", null, finding.code),
    ),
    h("p", null, `${finding.cause}.`),
    h(
      "ul",
      null,
      finding.fixes.map((fix) =>
        h("li", null, fix.startsWith("berth ") ? h("code", null, fix) : fix),
      ),
    ),
  );
}

/** @param {string} name */
function object(name) {
  if (name === "") return "this host";
  if (name.startsWith("r-")) {
    return h("a", { href: link("events", "", { reservation: name }) }, name);
  }
  return h("a", { href: link(name.startsWith("g-") ? "group" : "device", name) }, name);
}
