// What can be changed from the page, each by a dialog.

import { Problem } from "./api.js";
import { ask, field, input, term, termInput } from "./dialog.js";
import { fill, h } from "./dom.js";
import { refusal } from "./explain.js";
import { badge, deviceLink, list, processList, reservationLink } from "./parts.js";
import { address, word } from "./words.js";

/** @import {Session} from "./session.js" */
/** @import {Actions, Address, Device, Explanation, Group, PolicyVerdict, Reservation} from "./types.d.ts" */

/**
 * A button that opens a dialog.
 * @param {string} text
 * @param {() => void} onclick
 */
const opens = (text, onclick) =>
  h("button", { key: text, type: "button", "aria-haspopup": "dialog", onclick }, `${text}…`);

/**
 * Sends the change of one dialog. What got no answer may have happened: sent again it has the same id,
 * and happens once.
 * @param {Session} session
 */
function sender(session) {
  let requestId = crypto.randomUUID();
  return async (
    /** @type {string} */ method,
    /** @type {string} */ path,
    /** @type {object} */ body,
  ) => {
    try {
      return await session.change(method, path, { ...body, requestId });
    } catch (error) {
      if (error instanceof Problem) requestId = crypto.randomUUID();
      throw error;
    }
  };
}

/** @param {Device} device */
const pathOf = (device) => `devices/${encodeURIComponent(address(device.address))}`;

/**
 * What can be done to a group or a device.
 * @param {Actions} actions
 * @param {Group | null} group
 * @param {Device | null} device
 * @param {Explanation | null} explained
 */
export function objectActions(actions, group, device, explained) {
  const { session } = actions;
  const buttons = [];
  if (group && session.may("orchestrator"))
    buttons.push(opens("Reserve", () => reserve(actions, group, device, explained)));
  if (device && session.may("operator")) {
    if (device.cordon) buttons.push(opens("End the cordon", () => uncordon(actions, device)));
    else buttons.push(opens("Cordon", () => cordon(actions, device)));
    if (device.condition === "QUARANTINED")
      buttons.push(opens("Clear quarantine", () => clearQuarantine(actions, device)));
  }
  return buttons;
}

/**
 * What can be done to a reservation.
 * @param {Actions} actions
 * @param {Reservation} item
 */
export function reservationActions(actions, item) {
  const { now } = actions.session;
  const own = [item.holder?.requester, item.holder?.forIdentity].includes(now?.identity);
  if (item.state === "RELEASED" || !actions.session.may(own ? "holder" : "orchestrator")) return [];
  return [
    opens("Renew", () => renew(actions, item)),
    opens("Release", () => release(actions, item)),
  ];
}

/** @param {Reservation} item */
const devicesOf = (item) => item.targets.flatMap((target) => target.devices);

/**
 * @param {Actions} actions
 * @param {Group} group
 * @param {Device | null} device
 * @param {Explanation | null} explained
 */
function reserve({ session, say }, group, device, explained) {
  const verdicts = explained?.policies || [];
  const first = verdicts.find((verdict) => verdict.may) || verdicts[0];
  const holder = input({ required: true, maxlength: "128" });
  const policy = /** @type {HTMLSelectElement} */ (
    h(
      "select",
      null,
      ...["EXCLUSIVE", "SHARED", "GROUP"].map((name) =>
        h("option", { value: name, selected: name === first?.policy }, word(name)),
      ),
    )
  );
  const forWhom = input({ placeholder: "uid:1000", pattern: "\\s*(uid:\\d+|[a-z]+://\\S+)?\\s*" });
  forWhom.title = "write it like uid:1000";
  const ttl = termInput();
  const take = input({ type: "checkbox" });
  const verdict = h("div", { class: "verdict-now", "aria-live": "polite" });
  const show = () =>
    fill(verdict, ...verdictOf(verdicts.find((item) => item.policy === policy.value)));
  policy.onchange = show;
  show();
  const send = sender(session);
  const name = device ? address(device.address) : `group ${group.number}`;
  ask({
    title: `Reserve ${name}`,
    verb: "Reserve",
    content: [
      h("p", { class: "muted" }, "Devices: ", ...list(members(group))),
      field("Holder", holder, "the VM, pod or operator that gets it"),
      field("Policy", policy),
      verdict,
      field("For", forWhom, "who may fetch the devices; you, where it is empty"),
      field("Time to live", ttl, "like 30m or 8h; without one it lasts until it is released"),
      h(
        "label",
        { class: "check" },
        take,
        h("span", { class: "field-name" }, "Take the devices from their host drivers"),
      ),
    ],
    act: async () => {
      const body = {
        holder: holder.value.trim(),
        policy: policy.value,
        forIdentity: forWhom.value.trim(),
        ttlMs: term(ttl.value),
        takeFromHost: take.checked,
        ...(device ? { devices: [device.address] } : { groups: [group.stableId] }),
      };
      // What berthd answers takes the place of what was expected.
      fill(verdict);
      const made = await send("POST", "reservations", body);
      say("Reserved: ", reservationLink(made.id), ` for ${made.holder.name}.`);
    },
  });
}

/** A device's address, where a link would lead away from the dialog. @param {Address} device */
const named = (device) => h("span", { class: "mono" }, address(device));

/** @param {Group} group */
const members = (group) =>
  group.devices
    .filter((item) => !item.isBridge && item.address)
    .map((item) => named(/** @type {Address} */ (item.address)));

/** @param {PolicyVerdict | undefined} verdict */
function verdictOf(verdict) {
  if (!verdict) return [];
  if (verdict.may || !verdict.refusal) return [badge("good", "possible")];
  return [badge("bad", "would be refused"), ...refusal(verdict.refusal)];
}

/**
 * @param {Actions} actions
 * @param {Reservation} item
 */
function release({ session, say }, item) {
  const processes = item.claims.flatMap((claim) => claim.processes);
  const send = sender(session);
  ask({
    title: `Release what ${item.holder?.name || item.id} has?`,
    verb: "Release",
    danger: true,
    content: [
      h(
        "p",
        null,
        "Holder ",
        h("strong", null, item.holder?.name),
        `, reservation ${item.id}, `,
        word(item.state),
      ),
      h("p", null, "Devices: ", ...list(devicesOf(item).map(named))),
      processes.length
        ? h("div", null, h("p", { class: "small muted" }, "In use by"), ...processList(processes))
        : null,
      h("p", { class: "muted" }, "They are reset, and get back the drivers that they had before."),
    ],
    act: async () => {
      const made = await send("DELETE", `reservations/${item.id}`, { epoch: item.epoch });
      const state =
        made.state === "RELEASED" ? "Released" : `Being released, ${word(made.state)} now`;
      say(`${state}: `, reservationLink(item.id), ` of ${item.holder?.name}.`);
    },
  });
}

/**
 * @param {Actions} actions
 * @param {Reservation} item
 */
function renew({ session, say }, item) {
  const ttl = termInput();
  const send = sender(session);
  ask({
    title: `Renew the reservation of ${item.holder?.name || item.id}`,
    verb: "Renew",
    content: [
      h("p", null, "Devices: ", ...list(devicesOf(item).map(named))),
      field("Time to live", ttl, "from now on, like 30m or 8h; empty keeps how long it was"),
    ],
    act: async () => {
      const body = { epoch: item.epoch, ttlMs: term(ttl.value) };
      await send("POST", `reservations/${item.id}/renew`, body);
      say("Renewed: ", reservationLink(item.id), ` of ${item.holder?.name}.`);
    },
  });
}

/**
 * @param {Actions} actions
 * @param {Device} device
 */
function cordon({ session, say }, device) {
  const note = input({ maxlength: "256" });
  const ttl = termInput();
  const send = sender(session);
  ask({
    title: `Cordon ${address(device.address)}`,
    verb: "Cordon",
    content: [
      h("p", { class: "muted" }, "New reservations of it are refused. Who has it keeps it."),
      field("Reason", note, "for those who are refused; your name, where it is empty"),
      field("For how long", ttl, "like 30m or 8h; without one it lasts until it is ended"),
    ],
    act: async () => {
      const body = { note: note.value.trim(), ttlMs: term(ttl.value) };
      await send("POST", `${pathOf(device)}/cordon`, body);
      say("Cordoned: ", deviceLink(device.address), ".");
    },
  });
}

/**
 * @param {Actions} actions
 * @param {Device} device
 */
function uncordon({ session, say }, device) {
  const send = sender(session);
  ask({
    title: `End the cordon of ${address(device.address)}?`,
    verb: "End the cordon",
    content: [h("p", null, "Why it was cordoned: ", device.cordon?.note || "no reason was given")],
    act: async () => {
      await send("POST", `${pathOf(device)}/uncordon`, {});
      say("Not cordoned any more: ", deviceLink(device.address), ".");
    },
  });
}

/**
 * @param {Actions} actions
 * @param {Device} device
 */
function clearQuarantine({ session, say }, device) {
  const reason = input({ required: true, maxlength: "256" });
  const send = sender(session);
  ask({
    title: `Clear the quarantine of ${address(device.address)}`,
    verb: "Clear quarantine",
    danger: true,
    content: [
      h("p", null, "Why it is quarantined: ", device.conditionNote || "it was not said"),
      h("p", { class: "muted" }, "What it remembers of its last holder reaches the next one."),
      field("Reason", reason, "why it may be given again; it is kept in the history"),
    ],
    act: async () => {
      await send("POST", `${pathOf(device)}/clear-quarantine`, { reason: reason.value.trim() });
      say("Out of quarantine: ", deviceLink(device.address), ".");
    },
  });
}
