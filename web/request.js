/**
 * Requests to this server, and messages to the user.
 */

/** The error of a request; `kind` is the class of the server's error. */
export class RequestError extends Error {
  /**
   * @param {string} message
   * @param {string} kind
   */
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

/**
 * Request a route of the editor on this server.
 * @param {object} app ComfyUI's application
 * @param {string} path such as "endpoints"
 * @param {Record<string, string>} [query]
 * @param {object} [body] JSON to POST; without it the request is a GET
 * @param {number} [timeout] milliseconds
 * @returns {Promise<any>} the JSON of the answer
 * @throws {RequestError} the server's error message, or the reason why there is none
 */
export async function request(app, path, query = {}, body = undefined, timeout = 20_000) {
  const route = `/yggdrasill/ui/${path}?${new URLSearchParams(query)}`;
  const headers = { "X-Yggdrasill-Editor": "1", ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    const signal = AbortSignal.timeout(timeout);
    // through ComfyUI's own function, which knows its prefix, proxies and the user of a server with several
    response = await app.api.fetchApi(route, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch {
    throw new RequestError("This ComfyUI does not respond. Is it still running?", "Unreachable");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const error = answer?.error;
  if (error?.message) throw new RequestError(error.message, error.type);
  throw new RequestError(`This ComfyUI is not a Yggdrasill endpoint (HTTP ${response.status}). See its log for the reason.`, "Unreachable");
}

/**
 * Show a message.
 * @param {object} app
 * @param {"success" | "info" | "warn" | "error"} severity
 * @param {string} summary
 * @param {string} detail
 */
export function notify(app, severity, summary, detail) {
  const life = severity === "error" ? 20_000 : 10_000;
  app.extensionManager.toast.add({ severity, summary, detail, life });
}
