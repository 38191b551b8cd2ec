// The REST client: documents by fetch, events by EventSource.

/** An answer of the API that is not a success: a problem of RFC 9457. */
export class Problem extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "the request failed");
    this.reason = problem.reason || "";
    this.resolve = problem.resolve || [];
  }
}

/** GETs a JSON document below /api/v1. */
export async function get(path) {
  const response = await fetch(`/api/v1/${path}`, { headers: { accept: "application/json" } });
  if (response.ok) return response.json();
  const kind = response.headers.get("content-type") || "";
  if (kind.startsWith("application/problem+json")) throw new Problem(await response.json());
  throw new Problem({ detail: `${path}: HTTP status ${response.status}` });
}

/**
 * Follows the events after `since`. The browser reconnects by itself and says which event it saw
 * last; what it can't resume from (`onGap`) asks for the lists again.
 */
export function follow(since, { onEvent, onOpen, onLost, onGap }) {
  const source = new EventSource(`/api/v1/events?since=${encodeURIComponent(since)}`);
  const gap = () => {
    source.close();
    onGap();
  };
  source.addEventListener("open", onOpen);
  source.addEventListener("message", (message) => onEvent(JSON.parse(message.data)));
  source.addEventListener("problem", gap);
  source.addEventListener("error", () => {
    onLost();
    if (source.readyState === EventSource.CLOSED) gap();
  });
  return source;
}
