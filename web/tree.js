// The host as a tree: root complex, bridge, group, function. No elements.
//
// A group of one function is one row with it. A group of several has a row of its own, where its
// topmost member hangs. What hangs below a bridge is a row below that bridge's.

import { address, deviceName, needsAttention, ownerOf, word } from "./words.js";

/** @import {Device, Group, Reservation} from "./types.d.ts" */

/**
 * @typedef {object} Node
 * @property {string} key
 * @property {"root" | "bridge" | "group" | "function"} kind
 * @property {string} name
 * @property {Device | null} device
 * @property {Group | null} group
 * @property {boolean} member whether it is one of several of its group
 * @property {string} text what it is searched by
 * @property {string} owner kind of its group's owner
 * @property {boolean} attention
 * @property {Node[]} children
 * @property {number} devices functions at and below it, bridges left out
 */

/** @typedef {{node: Node, level: number, position: number, siblings: number, expanded: boolean | null}} Row */
/** @typedef {{words: string[], owner: string, numa: string, attention: boolean}} Filter */

/**
 * @param {Iterable<Group>} groups
 * @param {Map<string, Reservation>} reservations
 * @returns {Node[]} the root complexes
 */
export function build(groups, reservations) {
  /** @type {Map<string, Node>} */
  const roots = new Map();
  /** @type {Map<string, Node>} */
  const devices = new Map();
  /** @type {[Node, Device][]} */
  const hanging = [];
  for (const group of groups) {
    const members = group.devices.map((device) => leaf(device, group, reservations));
    for (const member of members) devices.set(member.name, member);
    const top = topmost(group);
    if (!top) continue;
    hanging.push([
      members.length === 1 ? members[0] : ofSeveral(group, members, reservations),
      top,
    ]);
  }
  for (const [node, top] of hanging) {
    const parent = devices.get(top.parentPort);
    (parent && parent !== node ? parent : rootOf(top, roots)).children.push(node);
  }
  const all = [...roots.values()].sort(byName);
  all.forEach(finish);
  return all;
}

/**
 * @param {Device} device
 * @param {Group} group
 * @param {Map<string, Reservation>} reservations
 * @returns {Node}
 */
function leaf(device, group, reservations) {
  const name = address(device.address);
  const owner = ownerOf(group, reservations);
  const member = group.devices.length > 1;
  const words = [name, deviceName(device), device.className, device.driver, device.condition];
  words.push(...group.reservations, group.stableId, `group ${group.number}`, owner.text, owner.who);
  return {
    key: `d:${name}`,
    kind: device.isBridge ? "bridge" : "function",
    name,
    device,
    group,
    member,
    text: words.join(" ").toLowerCase(),
    owner: owner.kind,
    attention: member ? device.condition !== "OK" : needsAttention(group),
    children: [],
    devices: device.isBridge ? 0 : 1,
  };
}

/**
 * @param {Group} group
 * @param {Node[]} members
 * @param {Map<string, Reservation>} reservations
 * @returns {Node}
 */
function ofSeveral(group, members, reservations) {
  const owner = ownerOf(group, reservations);
  const words = [`group ${group.number}`, group.stableId, owner.text, owner.who];
  return {
    key: `g:${group.stableId}`,
    kind: "group",
    name: `Group ${group.number}`,
    device: null,
    group,
    member: false,
    text: [...words, word(group.condition), ...group.reservations].join(" ").toLowerCase(),
    owner: owner.kind,
    attention: needsAttention(group),
    children: members,
    devices: 0,
  };
}

/**
 * The member that the others hang below, or beside.
 * @param {Group} group
 */
function topmost(group) {
  const inside = new Set(group.devices.map((device) => address(device.address)));
  return group.devices.find((device) => !inside.has(device.parentPort)) || group.devices[0];
}

/**
 * @param {Device} device
 * @param {Map<string, Node>} roots
 */
function rootOf(device, roots) {
  // A bridge without a group has no row: what hangs below it is at the root of its own bus.
  const name = (device.parentPort || address(device.address)).split(":").slice(0, 2).join(":");
  let root = roots.get(name);
  if (!root) {
    root = {
      key: `r:${name}`,
      kind: "root",
      name,
      device: null,
      group: null,
      member: false,
      text: `root complex ${name}`,
      owner: "",
      attention: false,
      children: [],
      devices: 0,
    };
    roots.set(name, root);
  }
  return root;
}

/**
 * @param {Node} one
 * @param {Node} other
 */
const byName = (one, other) => {
  const [a, b] = [sortName(one), sortName(other)];
  return a < b ? -1 : a > b ? 1 : 0;
};

/** @param {Node} node */
const sortName = (node) => (node.kind === "group" ? node.children[0].name : node.name);

/** @param {Node} node */
function finish(node) {
  node.children.sort(byName);
  for (const child of node.children) {
    finish(child);
    node.devices += child.devices;
  }
}

/**
 * The rows to show: what the filter finds and what leads there, without what is collapsed. A filter
 * unfolds everything.
 * @param {Node[]} roots
 * @param {Filter} filter
 * @param {Set<string>} collapsed
 */
export function rows(roots, filter, collapsed) {
  const filtering = isFiltering(filter);
  /** @type {Row[]} */
  const found = [];
  let functions = 0;
  /** @param {Node} node @returns {boolean} whether it or something below is found */
  const mark = (node) => {
    const self = matches(node, filter);
    // Members belong to what was found about their group.
    const below = node.children.map((child) => mark(child) || (self && node.kind === "group"));
    wanted.set(node, self || below.some(Boolean));
    if (node.kind === "group" && self) node.children.forEach((child) => wanted.set(child, true));
    return wanted.get(node) || false;
  };
  /** @type {Map<Node, boolean>} */
  const wanted = new Map();
  if (filtering) roots.forEach(mark);
  /** @param {Node[]} nodes @param {number} level @param {boolean} shown */
  const walk = (nodes, level, shown) => {
    const kept = filtering ? nodes.filter((node) => wanted.get(node)) : nodes;
    kept.forEach((node, at) => {
      const expandable = node.children.length > 0;
      const open = expandable && (filtering || !collapsed.has(node.key));
      if (node.kind === "function") functions += 1;
      if (shown) {
        const expanded = expandable ? open : null;
        found.push({ node, level, position: at + 1, siblings: kept.length, expanded });
      }
      walk(node.children, level + 1, shown && open);
    });
  };
  walk(roots, 1, true);
  return { rows: found, functions };
}

/** @param {Filter} filter */
export const isFiltering = (filter) =>
  filter.words.length > 0 || filter.owner !== "" || filter.numa !== "" || filter.attention;

/**
 * @param {Node} node
 * @param {Filter} filter
 */
function matches(node, filter) {
  if (node.kind === "root") return false;
  if (filter.owner && (node.owner !== filter.owner || node.kind === "bridge")) return false;
  if (filter.numa && (!node.device || `${node.device.numaNode}` !== filter.numa)) return false;
  if (filter.attention && !node.attention) return false;
  return filter.words.every((part) => node.text.includes(part));
}
