// Makes elements, and brings what is shown to what is wanted with as few changes as possible: focus,
// selection, scrolling and what a person unfolded stay. Text only: nothing is parsed as HTML.

/** @typedef {Node | string | number | null | undefined | false} Child */
/** @typedef {Child | Child[] | Child[][]} Children */

const HANDLERS = /** @type {const} */ (["onclick", "oninput", "onchange", "ontoggle"]);

/**
 * An element with attributes, handlers and children. `null`, `undefined` and `false` leave an
 * attribute out; `true` is an attribute without a value. `key` tells it from its siblings.
 * @param {string} name
 * @param {Record<string, any> | null} [options]
 * @param {...Children} children
 * @returns {HTMLElement}
 */
export function h(name, options, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") Object.assign(element, { [key]: value });
    else if (key === "key") element.dataset.key = value;
    else element.setAttribute(key, value === true ? "" : `${value}`);
  }
  element.append(...nodes(children));
  return element;
}

/**
 * @param {Children[]} children
 * @returns {(Node | string)[]}
 */
function nodes(children) {
  const flat = /** @type {Child[]} */ (children.flat(2));
  return flat
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (child instanceof Node ? child : `${child}`));
}

/**
 * Makes `parent` contain what is wanted.
 * @param {Element} parent
 * @param {...Children} wanted
 */
export function fill(parent, ...wanted) {
  const holder = document.createDocumentFragment();
  holder.append(...nodes(wanted));
  reconcile(parent, [...holder.childNodes]);
}

/** @param {Node} node */
const keyOf = (node) => (node instanceof HTMLElement ? node.dataset.key : undefined);

/**
 * @param {Element} parent
 * @param {ChildNode[]} wanted
 */
function reconcile(parent, wanted) {
  /** @type {Map<string, ChildNode>} */
  const keyed = new Map();
  for (const node of parent.childNodes) {
    const key = keyOf(node);
    if (key !== undefined) keyed.set(key, node);
  }
  let at = parent.firstChild;
  for (const node of wanted) {
    const key = keyOf(node);
    const old = key === undefined ? unkeyed(at) : keyed.get(key);
    if (!old || !alike(old, node)) {
      parent.insertBefore(node, at);
      continue;
    }
    if (key !== undefined) keyed.delete(key);
    if (old === at) at = at.nextSibling;
    else parent.insertBefore(old, at);
    patch(old, node);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** @param {ChildNode | null} node */
const unkeyed = (node) => (node && keyOf(node) === undefined ? node : null);

/**
 * @param {Node} old
 * @param {Node} node
 */
const alike = (old, node) => old.nodeName === node.nodeName;

/**
 * @param {Node} old
 * @param {ChildNode} node
 */
function patch(old, node) {
  if (!(old instanceof HTMLElement) || !(node instanceof HTMLElement)) {
    if (old.nodeValue !== node.nodeValue) old.nodeValue = node.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What a person unfolded stays so.
    if (!node.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of node.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of HANDLERS) Object.assign(old, { [name]: node[name] });
  reconcile(old, [...node.childNodes]);
}
