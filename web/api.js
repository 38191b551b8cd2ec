// The REST client for reading; what changes something is in session.js.

/** @import {ProblemDocument} from "./types.d.ts" */

const BASE = "/api/v1/";

/** How far the daemon's clock is ahead of this one, in milliseconds. */
let clockAhead = 0;

/** The daemon's time now, in milliseconds: leases end by its clock. */
export const daemonNow = () => Date.now() + clockAhead;

/** An answer of the API that is not a success: a problem of RFC 9457. */
export class Problem extends Error {
  /** @param {Partial<ProblemDocument>} problem */
  constructor(problem) {
    super(problem.detail || problem.title || "the request failed");
    this.reason = problem.reason || "";
    this.resolve = problem.resolve || [];
    this.errnoName = problem.errnoName || "";
    this.blockers = problem.blockers || [];
    this.owner = problem.owner || null;
  }
}

/**
 * What an answer that is no success says.
 * @param {Response} response
 */
export async function problemOf(response) {
  const kind = response.headers.get("content-type") || "";
  if (kind.startsWith("application/problem+json")) return new Problem(await response.json());
  return new Problem({ detail: `${response.url}: HTTP status ${response.status}` });
}

/**
 * GETs a JSON document below /api/v1. The caller says which.
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function get(path, signal) {
  const response = await fetch(BASE + path, { headers: { accept: "application/json" }, signal });
  readClock(response);
  if (!response.ok) throw await problemOf(response);
  return response.json();
}

/**
 * The `Date` header has seconds: a smaller difference says nothing.
 * @param {Response} response
 */
function readClock(response) {
  const date = Date.parse(response.headers.get("date") || "");
  if (Number.isNaN(date)) return;
  const ahead = date + 500 - Date.now();
  clockAhead = Math.abs(ahead) > 2000 ? ahead : 0;
}
