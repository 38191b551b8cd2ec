// A group or a device: who owns it, what it is, why it can or can't be given away, what happened.

import { get, Problem } from "../api.js";
import { objectActions } from "../changes.js";
import { fill, h } from "../dom.js";
import { explanation } from "../explain.js";
import { deviceFacts, groupFacts, members } from "../facts.js";
import { History } from "../history.js";
import { actionRow, empty, groupLink, ownerBadge, section } from "../parts.js";
import { link } from "../router.js";
import { address, deviceName } from "../words.js";

/** @import {Context, Device, Explanation, Group, Route, View} from "../types.d.ts" */

/**
 * The object that the route names, in any form that the API takes, as the API calls it.
 * @param {Context["store"]} store
 * @param {Route} route
 * @returns {{group: Group | null, device: Device | null}}
 */
function find(store, { view, id }) {
  for (const group of store.groups.values()) {
    const device = group.devices.find((item) => address(item.address) === id) || null;
    if (view === "device" ? device : group.stableId === id || `${group.number}` === id || device) {
      return { group, device: view === "device" ? device : null };
    }
  }
  return { group: null, device: null };
}

/**
 * @param {Element} main
 * @param {Context} context
 * @returns {View}
 */
export function objectView(main, { store, route, actions }) {
  const isDevice = route.view === "device";
  const control = new AbortController();
  /** @type {Explanation | null} */
  let explained = null;
  let explainProblem = "";
  let explainedVersion = -1;
  let session = store.session;
  let drawn = false;
  let asking = false;
  /** @type {import("../types.d.ts").Domain | null} */
  let domain = null;
  /** @type {History | null} */
  let history = null;
  /** @type {Device | null} a device without a group is no group's member */
  let alone = null;

  /** Asks again whenever something changed: the answer depends on all of it. */
  async function ask() {
    if (asking || explainedVersion === store.version || store.phase !== "live") return;
    asking = true;
    explainedVersion = store.version;
    const { group, device } = find(store, route);
    const path = device
      ? `devices/${route.id}`
      : `groups/${group?.stableId || encodeURIComponent(route.id)}`;
    const named = group?.owner?.domain || "";
    try {
      [explained, domain] = await Promise.all([
        get(`${path}/explain`, control.signal),
        named
          ? get(`domains/${encodeURIComponent(named)}`, control.signal).catch(() => null)
          : null,
      ]);
      explainProblem = "";
    } catch (error) {
      if (control.signal.aborted) return;
      explained = null;
      explainProblem =
        error instanceof Problem ? error.message : "the explanation can't be read now";
      if (isDevice && !group) await askAlone();
    } finally {
      asking = false;
    }
    draw();
    ask();
  }

  async function askAlone() {
    alone = await get(`devices/${encodeURIComponent(route.id)}`, control.signal).catch(() => null);
  }

  /** What was learnt before the daemon went away is not shown beside what it says now. */
  function forget() {
    if (session === store.session) return;
    session = store.session;
    explained = null;
    explainProblem = "";
    domain = null;
  }

  function draw() {
    forget();
    const { group, device } = find(store, route);
    const shown = device || alone;
    if (!group && !shown) {
      if (store.phase === "live") fill(main, missing(isDevice, route.id));
      return;
    }
    // The page appears once, whole.
    if (!drawn && !explained && !explainProblem && store.phase === "live") return;
    drawn = true;
    const object = isDevice ? route.id : group?.stableId || route.id;
    history ||= new History(store, object, isDevice ? "device" : "group");
    history.update();
    const why = explained
      ? explanation(explained, store)
      : [
          h(
            "p",
            { class: "muted" },
            explainProblem ||
              (store.phase === "live" ? "Asking berthd" : "berthd can't be asked now"),
          ),
        ];
    const head = isDevice && shown ? deviceHead(shown, group) : group ? groupHead(group) : null;
    const grouped = group
      ? [
          section(
            "facts",
            isDevice ? `Its group, ${group.number}` : "Group",
            groupFacts(group, store, domain),
          ),
          section("members", "Devices in the group", members(group, isDevice ? route.id : "")),
        ]
      : [
          section(
            "facts",
            "Group",
            h("p", null, "The device has no IOMMU group: nobody can be given its DMA."),
          ),
        ];
    fill(
      main,
      h(
        "div",
        { class: "object-head", key: "head" },
        crumbs(group, isDevice, route.id),
        head,
        group ? h("p", { class: "owner-line" }, ...ownerBadge(group, store.reservations)) : null,
        actionRow(objectActions(actions, group, isDevice ? device : null, explained)),
      ),
      h(
        "div",
        { class: "columns", key: "columns" },
        h("div", { class: "column", key: "left" }, section("why", "Can it be given away?", why)),
        h(
          "div",
          { class: "column", key: "right" },
          isDevice && shown ? section("device", "Device", deviceFacts(shown)) : null,
          ...grouped,
        ),
      ),
      h(
        "section",
        { key: "history", class: "card", "aria-labelledby": "history-title" },
        h("h2", { id: "history-title" }, "History"),
        h("div", { key: "slot", id: "history-slot" }),
      ),
    );
    const slot = main.querySelector("#history-slot");
    if (slot && history.element.parentElement !== slot) slot.replaceChildren(history.element);
  }

  return {
    title: isDevice ? route.id : `Group ${route.id}`,
    update() {
      draw();
      ask();
    },
    leave() {
      control.abort();
      history?.close();
    },
  };
}

/**
 * @param {Group | null} group
 * @param {boolean} isDevice
 * @param {string} id
 */
function crumbs(group, isDevice, id) {
  const up = isDevice && group ? [groupLink(group.stableId, `Group ${group.number}`), " / "] : [];
  const here = isDevice ? id : `Group ${group?.number}`;
  return h(
    "nav",
    { class: "crumbs", "aria-label": "Where this is" },
    h("a", { href: link("host") }, "Host"),
    " / ",
    ...up,
    h("span", { "aria-current": "page" }, here),
  );
}

/**
 * @param {Device} device
 * @param {Group | null} group
 */
function deviceHead(device, group) {
  const name = h("span", { class: "mono" }, address(device.address));
  return [
    h("h1", null, name),
    h("p", { class: "lead" }, deviceName(device), group ? "" : " (without a group)"),
  ];
}

/** @param {Group} group */
function groupHead(group) {
  return [
    h("h1", null, `Group ${group.number}`),
    h("p", { class: "lead mono muted" }, group.stableId),
  ];
}

/**
 * @param {boolean} isDevice
 * @param {string} id
 */
function missing(isDevice, id) {
  const history = link("events", "", { [isDevice ? "device" : "group"]: id });
  return h(
    "div",
    { class: "card" },
    h("h1", { class: "hidden-title" }, "Not found"),
    empty(
      isDevice ? `There is no device ${id} on this host.` : `There is no group ${id} on this host.`,
      h(
        "p",
        null,
        "It may have been removed, or its group may have other members now. ",
        h("a", { href: link("host") }, "See what there is"),
        ", or ",
        h("a", { href: history }, "what happened to it"),
        ".",
      ),
    ),
  );
}
