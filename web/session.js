// The session that lets this page change things: opened by a link of `berth web`, kept by the daemon.
//
// The browser keeps two secrets of it. The cookie goes to every server of this machine, whatever its
// port; the token goes to this origin alone, in a header. Neither is of use without the other.

import { daemonNow, problemOf, Problem } from "./api.js";

/** @import {SessionState} from "./types.d.ts" */

const DOOR = "/web/session";
const KEPT = "berth-session";

/** How a session is had. */
export const SIGN_IN = "berth web";

const ROLES = ["viewer", "holder", "orchestrator", "operator"];

/** Who is signed in, and what is changed as them. */
export class Session {
  /** @type {SessionState | null} */
  now = null;
  /** When it ends if nothing is changed by it, by the daemon's clock. */
  until = "";
  /** Why there is none any more. @type {Error | null} */
  lost = null;

  /** @type {Set<() => void>} */
  #listeners = new Set();
  #timer = 0;

  constructor() {
    // Signed in or out in another tab.
    addEventListener("storage", (event) => {
      if (event.key === KEPT) this.look();
    });
  }

  /** @param {() => void} listener */
  subscribe(listener) {
    this.#listeners.add(listener);
  }

  /**
   * Whether a role is enough for something. The daemon decides; this decides what is offered.
   * @param {string} least
   */
  may(least) {
    return !!this.now && ROLES.indexOf(this.now.role) >= ROLES.indexOf(least);
  }

  /**
   * Opens a session with a link's secret.
   * @param {string} token
   */
  async enter(token) {
    const answer = await ask("POST", DOOR, { token }, "");
    localStorage.setItem(KEPT, answer.csrf);
    this.#put(answer.session);
  }

  /** Asks what there is of a session. */
  async look() {
    const csrf = localStorage.getItem(KEPT);
    if (!csrf) return this.#put(null);
    try {
      this.#put(await ask("GET", DOOR, null, csrf));
    } catch (error) {
      this.#failed(error);
    }
  }

  /** Ends it, here and at the daemon. */
  async leave() {
    const csrf = localStorage.getItem(KEPT) || "";
    try {
      await ask("DELETE", DOOR, {}, csrf);
    } catch (error) {
      // What the daemon doesn't know any more is ended, too.
      if (!isOver(error)) throw error;
    }
    localStorage.removeItem(KEPT);
    this.#put(null);
  }

  /**
   * Changes something below /api/v1.
   * @param {string} method
   * @param {string} path
   * @param {object} body
   * @returns {Promise<any>}
   */
  async change(method, path, body) {
    const csrf = localStorage.getItem(KEPT);
    if (!csrf) {
      const detail = "You are not signed in any more.";
      throw new Problem({ detail, reason: "UNAUTHENTICATED" });
    }
    try {
      const answer = await ask(method, `/api/v1/${path}`, body, csrf);
      this.look();
      return answer;
    } catch (error) {
      if (isOver(error)) this.#failed(error);
      throw error;
    }
  }

  /** @param {unknown} error */
  #failed(error) {
    // A daemon that is away says nothing of sessions.
    if (!isOver(error)) return;
    localStorage.removeItem(KEPT);
    if (this.now) this.lost = error;
    this.#put(null);
  }

  /** @param {SessionState | null} state */
  #put(state) {
    clearTimeout(this.#timer);
    this.now = state;
    if (state) {
      this.lost = null;
      this.until = new Date(daemonNow() + state.idleLeftMs).toISOString();
      this.#timer = setTimeout(() => this.look(), state.idleLeftMs + 500);
    }
    for (const listener of this.#listeners) listener();
  }
}

/**
 * Whether an answer says that there is no session.
 * @param {unknown} error
 * @returns {error is Problem}
 */
export const isOver = (error) => error instanceof Problem && error.reason === "UNAUTHENTICATED";

/**
 * @param {string} method
 * @param {string} url
 * @param {object | null} body
 * @param {string} csrf
 * @returns {Promise<any>}
 */
async function ask(method, url, body, csrf) {
  /** @type {Record<string, string>} */
  const headers = { accept: "application/json" };
  if (csrf) headers["x-berth-csrf"] = csrf;
  if (body) headers["content-type"] = "application/json";
  const response = await fetch(url, {
    method,
    headers,
    body: body && JSON.stringify(body),
    credentials: "same-origin",
    redirect: "error",
    cache: "no-store",
  });
  if (!response.ok) throw await problemOf(response);
  return response.json();
}
