// What the daemon said last, and whether that is still known to be so.
//
// One session: read the lists, follow the events from where they were, read again what an event
// touched. When anything of that breaks, all that is shown is stale until a new session has read
// the lists again: a daemon that was away may have changed what no event tells.

import { get, Problem } from "./api.js";
import { EventLog } from "./log.js";
import { follow } from "./sse.js";

/** @import {Capabilities, Event, Group, ListGroups, ListReservations, Reservation} from "./types.d.ts" */

const BATCH_MS = 150;
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 2000;
/** A daemon that takes longer for its lists is not there. */
const LISTS_MS = 15_000;
/** Beyond this many touched objects one list costs less than many single reads. */
const SINGLE_READS = 20;

/** @param {Reservation} reservation */
const isCurrent = (reservation) => reservation.state !== "RELEASED";

/** The page's state. */
export class Store {
  /** @type {"connecting" | "live" | "stale"} */
  phase = "connecting";
  /** When what is shown was last known to be current. */
  asOf = new Date(0);
  /** When the next session is tried. */
  retryAt = 0;
  /** @type {Error | null} */
  problem = null;
  /** @type {Capabilities | null} */
  host = null;
  /** @type {Map<string, Group>} */
  groups = new Map();
  /** @type {Map<string, Reservation>} */
  reservations = new Map();
  log = new EventLog();
  /** How often all lists were read: what was learnt before the last time may have changed. */
  session = 0;
  /** Changes whenever the groups or the reservations do. */
  version = 0;

  /** @type {Set<() => void>} */
  #listeners = new Set();
  #frame = 0;
  #touched = { groups: new Set(), reservations: new Set(), timer: 0 };
  #control = new AbortController();
  #wake = () => {};
  #retryMs = FIRST_RETRY_MS;

  /**
   * Calls back, at most once a frame, when something changed.
   * @param {() => void} listener
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Tells the listeners in the next frame. */
  changed() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      for (const listener of this.#listeners) listener();
    });
  }

  /** Tries the next session now. */
  retryNow() {
    this.#retryMs = FIRST_RETRY_MS;
    this.#wake();
  }

  /** Follows the daemon for as long as the page is open. */
  async run() {
    for (;;) {
      try {
        await this.#session();
        this.#lost(new Problem({ detail: "berthd closed the stream of events" }));
      } catch (error) {
        this.#lost(error);
      }
      await this.#pause();
    }
  }

  async #session() {
    const control = new AbortController();
    this.#control = control;
    const { signal } = control;
    const late = () => control.abort(new Problem({ detail: "berthd doesn't answer" }));
    const timer = setTimeout(late, LISTS_MS);
    /** @type {[Capabilities, ListGroups, ListReservations]} */
    const [host, groups, reservations] = await Promise.all([
      get("capabilities", signal),
      get("groups", signal),
      get("reservations", signal),
    ]).finally(() => clearTimeout(timer));
    // The older list decides where the stream begins: an event seen twice does no harm.
    const resume = Math.min(Number(groups.resumeSeq), Number(reservations.resumeSeq));
    // A daemon with an older record, or none, goes on from there.
    if (this.log.last === 0 || this.log.last > resume) await this.log.restart(resume);
    this.host = host;
    this.session += 1;
    this.#putGroups(groups.groups);
    this.#putReservations(reservations.reservations);
    try {
      await this.#follow();
    } catch (error) {
      if (!(error instanceof Problem) || error.reason !== "EVENTS_COMPACTED") throw error;
      // What happened meanwhile is gone from the history; what is shown begins after it.
      await this.log.restart(resume);
      await this.#follow();
    }
  }

  async #follow() {
    await follow(`${this.log.last}`, this.#control, {
      onOpen: () => {
        this.phase = "live";
        this.problem = null;
        this.#retryMs = FIRST_RETRY_MS;
        this.changed();
      },
      onEvent: (event) => {
        this.log.add(event);
        this.#touch(event);
      },
    });
  }

  /** @param {unknown} error */
  #lost(error) {
    // What the browser says of a stream that was cut isn't why it was.
    const { signal } = this.#control;
    const cause = signal.aborted ? signal.reason : error;
    // Ends reads that are under way, so that none of them comes late.
    this.#control.abort();
    clearTimeout(this.#touched.timer);
    this.#touched = { groups: new Set(), reservations: new Set(), timer: 0 };
    this.problem = cause instanceof Error ? cause : new Error(String(cause));
    if (this.phase === "live") {
      this.phase = "stale";
      this.asOf = new Date();
    }
    this.changed();
  }

  async #pause() {
    this.retryAt = Date.now() + this.#retryMs;
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, this.#retryMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve(null);
      };
    });
    this.#retryMs = Math.min(this.#retryMs * 2, LAST_RETRY_MS);
  }

  /** @param {Event} event */
  #touch(event) {
    for (const group of event.groups) this.#touched.groups.add(group);
    if (event.reservation) this.#touched.reservations.add(event.reservation);
    this.#touched.timer ||= setTimeout(() => this.#refresh(), BATCH_MS);
  }

  /** Reads again what events touched. What can't be read leaves nothing current. */
  async #refresh() {
    const { groups, reservations } = this.#touched;
    this.#touched = { groups: new Set(), reservations: new Set(), timer: 0 };
    const control = this.#control;
    try {
      await this.#readGroups([...groups], control.signal);
      await this.#readReservations([...reservations], control.signal);
      this.changed();
    } catch (error) {
      if (!control.signal.aborted) control.abort(error);
    }
  }

  /**
   * @param {string[]} ids
   * @param {AbortSignal} signal
   */
  async #readGroups(ids, signal) {
    if (ids.length > SINGLE_READS) {
      this.#putGroups((await get("groups", signal)).groups);
      return;
    }
    const found = await Promise.all(ids.map((id) => one(`groups/${id}`, signal)));
    for (const [at, id] of ids.entries()) put(this.groups, id, found[at]);
    if (ids.length) this.version += 1;
  }

  /**
   * @param {string[]} ids
   * @param {AbortSignal} signal
   */
  async #readReservations(ids, signal) {
    if (ids.length > SINGLE_READS) {
      this.#putReservations((await get("reservations", signal)).reservations);
      return;
    }
    const found = await Promise.all(ids.map((id) => one(`reservations/${id}`, signal)));
    for (const [at, id] of ids.entries()) {
      put(this.reservations, id, found[at] && isCurrent(found[at]) ? found[at] : null);
    }
    if (ids.length) this.version += 1;
  }

  /** @param {Group[]} groups */
  #putGroups(groups) {
    this.groups = new Map(groups.map((group) => [group.stableId, group]));
    this.version += 1;
  }

  /** @param {Reservation[]} reservations */
  #putReservations(reservations) {
    this.reservations = new Map(reservations.filter(isCurrent).map((item) => [item.id, item]));
    this.version += 1;
  }
}

/**
 * One object, or null when there is none any more.
 * @param {string} path
 * @param {AbortSignal} signal
 */
async function one(path, signal) {
  try {
    return await get(path, signal);
  } catch (error) {
    if (error instanceof Problem && error.reason === "NOT_FOUND") return null;
    throw error;
  }
}

/**
 * @template T
 * @param {Map<string, T>} map
 * @param {string} id
 * @param {T | null} item
 */
function put(map, id, item) {
  if (item) map.set(id, item);
  else map.delete(id);
}
