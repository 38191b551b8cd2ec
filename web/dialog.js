// A dialog that changes one thing. What was typed stays until it is done or given up.

import { Problem } from "./api.js";
import { fill, h } from "./dom.js";
import { refusal } from "./explain.js";
import { command } from "./parts.js";
import { isOver, SIGN_IN } from "./session.js";
import { ownerText } from "./words.js";

/** @import {Children} from "./dom.js" */

/**
 * @typedef {object} Change
 * @property {string} title
 * @property {Children[]} content what is changed, and the fields
 * @property {string} verb the button's word
 * @property {boolean} [danger]
 * @property {() => Promise<void>} act
 */

let last = 0;

/**
 * Shows a dialog; focus goes back to where it was.
 * @param {Change} change
 */
export function ask({ title, content, verb, danger, act }) {
  const id = `dialog-${(last += 1)}`;
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const told = h("div", { class: "told", role: "alert", tabindex: "-1" });
  const submit = /** @type {HTMLButtonElement} */ (
    h("button", { type: "submit", class: danger ? "danger" : "primary" }, verb)
  );
  const away = h("button", { type: "button" }, "Cancel");
  const form = h(
    "form",
    { novalidate: true },
    h("h2", { id }, title),
    ...content,
    told,
    h("div", { class: "dialog-actions" }, away, submit),
  );
  const dialog = /** @type {HTMLDialogElement} */ (
    h("dialog", { "aria-labelledby": id }, form)
  );
  let busy = false;
  away.onclick = () => dialog.close();
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (busy || !isFilled(form, told)) return;
    busy = true;
    submit.setAttribute("aria-disabled", "true");
    fill(told, h("p", { class: "muted" }, "Asking berthd"));
    try {
      await act();
      dialog.close();
    } catch (error) {
      fill(told, ...why(error, verb));
      told.scrollIntoView({ block: "nearest" });
    } finally {
      busy = false;
      submit.removeAttribute("aria-disabled");
    }
  };
  // A link leads to another tab: here something is being typed.
  dialog.addEventListener("click", ({ target }) => {
    const link = target instanceof Element ? target.closest("a") : null;
    if (link) link.target = "_blank";
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    // What opened it may be gone with what was changed.
    const back = before?.isConnected ? before : document.getElementById("main");
    back?.focus({ preventScroll: true });
  });
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * Says which field is wanting, and goes there.
 * @param {HTMLElement} form
 * @param {Element} told
 */
function isFilled(form, told) {
  for (const input of form.querySelectorAll("input")) {
    input.removeAttribute("aria-invalid");
  }
  for (const input of form.querySelectorAll("input")) {
    const wrong = input.validity.valueMissing
      ? "is needed"
      : input.validity.patternMismatch
        ? `isn't understood: ${input.title}`
        : "";
    if (!wrong) continue;
    const name = input.labels?.[0]?.querySelector(".field-name")?.textContent || "This";
    fill(told, h("p", { class: "wrong" }, `${name} ${wrong}.`));
    input.setAttribute("aria-invalid", "true");
    input.focus();
    return false;
  }
  return true;
}

/**
 * Why it wasn't done, and the way out.
 * @param {unknown} error
 * @param {string} verb
 */
function why(error, verb) {
  if (isOver(error)) {
    return [
      h("p", { class: "wrong" }, error.message),
      h(
        "p",
        null,
        `Open a new link in another tab of this browser, then press “${verb}” here again: what you typed stays.`,
      ),
      command(SIGN_IN),
    ];
  }
  if (!(error instanceof Problem)) {
    return [h("p", { class: "wrong" }, "berthd doesn't answer. What you typed stays: try again.")];
  }
  const { owner } = error;
  const whose = owner ? ownerText(owner) : "";
  return [
    ...refusal(error),
    whose ? h("p", { class: "small" }, `Owner: ${whose}`) : null,
  ];
}

/**
 * A field with its name, and what it is for.
 * @param {string} name
 * @param {HTMLElement} input
 * @param {string} [help]
 */
export function field(name, input, help) {
  return h(
    "label",
    { class: "field" },
    h("span", { class: "field-name" }, name),
    input,
    help ? h("span", { class: "small muted" }, help) : null,
  );
}

/**
 * @param {Record<string, any>} options
 * @returns {HTMLInputElement}
 */
export const input = (options) =>
  /** @type {HTMLInputElement} */ (
    h("input", { type: "text", autocomplete: "off", spellcheck: "false", ...options })
  );

const UNITS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** A field for how long something lasts. @param {string} [value] */
export const termInput = (value = "") =>
  input({
    value,
    placeholder: "30m",
    pattern: "\\s*(\\d{1,6}\\s*[smhd]\\s*)*",
    title: "write it like 90s, 30m, 8h or 2d",
    size: "10",
  });

/**
 * Milliseconds as the API takes them; "0" where nothing is given.
 * @param {string} text
 */
export function term(text) {
  let sum = 0;
  for (const [, count, unit] of text.matchAll(/(\d+)\s*([smhd])/g)) {
    sum += Number(count) * UNITS[/** @type {keyof typeof UNITS} */ (unit)];
  }
  return `${sum}`;
}
