// Who is signed in, in the page's frame, and what a change came to.

import { fill, h } from "./dom.js";
import { ending } from "./lease.js";
import { command } from "./parts.js";
import { SIGN_IN } from "./session.js";

/** @import {Child} from "./dom.js" */
/** @import {Session} from "./session.js" */

/**
 * @param {Element} place
 * @param {Session} session
 * @param {(...what: Child[]) => void} say
 */
export function sessionBar(place, session, say) {
  async function leave() {
    try {
      await session.leave();
      say("Signed out.");
    } catch {
      say("You are still signed in: berthd doesn't answer.");
    }
  }
  session.subscribe(() => {
    const { now, until } = session;
    if (!now) {
      fill(place);
      return;
    }
    const who = [now.identity, now.role, now.label && `label ${now.label}`];
    fill(
      place,
      h("span", { class: "who-signed", title: "Signed in as" }, who.filter(Boolean).join(", ")),
      h("span", { class: "muted" }, ending(until)),
      h("button", { type: "button", class: "quiet", onclick: leave }, "Sign out"),
    );
  });
}

/** How to sign in, in a line. */
export const signInLine = () =>
  h(
    "div",
    { key: "sign-in", class: "sign-in" },
    h("p", { class: "small muted" }, "This page reads. To change things, open the link of"),
    command(SIGN_IN),
  );

/**
 * Says what a change came to, to everybody: it is read aloud, and stays until it is put away.
 * @param {HTMLElement} place
 * @returns {(...what: Child[]) => void}
 */
export function speaker(place) {
  return (...what) => {
    place.hidden = what.length === 0;
    const away = h("button", { type: "button", class: "quiet" }, "Close");
    away.onclick = () => {
      place.hidden = true;
    };
    place.replaceChildren(...(what.length ? [h("p", { role: "status" }, ...what), away] : []));
  };
}
