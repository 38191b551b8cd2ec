// The history of one object: what the daemon keeps, then what comes.

import { Problem } from "./api.js";
import { fill, h } from "./dom.js";
import { eventRow } from "./event-row.js";
import { historyOf, seqOf } from "./log.js";
import { link } from "./router.js";
import { address } from "./words.js";

/** @import {Event} from "./types.d.ts" */
/** @import {Store} from "./store.js" */

const MOST = 200;

/** Reads once for each session and goes on with the stream. */
export class History {
  element = h("div", { class: "history" });
  /** @type {Event[]} */
  #events = [];
  #cut = false;
  #seen = 0;
  #read = false;
  #starts = 0;
  #problem = "";
  #control = new AbortController();
  #store;
  #object;
  #param;

  /**
   * @param {Store} store
   * @param {string} object
   * @param {"device" | "reservation" | "group"} param by which the view of events finds the same
   */
  constructor(store, object, param) {
    this.#store = store;
    this.#object = object;
    this.#param = param;
    this.#load();
  }

  close() {
    this.#control.abort();
  }

  async #load() {
    this.#starts = this.#store.log.starts;
    try {
      const { events, cut } = await historyOf(this.#object, MOST, this.#control.signal);
      this.#events = events;
      this.#cut = cut;
      this.#read = true;
      this.#problem = "";
    } catch (error) {
      if (this.#control.signal.aborted) return;
      this.#problem = error instanceof Problem ? error.message : "the history can't be read now";
    }
    this.update();
  }

  /** Takes what came, and shows it newest first. */
  update() {
    if (this.#starts !== this.#store.log.starts) this.#load();
    if (!this.#read) {
      fill(this.element, h("p", { class: "muted" }, this.#problem || "Reading the history"));
      if (this.#problem && this.#store.phase === "live") this.#retry();
      return;
    }
    const last = this.#events.length ? seqOf(this.#events[this.#events.length - 1]) : this.#seen;
    const fresh = this.#store.log.events.filter(
      (event) => seqOf(event) > last && this.#concerns(event),
    );
    this.#events.push(...fresh);
    this.#seen = Math.max(this.#store.log.last, last);
    const rows = this.#events
      .slice(-MOST)
      .reverse()
      .map((event) => eventRow(event, this.#object));
    const all = link("events", "", { [this.#param]: this.#object });
    fill(
      this.element,
      rows.length
        ? h("ol", { class: "events", "aria-label": "Newest first" }, ...rows)
        : h("p", { class: "muted" }, "Nothing is kept about it."),
      this.#cut
        ? h(
            "p",
            { class: "muted" },
            `The last ${MOST} events. Older ones: `,
            h("code", null, `berth history ${this.#object}`),
          )
        : null,
      h("p", { class: "small" }, h("a", { href: all }, "In the view of events")),
    );
  }

  #retry() {
    this.#problem = "";
    this.#load();
  }

  /** @param {Event} event */
  #concerns(event) {
    return concerns(event, this.#object);
  }
}

/**
 * Whether an event is about a group, device or reservation.
 * @param {Event} event
 * @param {string} object
 */
export const concerns = (event, object) =>
  event.reservation === object ||
  event.groups.includes(object) ||
  event.devices.some((device) => address(device) === object);
