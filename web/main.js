// Keeps what is shown equal to what the API says: lists once, then events.

import { follow, get } from "./api.js";
import {
  emptyRow,
  eventLine,
  explanation,
  groupRow,
  h,
  reservationRow,
  searchText,
} from "./render.js";

const PAGE_ROWS = 200;
const EVENT_LINES = 200;
const BATCH_MS = 150;
const RETRY_MS = 3000;
// Beyond this many touched objects one list costs less than many single reads.
const SINGLE_READS = 20;

const at = (id) => document.getElementById(id);
const state = {
  groups: new Map(),
  reservations: new Map(),
  owner: "",
  rows: PAGE_ROWS,
  explained: null,
};

function showProblem(error) {
  const box = at("problem");
  box.hidden = !error;
  box.textContent = error ? [error.message, ...(error.resolve || [])].join(" – ") : "";
}

function showLive(text, kind) {
  at("live").textContent = text;
  at("live").className = `live ${kind}`;
}

function showHost(host) {
  const backends = host.backends.filter((item) => item.available);
  const names = backends.map((item) => item.backend.toLowerCase()).join(", ");
  at("host").textContent = `kernel ${host.kernelRelease} · ${names || "no back end"} · berthd ${host.version}`;
  at("simulated").hidden = !host.simulated;
  at("simulated").textContent = `simulated host ${host.topology}`;
  document.title = host.simulated ? `Berth (simulated ${host.topology})` : "Berth";
}

/** Groups of bridges alone are shown when asked for: nobody reserves them. */
function shownGroups() {
  const all = [...state.groups.values()];
  if (at("bridges").checked) return all;
  return all.filter((group) => group.devices.some((device) => !device.isBridge));
}

function showOwners(groups) {
  const counts = new Map();
  for (const group of groups) {
    counts.set(group.ownership, (counts.get(group.ownership) || 0) + 1);
  }
  if (state.owner && !counts.has(state.owner)) state.owner = "";
  const chip = (kind, text) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": `${state.owner === kind}`,
        onclick: () => {
          state.owner = kind;
          state.rows = PAGE_ROWS;
          showGroups();
        },
      },
      text,
    );
  const chips = [...counts].sort().map(([kind, n]) => chip(kind, `${kind.toLowerCase()} ${n}`));
  at("owners").replaceChildren(chip("", "all"), ...chips);
}

function showGroups() {
  const shown = shownGroups();
  showOwners(shown);
  const wanted = at("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const found = shown
    .filter((group) => !state.owner || group.ownership === state.owner)
    .filter((group) => {
      const text = wanted.length ? searchText(group) : "";
      return wanted.every((part) => text.includes(part));
    })
    .sort((one, other) => one.number - other.number);
  const rows = found.slice(0, state.rows).map((group) => groupRow(group, explain));
  at("groups").replaceChildren(...(rows.length ? rows : [emptyRow(6, "no such group")]));
  at("groups-count").textContent =
    found.length === shown.length ? found.length : `${found.length} of ${shown.length}`;
  at("more").hidden = found.length <= state.rows;
  at("more").textContent = `Show ${Math.min(PAGE_ROWS, found.length - state.rows)} more`;
}

function showReservations() {
  const all = [...state.reservations.values()];
  all.sort((one, other) => (one.createdAt < other.createdAt ? 1 : -1));
  const rows = all.map(reservationRow);
  at("reservations").replaceChildren(...(rows.length ? rows : [emptyRow(7, "no reservations")]));
  at("reservations-count").textContent = all.length;
}

async function explain(group) {
  state.explained = group.stableId;
  try {
    const answer = await get(`groups/${encodeURIComponent(group.stableId)}/explain`);
    at("explain-title").textContent = `Why: group ${group.number}`;
    at("explain-body").replaceChildren(...explanation(answer));
    at("explain").hidden = false;
    at("explain").scrollIntoView({ block: "nearest" });
  } catch (error) {
    showProblem(error);
  }
}

/** Objects that events touched and that are read again together. */
const touched = { groups: new Set(), reservations: new Set(), timer: 0 };

function touch(event) {
  for (const group of event.groups || []) touched.groups.add(group);
  if (event.reservation) touched.reservations.add(event.reservation);
  if (!touched.timer) touched.timer = setTimeout(refresh, BATCH_MS);
}

async function readInto(map, ids, list, key, single) {
  if (ids.length > SINGLE_READS) {
    const answer = await get(list);
    map.clear();
    for (const item of answer[list]) map.set(item[key], item);
    return;
  }
  for (const id of ids) {
    try {
      const item = await get(`${list}/${encodeURIComponent(id)}`);
      if (single(item)) map.set(item[key], item);
      else map.delete(id);
    } catch (error) {
      if (error.reason !== "NOT_FOUND") throw error;
      map.delete(id);
    }
  }
}

async function refresh() {
  const groups = [...touched.groups];
  const reservations = [...touched.reservations];
  touched.groups.clear();
  touched.reservations.clear();
  touched.timer = 0;
  try {
    await readInto(state.groups, groups, "groups", "stableId", () => true);
    const kept = (item) => item.state !== "RELEASED";
    await readInto(state.reservations, reservations, "reservations", "id", kept);
    showProblem(null);
  } catch (error) {
    showProblem(error);
  }
  showGroups();
  showReservations();
  const explained = state.groups.get(state.explained);
  if (explained && groups.includes(state.explained)) explain(explained);
}

function addEvent(event) {
  const list = at("events");
  list.prepend(eventLine(event));
  while (list.childElementCount > EVENT_LINES) list.lastElementChild.remove();
}

async function start() {
  try {
    const [host, groups, reservations] = await Promise.all([
      get("capabilities"),
      get("groups"),
      get("reservations"),
    ]);
    showHost(host);
    state.groups = new Map(groups.groups.map((group) => [group.stableId, group]));
    const current = reservations.reservations.filter((item) => item.state !== "RELEASED");
    state.reservations = new Map(current.map((item) => [item.id, item]));
    showGroups();
    showReservations();
    showProblem(null);
    // The older list decides where the stream begins: an event seen twice does no harm.
    const since = [groups.resumeSeq, reservations.resumeSeq].map(BigInt).sort((a, b) => (a < b ? -1 : 1))[0];
    await showPast(since);
    follow(since, {
      onEvent: (event) => {
        addEvent(event);
        touch(event);
      },
      onOpen: () => showLive("live", "on"),
      onLost: () => showLive("reconnecting", "off"),
      onGap: () => setTimeout(start, RETRY_MS),
    });
  } catch (error) {
    showProblem(error);
    showLive("not connected", "off");
    setTimeout(start, RETRY_MS);
  }
}

/** The last events before the stream begins. */
async function showPast(until) {
  const from = until > 50n ? until - 50n : 0n;
  at("events").replaceChildren();
  try {
    const past = await get(`events?sinceSeq=${from}&limit=50`);
    for (const event of past.events) if (BigInt(event.seq) <= until) addEvent(event);
  } catch (error) {
    // Compacted or not: the stream shows what comes.
    if (error.reason !== "EVENTS_COMPACTED") throw error;
  }
}

at("filter").addEventListener("input", () => {
  state.rows = PAGE_ROWS;
  showGroups();
});
at("bridges").addEventListener("change", showGroups);
at("more").addEventListener("click", () => {
  state.rows += PAGE_ROWS;
  showGroups();
});
at("explain-close").addEventListener("click", () => {
  state.explained = null;
  at("explain").hidden = true;
});
setInterval(() => {
  if ([...state.reservations.values()].some((item) => item.expiresAt)) showReservations();
}, 1000);
start();
