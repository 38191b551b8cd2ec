// The host: root complex, bridge, group, function; searched and filtered.

import { fill, h } from "../dom.js";
import { Grid } from "../grid.js";
import { linkNow, linkText } from "../health.js";
import { badge, conditionBadge, deviceLinkTo, empty, groupLink, ownerBadge } from "../parts.js";
import { build, rows as rowsOf } from "../tree.js";
import { count, deviceName, needsAttention, numa, OWNER_KINDS, ownerOf } from "../words.js";

/** @import {Context, Device, Group, Route, View} from "../types.d.ts" */
/** @import {Filter, Node, Row} from "../tree.js" */

/** What is collapsed stays so while the page is open. */
const collapsed = new Set();

/**
 * @param {Element} main
 * @param {Context} context
 * @returns {View}
 */
export function hostView(main, context) {
  const { store } = context;
  const grid = new Grid({
    label: "Devices of the host",
    columns: ["Device", "What it is", "Group", "Driver", "NUMA", "Owner", "Condition"],
    cells: (row) => cells(row, store.reservations),
    onToggle: (row) => {
      if (!collapsed.delete(row.node.key)) collapsed.add(row.node.key);
      draw();
    },
  });
  const search = /** @type {HTMLInputElement} */ (
    h("input", {
      type: "search",
      class: "search",
      placeholder: "Search: address, name, driver, holder",
      "aria-label": "Search devices",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => set({ q: search.value }),
    })
  );
  const found = h("p", { class: "found", role: "status" });
  const bar = h("div", { class: "filters" });
  const fold = h("button", { type: "button", onclick: () => foldAll() });
  const nothing = h("div", { class: "card", hidden: true });
  fill(
    main,
    h("h1", { class: "hidden-title" }, "Host"),
    h("div", { class: "toolbar" }, search, bar),
    h("div", { class: "under-bar" }, found, fold),
    nothing,
    grid.element,
  );

  let { params } = context.route;
  /** @type {Node[]} */
  let roots = [];
  let built = -1;

  /** @param {Record<string, string>} changes */
  function set(changes) {
    context.setParams({ ...Object.fromEntries(params), ...changes });
  }

  function foldAll() {
    const keys = roots.map((node) => node.key);
    if (keys.every((key) => collapsed.has(key))) collapsed.clear();
    else for (const key of keys) collapsed.add(key);
    draw();
  }

  function draw() {
    const filter = readFilter(params);
    const { rows, functions } = rowsOf(roots, filter, collapsed);
    const all = roots.reduce((sum, node) => sum + node.devices, 0);
    found.textContent =
      functions === all ? count(all, "device") : `${functions} of ${count(all, "device")}`;
    const folded = roots.length > 0 && roots.every((node) => collapsed.has(node.key));
    fold.textContent = folded ? "Unfold all" : "Fold all";
    fold.hidden = rows.length === 0;
    grid.element.hidden = rows.length === 0;
    nothing.hidden = rows.length > 0 || store.phase === "connecting";
    if (!nothing.hidden)
      fill(
        nothing,
        nothingFound(store.groups.size, store.host, () =>
          set({ q: "", owner: "", numa: "", attention: "" }),
        ),
      );
    grid.show(rows);
  }

  /** @param {Route} route */
  function update(route) {
    ({ params } = route);
    if (document.activeElement !== search) search.value = params.get("q") || "";
    if (built !== store.version) {
      built = store.version;
      roots = build(store.groups.values(), store.reservations);
    }
    fill(bar, ...filters([...store.groups.values()], context, params, set));
    draw();
  }

  return { title: "Host", update, leave: () => grid.close() };
}

/**
 * @param {URLSearchParams} params
 * @returns {Filter}
 */
function readFilter(params) {
  const words = (params.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
  return {
    words,
    owner: params.get("owner") || "",
    numa: params.get("numa") || "",
    attention: params.get("attention") === "1",
  };
}

/**
 * The choices, each with how many groups it has.
 * @param {Group[]} groups
 * @param {Context} context
 * @param {URLSearchParams} params
 * @param {(changes: Record<string, string>) => void} set
 */
function filters(groups, { store }, params, set) {
  /** @type {Map<string, number>} */
  const owners = new Map();
  const nodes = new Set();
  let attention = 0;
  for (const group of groups) {
    const devices = group.devices.filter((device) => !device.isBridge);
    for (const device of devices) if (device.numaNode >= 0) nodes.add(device.numaNode);
    if (needsAttention(group)) attention += 1;
    if (!devices.length) continue;
    const { kind } = ownerOf(group, store.reservations);
    owners.set(kind, (owners.get(kind) || 0) + 1);
  }
  /** @param {string} name @param {string} value @param {string} text @param {string} kind */
  const chip = (name, value, text, kind) => {
    const on = params.get(name) === value;
    const onclick = () => set({ [name]: on ? "" : value });
    return h(
      "button",
      {
        key: `${name}=${value}`,
        type: "button",
        class: `chip ${kind}`,
        "aria-pressed": `${on}`,
        onclick,
      },
      text,
    );
  };
  const kinds = OWNER_KINDS.filter((kind) => owners.has(kind) || params.get("owner") === kind);
  const chips = kinds.map((kind) =>
    chip("owner", kind, `${kind} ${owners.get(kind) || 0}`, `owner-${kind}`),
  );
  const numas =
    nodes.size > 1
      ? [...nodes].sort((a, b) => a - b).map((node) => chip("numa", `${node}`, `NUMA ${node}`, ""))
      : [];
  const looks =
    attention || params.get("attention")
      ? [chip("attention", "1", `needs attention ${attention}`, "bad")]
      : [];
  return [
    h(
      "div",
      { key: "owners", class: "chips", role: "group", "aria-label": "Groups by owner" },
      ...chips,
    ),
    numas.length
      ? h(
          "div",
          { key: "numa", class: "chips", role: "group", "aria-label": "NUMA node" },
          ...numas,
        )
      : null,
    looks.length
      ? h(
          "div",
          { key: "looks", class: "chips", role: "group", "aria-label": "Condition" },
          ...looks,
        )
      : null,
  ];
}

/**
 * @param {number} groups
 * @param {import("../types.d.ts").Capabilities | null} host
 * @param {() => void} onClear
 */
function nothingFound(groups, host, onClear) {
  if (groups > 0) {
    return empty(
      "No device is like that.",
      h("p", null, h("button", { type: "button", onclick: onClear }, "Show all devices")),
    );
  }
  const notes = (host?.features || []).filter((item) => item.answer !== "YES");
  return empty(
    "This host has no IOMMU group, so there is nothing to give away.",
    h(
      "p",
      null,
      "Switch the IOMMU on in the firmware, and in the kernel (",
      h("code", null, "intel_iommu=on"),
      " on Intel). ",
      h("code", null, "berth doctor"),
      " looks at the whole host.",
    ),
    ...notes.map((item) => h("p", { class: "muted" }, `${item.name}: ${item.note}`)),
  );
}

/**
 * @param {Row} row
 * @param {Map<string, import("../types.d.ts").Reservation>} reservations
 */
function cells({ node }, reservations) {
  const { device, group, kind } = node;
  if (kind === "root") {
    return [
      h("strong", null, `Root complex ${node.name}`),
      summary(node, reservations),
      "",
      "",
      nodesBelow(node),
      "",
      "",
    ];
  }
  if (!group) return [node.name, "", "", "", "", "", ""];
  const condition = conditionCell(node, group);
  if (!device) {
    const what = h(
      "span",
      { class: "muted" },
      `${count(group.devices.length, "device")} with one owner, `,
      h("span", { class: "mono" }, group.stableId),
    );
    return [
      h("strong", null, groupLink(group.stableId, node.name)),
      what,
      "",
      "",
      "",
      ownerBadge(group, reservations),
      condition,
    ];
  }
  const label = kind === "bridge" ? h("span", { class: "tag" }, "bridge") : null;
  // A bridge alone in its group is nobody's to reserve.
  const quiet = node.member || (kind === "bridge" && group.ownership === "FREE");
  const owner = quiet
    ? h("span", { class: "muted small" }, node.member ? `with group ${group.number}` : "")
    : ownerBadge(group, reservations);
  const own = device.deviceName || deviceName(device);
  const vendor = device.deviceName && h("span", { class: "vendor" }, device.vendorName);
  const link = device.health?.link;
  const runs = link ? h("span", { class: "vendor" }, linkNow(link)) : null;
  const name = h(
    "span",
    {
      class: kind === "bridge" ? "muted" : null,
      title: link ? `${deviceName(device)}, ${linkText(link)}` : deviceName(device),
    },
    own,
    vendor,
    runs,
  );
  return [
    [deviceLinkTo(node.name), label],
    name,
    node.member ? "" : groupLink(group.stableId, `${group.number}`),
    driver(device),
    numa(device),
    owner,
    condition,
  ];
}

/** @param {Device} device */
const driver = (device) =>
  device.driver ? h("code", null, device.driver) : h("span", { class: "muted" }, "none");

/**
 * @param {Node} node
 * @param {Group} group
 */
function conditionCell(node, group) {
  const condition = node.member && node.device ? node.device.condition : group.condition;
  const drift = !node.member && group.drift ? badge("warn", "drift") : null;
  if (condition === "OK") return drift || h("span", { class: "muted ok" }, "ok");
  return [conditionBadge(condition), drift];
}

/**
 * @param {Node} node
 * @param {Map<string, import("../types.d.ts").Reservation>} reservations
 */
function summary(node, reservations) {
  let free = 0;
  for (const each of functionsBelow(node)) {
    if (each.group && ownerOf(each.group, reservations).kind === "free") free += 1;
  }
  return h("span", { class: "muted" }, `${count(node.devices, "device")}, ${free} free`);
}

/** @param {Node} node */
function nodesBelow(node) {
  const nodes = new Set();
  for (const each of functionsBelow(node)) if (each.device) nodes.add(numa(each.device));
  nodes.delete("");
  return [...nodes].sort().join(", ");
}

/**
 * @param {Node} node
 * @returns {Generator<Node>}
 */
function* functionsBelow(node) {
  if (node.kind === "function") yield node;
  for (const child of node.children) yield* functionsBelow(child);
}
