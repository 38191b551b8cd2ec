// The events that the page knows: a run of them without a gap, oldest first.

import { get, Problem } from "./api.js";

/** @import {Event, ListEvents} from "./types.d.ts" */

const FIRST_PAGE = 200;
const PAGE = 500;
/** What is kept of what came by itself; pages that were asked for come on top. */
const LIVE = 1000;

/** @param {Event} event */
export const seqOf = (event) => Number(event.seq);

/** A part of the history that ends now. */
export class EventLog {
  /** @type {Event[]} */
  events = [];
  /** The last event that was seen; 0 before any. */
  last = 0;
  /** How often it started anew, with a gap to what was there before. */
  starts = 0;
  /** Whether the daemon may keep events before the first one here. */
  hasOlder = false;
  #kept = LIVE;

  /**
   * Starts anew with the last events up to `seq`.
   * @param {number} seq
   */
  async restart(seq) {
    const events = await before(seq + 1, FIRST_PAGE);
    this.starts += 1;
    this.last = seq;
    this.#kept = LIVE;
    this.events = events;
    this.hasOlder = this.events.length > 0 && seqOf(this.events[0]) > 1;
  }

  /**
   * The next event. One that was seen before changes nothing.
   * @param {Event} event
   */
  add(event) {
    if (seqOf(event) <= this.last) return;
    this.last = seqOf(event);
    this.events.push(event);
    if (this.events.length > this.#kept) {
      this.events.splice(0, this.events.length - this.#kept);
      this.hasOlder = true;
    }
  }

  /** Reads the page before the first event. */
  async readOlder() {
    const first = this.events.length ? seqOf(this.events[0]) : this.last + 1;
    const older = await before(first, PAGE);
    this.#kept += older.length;
    this.events.unshift(...older);
    this.hasOlder = older.length > 0 && seqOf(older[0]) > 1;
  }
}

/**
 * Up to `count` events before `seq`, as far back as the daemon keeps them.
 * @param {number} seq
 * @param {number} count
 * @returns {Promise<Event[]>}
 */
async function before(seq, count) {
  const earlier = (/** @type {Event} */ event) => seqOf(event) < seq;
  const since = Math.max(0, seq - 1 - count);
  try {
    return (await page(since, count)).events.filter(earlier);
  } catch (error) {
    if (!(error instanceof Problem) || error.reason !== "EVENTS_COMPACTED") throw error;
  }
  // 0 starts with the oldest that is kept, wherever that is.
  return (await page(0, count)).events.filter(earlier);
}

/**
 * @param {number} since
 * @param {number} limit
 * @returns {Promise<ListEvents>}
 */
const page = (since, limit) => get(`events?sinceSeq=${since}&limit=${limit}`);

/**
 * The whole history of an object that is kept, at most `most` of its newest events, oldest first.
 * @param {string} object
 * @param {number} most
 * @param {AbortSignal} signal
 */
export async function historyOf(object, most, signal) {
  /** @type {Event[]} */
  let events = [];
  let cut = false;
  let since = "0";
  for (;;) {
    const path = `events?object=${encodeURIComponent(object)}&limit=${PAGE}&sinceSeq=${since}`;
    /** @type {ListEvents} */
    const answer = await get(path, signal);
    events.push(...answer.events);
    if (events.length > most) {
      events = events.slice(-most);
      cut = true;
    }
    if (answer.events.length < PAGE) return { events, cut };
    since = answer.resumeSeq;
  }
}
