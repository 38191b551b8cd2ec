// Server-sent events over fetch. An EventSource would hide what the page has to know: the problem
// that a refused stream answers with, and the comments that tell a silent daemon from a hung one.

import { Problem, problemOf } from "./api.js";

/** The daemon says something at least every 15 s. */
const SILENCE_MS = 40_000;

/** Cuts a stream of text into its messages. */
export class Parser {
  #rest = "";

  /**
   * The messages that are complete with this text; a comment is none.
   * @param {string} text
   * @returns {{event: string, data: string, id: string}[]}
   */
  feed(text) {
    const blocks = (this.#rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = blocks.pop() || "";
    return blocks.map(message).filter((item) => item.data !== "");
  }
}

/** @param {string} block */
function message(block) {
  const found = { event: "", data: "", id: "" };
  /** @type {string[]} */
  const data = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") data.push(value);
    else if (name === "event" || name === "id") found[name] = value;
  }
  found.data = data.join("\n");
  return found;
}

/**
 * Follows the events after `since` until the stream ends or breaks. `onOpen` is called when the
 * daemon has accepted.
 * @param {string} since
 * @param {AbortController} control
 * @param {{onOpen: () => void, onEvent: (event: import("./types.d.ts").Event) => void}} on
 */
export async function follow(since, control, { onOpen, onEvent }) {
  const headers = { accept: "text/event-stream", "last-event-id": since };
  const alive = watchdog(() => control.abort(new Problem({ detail: "berthd has gone silent" })));
  try {
    const response = await fetch("/api/v1/events", { headers, signal: control.signal });
    if (!response.ok || !response.body) throw await problemOf(response);
    onOpen();
    const parser = new Parser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive.seen();
      for (const item of parser.feed(value)) {
        if (item.event === "problem") throw new Problem(JSON.parse(item.data));
        if (item.event === "") onEvent(JSON.parse(item.data));
      }
    }
  } finally {
    alive.stop();
  }
}

/** @param {() => void} onSilence */
function watchdog(onSilence) {
  let timer = setTimeout(onSilence, SILENCE_MS);
  return {
    seen() {
      clearTimeout(timer);
      timer = setTimeout(onSilence, SILENCE_MS);
    },
    stop: () => clearTimeout(timer),
  };
}
