// The address bar: `#/view/id?parameters`.

/** @import {Route} from "./types.d.ts" */

/**
 * @param {string} hash
 * @returns {Route}
 */
export function parse(hash) {
  const [path, query] = splitOnce(hash.replace(/^#\/?/, ""), "?");
  const [view, id] = splitOnce(path, "/");
  return { view: view || "host", id: decode(id), params: new URLSearchParams(query) };
}

/**
 * The link to a view; empty parameters are left out.
 * @param {string} view
 * @param {string} [id]
 * @param {Record<string, string>} [params]
 */
export function link(view, id = "", params = {}) {
  const given = Object.entries(params).filter(([, value]) => value !== "");
  const query = new URLSearchParams(given).toString();
  const path = id ? `#/${view}/${encodeURIComponent(id).replaceAll("%3A", ":")}` : `#/${view}`;
  return query ? `${path}?${query}` : path;
}

/**
 * @param {string} text
 * @param {string} mark
 */
function splitOnce(text, mark) {
  const at = text.indexOf(mark);
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
