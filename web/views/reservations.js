// All reservations, or one of them.

import { get, Problem } from "../api.js";
import { reservationActions } from "../changes.js";
import { fill, h } from "../dom.js";
import { refusal } from "../explain.js";
import { History } from "../history.js";
import { lease } from "../lease.js";
import {
  actionRow,
  badge,
  deviceLink,
  empty,
  facts,
  groupLink,
  list,
  processList,
  reservationLink,
  section,
  stateBadge,
  time,
} from "../parts.js";
import { link } from "../router.js";
import { address, count, size, word } from "../words.js";

/** @import {Context, Reservation, Route, View} from "../types.d.ts" */
/** @import {Store} from "../store.js" */

const COLUMNS = [
  "Reservation",
  "Holder",
  "State",
  "Policy",
  "Devices",
  "Time left",
  "Epoch",
  "Processes",
];

/**
 * @param {Element} main
 * @param {Context} context
 * @returns {View}
 */
export function reservationsView(main, context) {
  return context.route.id ? oneView(main, context) : allView(main, context);
}

/**
 * @param {Element} main
 * @param {Context} context
 * @returns {View}
 */
function allView(main, { store, route, setParams }) {
  const search = /** @type {HTMLInputElement} */ (
    h("input", {
      type: "search",
      class: "search",
      placeholder: "Search: holder, device, state",
      "aria-label": "Search reservations",
      autocomplete: "off",
      spellcheck: "false",
      value: route.params.get("q") || "",
      oninput: () => setParams({ q: search.value }),
    })
  );
  const found = h("p", { class: "found", role: "status" });
  const body = h("div", null);
  fill(
    main,
    h("h1", null, "Reservations"),
    h("div", { class: "toolbar" }, search),
    h("div", { class: "under-bar" }, found),
    body,
  );
  return {
    title: "Reservations",
    /** @param {Route} to */
    update({ params }) {
      if (document.activeElement !== search) search.value = params.get("q") || "";
      const words = (params.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
      const all = [...store.reservations.values()].sort((a, b) =>
        (a.createdAt || "") < (b.createdAt || "") ? 1 : -1,
      );
      const shown = all.filter((item) => words.every((part) => searchText(item).includes(part)));
      found.textContent =
        shown.length === all.length
          ? count(all.length, "reservation")
          : `${shown.length} of ${count(all.length, "reservation")}`;
      if (store.phase !== "connecting")
        fill(body, shown.length ? table(shown, store) : nothing(all.length));
    },
  };
}

/** @param {Reservation} item */
function searchText(item) {
  const devices = item.targets.flatMap((target) => [target.group, ...target.devices.map(address)]);
  const pids = item.claims
    .flatMap((claim) => claim.processes)
    .map((process) => `${process.pid} ${process.name}`);
  const words = [item.id, item.holder?.name, item.label, item.state, item.policy, item.delivery];
  return [...words, ...devices, ...pids].join(" ").toLowerCase();
}

/** @param {number} all */
function nothing(all) {
  const text = all ? "No reservation is like that." : "Nothing is reserved on this host.";
  const how = all
    ? null
    : h(
        "p",
        null,
        "Reserve a device with ",
        h("code", null, "berth reserve --holder NAME --device ADDRESS --policy exclusive"),
        ".",
      );
  return h("div", { key: "nothing", class: "card" }, empty(text, how));
}

/**
 * @param {Reservation[]} items
 * @param {Store} store
 */
function table(items, store) {
  return h(
    "div",
    { key: "table", class: "card flush" },
    h(
      "table",
      { class: "reservations" },
      h("thead", null, h("tr", null, ...COLUMNS.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, ...items.map((item) => row(item, store))),
    ),
  );
}

/**
 * @param {Reservation} item
 * @param {Store} store
 */
function row(item, store) {
  const devices = item.targets.flatMap((target) => target.devices);
  const pids = processesOf(item);
  const cells = [
    reservationLink(item.id),
    [
      h("strong", null, item.holder?.name),
      h("div", { class: "small muted" }, `label ${item.label}`),
    ],
    [stateBadge(item.state), ...stateNote(item)],
    [
      word(item.policy),
      h("div", { class: "small muted" }, `${word(item.delivery)}, ${word(item.backend)}`),
    ],
    devices.map((device) => h("div", null, deviceLink(device))),
    lease(item, store.phase === "live"),
    h("span", { class: "mono" }, item.epoch),
    pids.length ? processList(pids) : h("span", { class: "muted" }, "none"),
  ];
  return h(
    "tr",
    { key: item.id },
    ...cells.map((content, at) =>
      h(
        at ? "td" : "th",
        { scope: at ? null : "row", "data-label": COLUMNS[at] },
        h("div", null, content),
      ),
    ),
  );
}

/** @param {Reservation} item */
function stateNote(item) {
  return [
    item.pending ? h("div", { class: "small" }, `${item.pending} under way`) : null,
    item.detail ? h("div", { class: "small" }, item.detail) : null,
    item.lastFailure
      ? h("div", { class: "small warn-text" }, `last order refused: ${item.lastFailure.reason}`)
      : null,
  ];
}

/** @param {Reservation} item */
function processesOf(item) {
  const all = item.claims.flatMap((claim) => claim.processes);
  return all.filter((process, at) => all.findIndex((other) => other.pid === process.pid) === at);
}

/**
 * @param {Element} main
 * @param {Context} context
 * @returns {View}
 */
function oneView(main, { store, route, actions }) {
  const { id } = route;
  const control = new AbortController();
  const history = new History(store, id, "reservation");
  /** @type {Reservation | null} one that was given back is in no list */
  let past = null;
  let absent = false;

  async function readPast() {
    try {
      past = await get(`reservations/${encodeURIComponent(id)}`, control.signal);
    } catch (error) {
      absent = error instanceof Problem && error.reason === "NOT_FOUND";
    }
    update();
  }
  let asked = false;

  function update() {
    const current = store.reservations.get(id);
    if (!current && store.phase === "live" && !asked) {
      asked = true;
      readPast();
    }
    const item = current || past;
    if (!item && !absent) return;
    const title = item?.holder?.name ? `${item.holder.name}` : id;
    fill(
      main,
      h(
        "div",
        { class: "object-head", key: "head" },
        h(
          "nav",
          { class: "crumbs", "aria-label": "Where this is" },
          h("a", { href: link("reservations") }, "Reservations"),
          " / ",
          h("span", { "aria-current": "page" }, id),
        ),
        h("h1", null, title),
        item
          ? h(
              "p",
              { class: "owner-line" },
              stateBadge(item.state),
              h("span", { class: "mono muted" }, id),
            )
          : h(
              "p",
              { class: "owner-line" },
              "It isn't among the reservations now. What is kept of it is below.",
            ),
        current ? actionRow(reservationActions(actions, current)) : null,
      ),
      item ? section("reservation", "Reservation", reservationFacts(item, store)) : null,
      item?.lastFailure
        ? section("failure", "Why the last order failed", ...refusal(item.lastFailure))
        : null,
      section("history", "History", h("div", { key: "slot", id: "history-slot" })),
    );
    const slot = main.querySelector("#history-slot");
    if (slot && history.element.parentElement !== slot) slot.replaceChildren(history.element);
    history.update();
  }

  return {
    title: id,
    update,
    leave() {
      control.abort();
      history.close();
    },
  };
}

/**
 * @param {Reservation} item
 * @param {Store} store
 */
function reservationFacts(item, store) {
  return facts([
    ["Holder", item.holder?.name || ""],
    ["Asked by", item.holder?.requester || ""],
    ["May fetch", item.holder?.forIdentity || ""],
    ["Label", item.label],
    ["State", [word(item.state), ...stateNote(item)]],
    ["Time left", lease(item, store.phase === "live")],
    ["Policy", word(item.policy)],
    ["Delivery", `${word(item.delivery)} on ${word(item.backend)}`],
    [
      "Groups",
      item.targets.map((target) =>
        h("div", null, groupLink(target.group), " ", ...list(target.devices.map(deviceLink))),
      ),
    ],
    ["Claims", count(item.claims.length, "device")],
    ["Processes", processList(processesOf(item))],
    [
      "Hold",
      item.hold === "KERNEL"
        ? "the kernel refuses everyone else"
        : "the record alone keeps others out",
    ],
    ["Domain", h("span", { class: "mono" }, item.domain)],
    ["Context", h("span", { class: "mono" }, item.context)],
    ["Epoch", h("span", { class: "mono" }, item.epoch)],
    ["May pin", Number(item.memoryBytes) > 0 ? size(item.memoryBytes) : ""],
    ["Reserved", item.createdAt ? time(item.createdAt) : ""],
    ["Warnings", item.warnings.map((text) => h("div", null, badge("warn", "warning"), ` ${text}`))],
    [
      "Given back",
      item.givenBack.map((back) =>
        h(
          "div",
          null,
          deviceLink(back.device),
          ` reset ${word(back.reset)}, ${back.baselineRestored ? "baseline restored" : "baseline not restored"}${back.note ? `: ${back.note}` : ""}`,
        ),
      ),
    ],
  ]);
}
