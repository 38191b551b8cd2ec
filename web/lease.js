// Leases run down in their own cells: one timer writes the texts that changed, nothing else.

import { daemonNow } from "./api.js";
import { h } from "./dom.js";
import { clock, span } from "./words.js";

/** @import {Store} from "./store.js" */
/** @import {Reservation} from "./types.d.ts" */

/**
 * The cell of a lease.
 * @param {Reservation} reservation
 * @param {boolean} current whether the store is
 */
export function lease(reservation, current) {
  if (!reservation.expiresAt) return h("span", { class: "muted" }, "no limit");
  return ending(reservation.expiresAt, current);
}

/**
 * How long something lasts.
 * @param {string} end
 * @param {boolean} [current] whether the store is
 */
export const ending = (end, current = true) =>
  h(
    "time",
    { class: "lease", datetime: end, "data-lease": end, title: end },
    text(end, current),
  );

/**
 * @param {string} end
 * @param {boolean} current
 */
function text(end, current) {
  const date = new Date(end);
  // It may have been renewed since.
  if (!current) return `was to end at ${clock(date)}`;
  const seconds = Math.round((date.getTime() - daemonNow()) / 1000);
  return seconds > 0 ? `${span(seconds)} left` : `ended at ${clock(date)}`;
}

/**
 * Keeps the leases that are shown.
 * @param {Store} store
 */
export function tick(store) {
  setInterval(() => {
    for (const cell of document.querySelectorAll("[data-lease]")) {
      const now = text(cell.getAttribute("data-lease") || "", store.phase === "live");
      if (cell.textContent !== now) cell.textContent = now;
    }
  }, 1000);
}
