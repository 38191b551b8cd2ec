// A tree of many rows, of which only those in sight are elements. It scrolls with the page. The
// keyboard moves over rows as in every treegrid: arrows, Home, End, Page Up, Page Down, Enter.

import { fill, h } from "./dom.js";

/** @import {Row} from "./tree.js" */
/** @import {Children} from "./dom.js" */

/** Rows beyond the edge that are there before they are scrolled to. */
const BEYOND = 8;

/**
 * @typedef {object} Options
 * @property {string} label
 * @property {string[]} columns
 * @property {(row: Row) => Children[]} cells one for each column; the first one gets the tree's lines
 * @property {(row: Row) => void} onToggle
 */

/** The element, and what keeps its rows. */
export class Grid {
  element;
  /** @type {Row[]} */
  #rows = [];
  /** @type {Map<string, {element: HTMLElement, at: number, version: number}>} */
  #shown = new Map();
  #options;
  #body;
  #active = "";
  #frame = 0;
  #height = 0;
  #version = 0;
  #abort = new AbortController();

  /** @param {Options} options */
  constructor(options) {
    this.#options = options;
    const heads = options.columns.map((name) => h("div", { role: "columnheader" }, name));
    this.#body = h("div", { class: "grid-body", role: "rowgroup" });
    this.element = h(
      "div",
      {
        class: "grid",
        role: "treegrid",
        "aria-label": options.label,
        "aria-colcount": heads.length,
      },
      h(
        "div",
        { class: "grid-head", role: "rowgroup" },
        h("div", { class: "grid-row", role: "row", "aria-rowindex": "1" }, ...heads),
      ),
      this.#body,
    );
    const { signal } = this.#abort;
    addEventListener("scroll", () => this.#later(), { passive: true, signal });
    addEventListener("resize", () => this.#later(), { signal });
    this.#body.addEventListener("keydown", (event) => this.#onKey(event));
    this.#body.addEventListener("focusin", (event) => this.#onFocus(event));
    this.#body.addEventListener("click", (event) => this.#onClick(event));
  }

  /** Ends what listens beyond the element. */
  close() {
    this.#abort.abort();
    cancelAnimationFrame(this.#frame);
  }

  /**
   * Shows other rows, or the same ones with other content.
   * @param {Row[]} rows
   */
  show(rows) {
    this.#rows = rows;
    this.#version += 1;
    if (!rows.some((row) => row.node.key === this.#active)) this.#active = rows[0]?.node.key || "";
    this.element.setAttribute("aria-rowcount", `${rows.length + 1}`);
    this.#render();
  }

  #later() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#render();
    });
  }

  /** Rows are as high as the style sheet says. */
  #measure() {
    const height = getComputedStyle(this.element).getPropertyValue("--row");
    this.#height = Number.parseFloat(height) || 34;
    this.#body.style.height = `${this.#rows.length * this.#height}px`;
  }

  #render() {
    this.#measure();
    // A tree that became shorter is scrolled back only after this.
    const most = Math.max(0, this.#rows.length * this.#height - innerHeight);
    const top = Math.min(-this.#body.getBoundingClientRect().top, most);
    const first = Math.max(0, Math.floor(top / this.#height) - BEYOND);
    const last = Math.min(
      this.#rows.length,
      Math.ceil((top + innerHeight) / this.#height) + BEYOND,
    );
    const wanted = new Set();
    for (let at = first; at < last; at += 1) wanted.add(at);
    // The row that the keyboard is on must not lose it.
    const active = this.#rows.findIndex((row) => row.node.key === this.#active);
    if (active >= 0) wanted.add(active);
    const keys = new Set();
    for (const at of wanted) keys.add(this.#place(at));
    for (const [key, { element }] of this.#shown) {
      if (keys.has(key)) continue;
      element.remove();
      this.#shown.delete(key);
    }
  }

  /**
   * Brings one row to its place.
   * @param {number} at
   */
  #place(at) {
    const row = this.#rows[at];
    const { key } = row.node;
    let shown = this.#shown.get(key);
    if (!shown) {
      shown = { element: h("div", { class: "grid-row", role: "row" }), at: -1, version: -1 };
      shown.element.dataset.row = key;
      this.#shown.set(key, shown);
    }
    if (shown.version !== this.#version) {
      this.#describe(shown.element, row, at);
      shown.version = this.#version;
    }
    if (shown.at !== at) shown.element.style.transform = `translateY(${at * this.#height}px)`;
    shown.at = at;
    shown.element.tabIndex = key === this.#active ? 0 : -1;
    if (!shown.element.isConnected) this.#insert(shown.element, at);
    return key;
  }

  /**
   * Readers of the screen go by the order of the elements.
   * @param {HTMLElement} element
   * @param {number} at
   */
  #insert(element, at) {
    let after = null;
    for (const other of this.#body.children) {
      if (Number(other.getAttribute("aria-rowindex")) > at + 2) {
        after = other;
        break;
      }
    }
    this.#body.insertBefore(element, after);
  }

  /**
   * @param {HTMLElement} element
   * @param {Row} row
   * @param {number} at
   */
  #describe(element, row, at) {
    const attributes = {
      "aria-rowindex": `${at + 2}`,
      "aria-level": `${row.level}`,
      "aria-posinset": `${row.position}`,
      "aria-setsize": `${row.siblings}`,
      "data-kind": row.node.kind,
      "data-level": `${Math.min(row.level, 6)}`,
    };
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (row.expanded === null) element.removeAttribute("aria-expanded");
    else element.setAttribute("aria-expanded", `${row.expanded}`);
    const twisty = h("span", { class: "twisty", "aria-hidden": "true" });
    const cells = this.#options
      .cells(row)
      .map((content, column) =>
        h("div", { role: "gridcell", class: `cell-${column}` }, column ? null : twisty, content),
      );
    fill(element, cells);
    // One stop of the Tab key for the whole tree; what links there are is on the object's own page.
    for (const link of element.querySelectorAll("a")) link.tabIndex = -1;
    this.#shown
      .get(row.node.key)
      ?.element.style.setProperty("transform", `translateY(${at * this.#height}px)`);
  }

  /** @param {Event} event */
  #rowOf(event) {
    const target = /** @type {Element} */ (event.target);
    const key = target.closest("[data-row]")?.getAttribute("data-row");
    return this.#rows.findIndex((row) => row.node.key === key);
  }

  /** @param {FocusEvent} event */
  #onFocus(event) {
    const at = this.#rowOf(event);
    if (at < 0) return;
    this.#active = this.#rows[at].node.key;
    for (const [key, { element }] of this.#shown) element.tabIndex = key === this.#active ? 0 : -1;
  }

  /** @param {MouseEvent} event */
  #onClick(event) {
    const target = /** @type {Element} */ (event.target);
    const at = this.#rowOf(event);
    if (at < 0 || target.closest("a")) return;
    const row = this.#rows[at];
    if (row.expanded !== null) this.#options.onToggle(row);
    this.#focus(at);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const at = this.#rowOf(event);
    if (at < 0) return;
    const row = this.#rows[at];
    const to = this.#target(event.key, at);
    if (to !== null) this.#focus(to);
    else if (event.key === "ArrowRight" && row.expanded === false) this.#options.onToggle(row);
    else if (event.key === "ArrowLeft" && row.expanded === true) this.#options.onToggle(row);
    else if (event.key === "Enter")
      this.#shown.get(row.node.key)?.element.querySelector("a")?.click();
    else if (event.key === " " && row.expanded !== null) this.#options.onToggle(row);
    else return;
    event.preventDefault();
  }

  /**
   * The row that a key leads to; null when it leads to none.
   * @param {string} key
   * @param {number} at
   */
  #target(key, at) {
    const row = this.#rows[at];
    const page = Math.max(1, Math.floor(innerHeight / this.#height) - 4);
    const end = this.#rows.length - 1;
    switch (key) {
      case "ArrowDown":
        return Math.min(end, at + 1);
      case "ArrowUp":
        return Math.max(0, at - 1);
      case "PageDown":
        return Math.min(end, at + page);
      case "PageUp":
        return Math.max(0, at - page);
      case "Home":
        return 0;
      case "End":
        return end;
      case "ArrowRight":
        return row.expanded ? at + 1 : null;
      case "ArrowLeft":
        return row.expanded ? null : this.#parentOf(at);
      default:
        return null;
    }
  }

  /** @param {number} at */
  #parentOf(at) {
    const { level } = this.#rows[at];
    for (let above = at - 1; above >= 0; above -= 1) {
      if (this.#rows[above].level < level) return above;
    }
    return null;
  }

  /** @param {number} at */
  #focus(at) {
    this.#active = this.#rows[at].node.key;
    const top = this.#body.getBoundingClientRect().top + at * this.#height;
    // The page's head and the columns' names stay on top of the rows.
    const room = { top: 3 * this.#height, bottom: innerHeight - 2 * this.#height };
    if (top < room.top) scrollBy(0, top - room.top);
    else if (top > room.bottom) scrollBy(0, top - room.bottom);
    this.#render();
    this.#shown.get(this.#active)?.element.focus({ preventScroll: true });
  }
}
