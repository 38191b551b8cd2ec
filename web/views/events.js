// The events, live, newest first, filtered by device, holder and kind.

import { fill, h } from "../dom.js";
import { eventRow, holderOf } from "../event-row.js";
import { concerns } from "../history.js";
import { historyOf, seqOf } from "../log.js";
import { empty } from "../parts.js";
import { address, count } from "../words.js";

/** @import {Context, Event, Route, View} from "../types.d.ts" */

/** As many rows as a person reads; more are shown on demand. */
const ROWS = 100;
const OBJECTS = /** @type {const} */ (["device", "reservation", "group"]);

/**
 * @param {Element} main
 * @param {Context} context
 * @returns {View}
 */
export function eventsView(main, { store, setParams, route }) {
  let { params } = route;
  let rows = ROWS;
  let problem = "";
  /** @type {{object: string, events: Event[], control: AbortController} | null} */
  let past = null;
  /** @param {Record<string, string>} changes */
  const set = (changes) => {
    rows = ROWS;
    setParams({ ...Object.fromEntries(params), ...changes });
  };
  const device = field("device", "Device", "0000:65:00.0", set);
  const holder = field("holder", "Holder", "vm1", set);
  const kind = field("kind", "Kind", "reservation.created", set);
  const names = h("datalist", { id: "kinds" });
  kind.input.setAttribute("list", "kinds");
  const found = h("p", { class: "found", role: "status" });
  const clear = h(
    "button",
    {
      type: "button",
      onclick: () => set({ device: "", holder: "", kind: "", reservation: "", group: "" }),
    },
    "Clear filters",
  );
  const body = h("div", null);
  fill(
    main,
    h("h1", null, "Events"),
    h("div", { class: "toolbar fields" }, device.label, holder.label, kind.label, names),
    h("div", { class: "under-bar" }, found, clear),
    body,
  );

  /** What the daemon keeps about one object reaches further back than what the page has. */
  function readPast() {
    const object =
      OBJECTS.map((name) => params.get(name) || "").find((text) => isObject(text)) || "";
    if ((past?.object || "") === object) return;
    past?.control.abort();
    past = object ? { object, events: [], control: new AbortController() } : null;
    const wanted = past;
    if (!wanted) return;
    historyOf(object, 1000, wanted.control.signal)
      .then(({ events }) => {
        wanted.events = events;
        problem = "";
      })
      .catch(() => {
        if (!wanted.control.signal.aborted) problem = "Older events of it can't be read now.";
      })
      .finally(draw);
  }

  function draw() {
    const all = merged(past?.events || [], store.log.events);
    const wanted = all.filter((event) => matches(event, params)).reverse();
    fill(
      names,
      ...[...new Set(store.log.events.map((event) => event.kind))]
        .sort()
        .map((name) => h("option", { value: name })),
    );
    const filtering = [...params.values()].some(Boolean);
    clear.hidden = !filtering;
    found.textContent = filtering
      ? `${count(wanted.length, "event")} of that kind, of ${all.length} read${others(params)}`
      : `${count(all.length, "event")} read, newest first`;
    const older = !past && store.log.hasOlder;
    fill(
      body,
      problem ? h("p", { class: "warn-text" }, problem) : null,
      wanted.length
        ? h(
            "ol",
            { key: "list", class: "events card flush", "aria-label": "Newest first" },
            ...wanted.slice(0, rows).map((event) => eventRow(event)),
          )
        : h("div", { key: "none", class: "card" }, nothing(filtering, older)),
      wanted.length > rows || older
        ? h(
            "p",
            { key: "more", class: "more" },
            h(
              "button",
              { type: "button", onclick: more },
              wanted.length > rows ? "Show more" : "Read older events",
            ),
          )
        : null,
    );
  }

  async function more() {
    rows += ROWS;
    try {
      if (store.log.hasOlder && !past) await store.log.readOlder();
      problem = "";
    } catch {
      problem = "Older events can't be read now.";
    }
    draw();
  }

  return {
    title: "Events",
    /** @param {Route} to */
    update(to) {
      ({ params } = to);
      for (const { input } of [device, holder, kind]) {
        if (document.activeElement !== input) input.value = params.get(input.name) || "";
      }
      readPast();
      draw();
    },
    leave: () => past?.control.abort(),
  };
}

/**
 * @param {string} name
 * @param {string} text
 * @param {string} example
 * @param {(changes: Record<string, string>) => void} set
 */
function field(name, text, example, set) {
  const input = /** @type {HTMLInputElement} */ (
    h("input", {
      name,
      type: "search",
      placeholder: example,
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => set({ [name]: input.value.trim() }),
    })
  );
  return { input, label: h("label", null, h("span", null, text), input) };
}

/** Whether the daemon would know it: a whole address or id, not a part that is being typed. */
const isObject = (/** @type {string} */ text) =>
  /^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/i.test(text) || /^[rg]-[0-9a-f]{12}$/.test(text);

/**
 * What only a link asks for, in words.
 * @param {URLSearchParams} params
 */
function others(params) {
  const named = ["reservation", "group"].filter((name) => params.get(name));
  return named.map((name) => `; ${name} ${params.get(name)}`).join("");
}

/**
 * Both, each event once, oldest first.
 * @param {Event[]} past
 * @param {Event[]} live
 */
function merged(past, live) {
  if (!past.length) return live;
  const first = live.length ? seqOf(live[0]) : Infinity;
  return [...past.filter((event) => seqOf(event) < first), ...live];
}

/**
 * @param {Event} event
 * @param {URLSearchParams} params
 */
function matches(event, params) {
  const device = (params.get("device") || "").toLowerCase();
  const holder = (params.get("holder") || "").toLowerCase();
  const kind = (params.get("kind") || "").toLowerCase();
  if (device && !event.devices.some((item) => address(item).includes(device))) return false;
  if (holder && !holderOf(event).toLowerCase().includes(holder)) return false;
  if (kind && !event.kind.includes(kind)) return false;
  return ["reservation", "group"].every(
    (name) => !params.get(name) || concerns(event, params.get(name) || ""),
  );
}

/**
 * @param {boolean} filtering
 * @param {boolean} older
 */
function nothing(filtering, older) {
  if (!filtering) return empty("Nothing has happened yet.");
  const where = older
    ? "Only the events that were read are searched; older ones can be read."
    : "Nothing like it is kept.";
  return empty("No event is like that.", h("p", null, where));
}
