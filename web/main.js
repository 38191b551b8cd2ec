// The page's frame: which view is shown, and whether what it shows is current.

import { Problem } from "./api.js";
import { h, fill } from "./dom.js";
import { tick } from "./lease.js";
import { link, parse } from "./router.js";
import { Session, SIGN_IN } from "./session.js";
import { sessionBar, signInLine, speaker } from "./session-bar.js";
import { Store } from "./store.js";
import { clock } from "./words.js";
import { doctorView } from "./views/doctor.js";
import { eventsView } from "./views/events.js";
import { hostView } from "./views/host.js";
import { objectView } from "./views/object.js";
import { reservationsView } from "./views/reservations.js";

/** @import {Context, View} from "./types.d.ts" */

/** @type {Record<string, (main: Element, context: Context) => View>} */
const VIEWS = {
  host: hostView,
  group: objectView,
  device: objectView,
  reservations: reservationsView,
  events: eventsView,
  doctor: doctorView,
};

/** @param {string} id */
const at = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const store = new Store();
const session = new Session();
const say = speaker(at("said"));
const main = at("main");
/** @type {View | null} */
let view = null;
let route = arrive();
/** Where each page was scrolled to, for the way back. */
const scrolled = new Map();
let byLink = false;

function mount() {
  view?.leave?.();
  main.replaceChildren();
  const make = VIEWS[route.view];
  view = make ? make(main, { store, route, setParams, actions: { session, say } }) : missingView();
  view.update(route);
  document.title = title();
  for (const item of document.querySelectorAll("nav [data-view]")) {
    if (item.getAttribute("data-view") === section(route.view))
      item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
}

/** A group or a device is a part of the host. @param {string} name */
const section = (name) => (name === "group" || name === "device" ? "host" : name);

function title() {
  const host = store.host?.simulated ? `Berth (simulated ${store.host.topology})` : "Berth";
  return view ? `${view.title} – ${host}` : host;
}

/** @param {Record<string, string>} params */
function setParams(params) {
  const hash = link(route.view, route.id, params);
  history.replaceState(null, "", hash);
  route = parse(hash);
  view?.update(route);
}

/**
 * The route of the address. The secret of a link goes out of the address bar before anything else is
 * done with it.
 */
function arrive() {
  const to = parse(location.hash);
  if (to.view !== "sign-in") return to;
  history.replaceState(null, "", link("host"));
  signIn(to.id);
  return parse(location.hash);
}

/** @param {string} token */
async function signIn(token) {
  await session.look();
  const { now } = session;
  if (now) {
    say(`You are signed in as ${now.identity} already: sign out first to follow another link.`);
    return;
  }
  try {
    await session.enter(token);
    say(`Signed in as ${session.now?.identity}, ${session.now?.role}.`);
  } catch (error) {
    const why = error instanceof Problem ? error.message : "berthd doesn't answer";
    say(`Not signed in: ${why}. For another link: `, h("code", null, SIGN_IN));
  }
}

function missingView() {
  fill(
    main,
    h(
      "div",
      { class: "card empty" },
      h("h1", null, "There is no such view."),
      h("p", null, h("a", { href: link("host") }, "See the host")),
    ),
  );
  return { title: "Not found", update: () => {} };
}

addEventListener("hashchange", (event) => {
  scrolled.set(new URL(event.oldURL).hash, lastScroll);
  const next = arrive();
  const same = next.view === route.view && next.id === route.id;
  route = next;
  if (same) {
    view?.update(route);
    return;
  }
  mount();
  scrollTo(0, byLink ? 0 : scrolled.get(location.hash) || 0);
  byLink = false;
  // Who uses the keyboard or hears the page goes on from what came.
  main.focus({ preventScroll: true });
});

// The browser scrolls before it says that the address changed.
history.scrollRestoration = "manual";
let lastScroll = 0;
addEventListener("scroll", () => (lastScroll = scrollY), { passive: true });
addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target.closest("a") : null;
  if (target?.classList.contains("skip")) {
    event.preventDefault();
    main.focus();
  } else if (target?.getAttribute("href")?.startsWith("#/")) {
    byLink = true;
    setTimeout(() => (byLink = false), 500);
  }
});

function showFrame() {
  const { host, phase } = store;
  document.body.dataset.phase = phase;
  at("live").textContent = phase === "live" ? "live" : phase === "stale" ? "stale" : "connecting";
  at("simulated").hidden = !host?.simulated;
  at("simulated").textContent = host ? `simulated host ${host.topology}` : "";
  if (host) {
    const names = host.backends
      .filter((item) => item.available)
      .map((item) => item.backend.toLowerCase());
    at("host").textContent =
      `kernel ${host.kernelRelease}, ${names.join(" and ") || "no VFIO back end"}, berthd ${host.version}`;
  }
  document.title = title();
  main.toggleAttribute("data-stale", phase === "stale");
  showLoss();
}

/** Says that the daemon is away: over the page, so that nothing moves. */
function showLoss() {
  const lost = store.phase === "stale" || (store.phase === "connecting" && store.problem !== null);
  at("stale").hidden = !lost;
  if (!lost) return;
  const why =
    store.problem instanceof TypeError
      ? "berthd doesn't answer"
      : store.problem?.message || "berthd doesn't answer";
  const what =
    store.phase === "stale"
      ? `Not current: what you see is from ${clock(store.asOf)} and may have changed.`
      : "Nothing is known of the host yet.";
  const text = `${what} The reason: ${why}. Trying again by itself.`;
  if (at("stale-text").textContent !== text) at("stale-text").textContent = text;
}

/** Tells of the session what the frame shows: who is signed in, or how to be. */
function showSession() {
  document.body.toggleAttribute("data-signed-in", !!session.now);
  fill(at("sign-in"), session.now ? null : signInLine());
  if (session.lost) {
    say(`${session.lost.message}. To sign in again: `, h("code", null, SIGN_IN));
    session.lost = null;
  }
  view?.update(route);
}

at("retry").addEventListener("click", () => store.retryNow());
sessionBar(at("session"), session, say);
session.subscribe(showSession);
let asked = 0;
store.subscribe(() => {
  // A daemon that was away may have forgotten who is signed in.
  if (asked !== store.session) {
    asked = store.session;
    session.look();
  }
  showFrame();
  view?.update(route);
});
mount();
showFrame();
tick(store);
store.run();
