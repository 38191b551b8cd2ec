// Makes elements out of API messages. Text only: nothing from the API is parsed as HTML.

/** An element with properties, classes and children. */
export function h(name, options = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const address = (device) => device?.pci || device?.mdev || device?.platform || "";
const word = (text) => (text || "").toLowerCase().replaceAll("_", " ");
const badge = (kind, text) => h("span", { class: `badge ${kind}` }, text);

/** A size with a unit that keeps it short. */
function size(bytes) {
  let value = Number(bytes);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${Math.round(value * 10) / 10} ${unit}`;
    value /= 1024;
  }
  return `${Math.round(value * 10) / 10} TiB`;
}

/** What a group is searched by. */
export function searchText(group) {
  const parts = [group.stableId, `${group.number}`, word(group.ownership)];
  parts.push(group.owner?.holder || "", ...(group.reservations || []));
  for (const device of group.devices) {
    parts.push(address(device.address), device.driver, device.vendorName);
    parts.push(device.deviceName, device.className);
  }
  return parts.join(" ").toLowerCase();
}

function deviceLine(device) {
  const name = [device.vendorName, device.deviceName].filter(Boolean).join(" ");
  return h(
    "div",
    { class: device.isBridge ? "device muted" : "device" },
    h("code", {}, address(device.address)),
    " ",
    h("span", { class: "name", title: name }, name || device.className || "unknown device"),
  );
}

function ownerCell(group) {
  const kind = word(group.ownership);
  // A reservation without claims blocks others and owns nothing yet.
  const promised = kind === "free" && (group.reservations || []).length > 0;
  const text = promised ? "free, reserved" : kind || "unknown";
  const cell = h("td", {}, badge(promised ? "state-held" : `owner-${kind}`, text));
  if (group.ownerCnt > 1) cell.append(h("span", { class: "muted" }, ` ×${group.ownerCnt}`));
  const owner = group.owner;
  if (owner?.holder) cell.append(h("div", { class: "small" }, owner.holder));
  for (const process of owner?.processes || []) {
    cell.append(h("div", { class: "small" }, `${process.name} (${process.pid})`));
  }
  return cell;
}

function conditionCell(group) {
  const condition = word(group.condition);
  const cell = h("td", {}, condition === "ok" ? "ok" : badge("bad", condition || "unknown"));
  if (group.conditionNote) cell.append(h("div", { class: "small" }, group.conditionNote));
  if (group.drift) cell.append(h("div", { class: "small warn" }, `drift: ${group.drift}`));
  return cell;
}

/** A row of the groups' table. */
export function groupRow(group, onExplain) {
  const label = `group ${group.number}`;
  const drivers = group.devices.map((device) =>
    h("div", { class: "device" }, device.driver ? h("code", {}, device.driver) : "–"),
  );
  return h(
    "tr",
    {},
    h(
      "td",
      {},
      h(
        "button",
        { class: "link", type: "button", title: "Why", onclick: () => onExplain(group) },
        label,
      ),
      h("div", { class: "small muted" }, group.stableId),
    ),
    h("td", {}, ...group.devices.map(deviceLine)),
    h("td", {}, ...drivers),
    ownerCell(group),
    h("td", {}, ...(group.reservations || []).map((id) => h("div", {}, h("code", {}, id)))),
    conditionCell(group),
  );
}

function lease(reservation) {
  if (!reservation.expiresAt) return "–";
  const seconds = Math.round((Date.parse(reservation.expiresAt) - Date.now()) / 1000);
  return seconds > 0 ? `ends in ${seconds} s` : "ended";
}

/** A row of the reservations' table. */
export function reservationRow(reservation) {
  const devices = reservation.targets.flatMap((target) => target.devices.map(address));
  const state = word(reservation.state);
  const cell = h("td", {}, badge(`state-${state}`, state));
  if (reservation.pending) cell.append(h("div", { class: "small" }, `${reservation.pending}…`));
  if (reservation.detail) cell.append(h("div", { class: "small" }, reservation.detail));
  for (const warning of reservation.warnings || []) {
    cell.append(h("div", { class: "small warn" }, warning));
  }
  if (reservation.lastFailure) {
    cell.append(h("div", { class: "small warn" }, reservation.lastFailure.message));
  }
  return h(
    "tr",
    {},
    h("td", {}, h("code", {}, reservation.id)),
    h(
      "td",
      {},
      reservation.holder?.name || "",
      h("div", { class: "small muted" }, `label ${reservation.label}`),
    ),
    h("td", {}, word(reservation.policy)),
    h(
      "td",
      {},
      word(reservation.delivery),
      h("div", { class: "small muted" }, word(reservation.backend)),
    ),
    h(
      "td",
      {},
      ...devices.map((device) => h("div", {}, h("code", {}, device))),
      Number(reservation.memoryBytes) > 0
        ? h("div", { class: "small muted" }, `may pin ${size(reservation.memoryBytes)}`)
        : null,
    ),
    cell,
    h("td", {}, lease(reservation)),
  );
}

/** A row that says that there is nothing. */
export function emptyRow(columns, text) {
  return h("tr", {}, h("td", { colspan: columns, class: "muted" }, text));
}

/** A line of the event list. */
export function eventLine(event) {
  const time = new Date(event.time);
  const about = [event.reservation, ...(event.groups || [])].filter(Boolean);
  about.push(...(event.devices || []).map(address));
  return h(
    "li",
    {},
    h("span", { class: "seq" }, event.seq),
    h("time", { datetime: event.time, title: time.toLocaleString() }, time.toLocaleTimeString()),
    h("strong", {}, event.kind),
    h("span", {}, about.join(" ")),
    h("span", { class: "muted" }, [event.actor, event.cause].filter(Boolean).join(", ")),
  );
}

function verdict(policy) {
  const name = word(policy.policy);
  if (policy.may) return h("li", {}, badge("good", name), " may be used now");
  const reason = policy.refusal?.reason || "";
  const text = policy.refusal?.message || "may not be used now";
  return h("li", {}, badge("bad", name), " ", h("code", {}, reason), ` ${text}`);
}

function deviceVerdict(device) {
  const item = h(
    "li",
    {},
    device.blocks ? badge("bad", "blocks") : badge("good", "ok"),
    " ",
    h("code", {}, address(device.device?.address)),
    ` ${device.text}`,
  );
  for (const process of device.processes || []) {
    const what = process.what ? `: ${process.what}` : "";
    item.append(h("div", { class: "small" }, `${process.name} (${process.pid})${what}`));
  }
  if (device.resolve) item.append(h("pre", {}, device.resolve));
  return item;
}

/** Why a group can or can't be given away. */
export function explanation(answer) {
  const parts = [h("p", { class: "summary" }, answer.summary)];
  parts.push(h("ul", { class: "verdicts" }, ...answer.devices.map(deviceVerdict)));
  parts.push(h("ul", { class: "verdicts" }, ...answer.policies.map(verdict)));
  for (const note of answer.hostNotes || []) parts.push(h("p", { class: "muted" }, note));
  return parts;
}
