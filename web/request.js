/**
 * Asking this server, and telling the user what came of it.
 */

/** What the server said went wrong; `kind` is the name of the error's class. */
export class Refused extends Error {
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
 * Ask the editor's routes of this server.
 * @param {object} app ComfyUI's application
 * @param {string} path such as "endpoints"
 * @param {Record<string, string>} [query]
 * @param {object} [body] JSON to POST; without one it is a GET
 * @param {number} [patience] milliseconds
 * @returns {Promise<any>} the JSON of the answer
 * @throws {Refused} the server's own words, or why there are none
 */
export async function ask(app, path, query = {}, body = undefined, patience = 20_000) {
  const url = app.api.fileURL(`/yggdrasill/ui/${path}?${new URLSearchParams(query)}`);
  const headers = { "X-Yggdrasill-Editor": "1", ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    const signal = AbortSignal.timeout(patience);
    response = await fetch(url, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch {
    throw new Refused("this ComfyUI does not answer; is it still running?", "Unreachable");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const error = answer?.error;
  if (error?.message) throw new Refused(error.message, error.type);
  throw new Refused(`this ComfyUI is no Yggdrasill endpoint (HTTP ${response.status}); its log says why`, "Unreachable");
}

/**
 * Show a message.
 * @param {object} app
 * @param {"success" | "info" | "warn" | "error"} severity
 * @param {string} summary
 * @param {string} detail
 */
export function tell(app, severity, summary, detail) {
  const life = severity === "error" ? 20_000 : 10_000;
  app.extensionManager.toast.add({ severity, summary, detail, life });
}
