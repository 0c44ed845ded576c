/**
 * Asking this server: what can be called from it, serving the open workflow on it, letting it know another endpoint. Graph Input and
 * Graph Output nodes take their type from what they are linked to, so that the workflow says what it takes and gives.
 */

const INPUT_NODE = "YggdrasillGraphInput";
const OUTPUT_NODE = "YggdrasillGraphOutput";
const ANY = "*";
/** The type that a link gave to a port; another one was typed by hand and stays. */
const FOUND_TYPE = "yggdrasill.found_type";

/** The classes of nodes that mark ports. */
export const PORT_NODES = new Set([INPUT_NODE, OUTPUT_NODE]);

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

/** What was heard of this server: the names of endpoints, and the graphs at each. */
const heard = { endpoints: [], graphs: new Map(), asked: new Map() };
const FRESH_MS = 3000;

/**
 * @param {object} app
 * @returns {string[]} the names of endpoints, as they were when last asked; asks again
 */
export function endpointsOf(app) {
  void refreshEndpoints(app);
  return heard.endpoints;
}

/**
 * @param {object} app
 * @param {string} endpoint
 * @returns {string[]} the graphs there, as `endpointsOf`
 */
export function graphsAt(app, endpoint) {
  void refreshGraphs(app, endpoint);
  return heard.graphs.get(endpoint) ?? [];
}

/**
 * Ask for both lists, so that they are there when one is opened.
 * @param {object} app
 * @param {string} endpoint
 */
export function refreshLists(app, endpoint) {
  void refreshEndpoints(app);
  void refreshGraphs(app, endpoint);
}

async function refreshEndpoints(app) {
  const answer = await fresh(app, "endpoints", {});
  if (answer) heard.endpoints = answer.endpoints;
}

async function refreshGraphs(app, endpoint) {
  const answer = await fresh(app, "graphs", { endpoint });
  if (answer) heard.graphs.set(endpoint, answer.graphs.map(({ graph_id }) => graph_id));
}

/** The answer, or null if the same was asked a moment ago or cannot be answered: the list then stays as it was. */
async function fresh(app, path, query) {
  const question = `${path} ${query.endpoint ?? ""}`;
  if (performance.now() - (heard.asked.get(question) ?? -FRESH_MS) < FRESH_MS) return null;
  heard.asked.set(question, performance.now());
  return ask(app, path, query).catch(() => null);
}

/**
 * Deploy the open workflow on this server under a name that the user gives, and say where it is served.
 * @param {object} app
 */
export async function serveWorkflow(app) {
  const { output: prompt } = await app.graphToPrompt();
  const classes = Object.values(prompt).map((node) => node.class_type);
  if (!classes.includes(OUTPUT_NODE)) {
    const advice = "Add a Graph Output node for each value that callers are to get, and a Graph Input node for each they are to give.";
    tell(app, "warn", "This workflow gives nothing to a caller", advice);
    return;
  }
  const extra = app.graph.extra;
  const known = extra.yggdrasill?.served_as ?? app.extensionManager.workflow?.activeWorkflow?.filename ?? "workflow";
  const asked = { title: "Serve this workflow", message: "The name that callers use", defaultValue: known };
  const name = (await app.extensionManager.dialog.prompt(asked))?.trim();
  if (!name) return;
  try {
    const served = await deploy(app, name, prompt);
    if (!served) return;
    extra.yggdrasill = { ...extra.yggdrasill, served_as: name };
    const ports = `${served.inputs.join(", ") || "nothing"} → ${served.outputs.join(", ")}`;
    tell(app, "success", `Served as “${name}”`, `${ports}\nat ${served.url ?? location.origin}`);
  } catch (error) {
    tell(app, "error", "The workflow is not served", error.message);
  }
}

/**
 * @param {object} app
 * @param {string} name
 * @param {object} prompt in ComfyUI's API format
 * @returns {Promise<object | null>} what is served now; null if the user kept what was served before
 */
async function deploy(app, name, prompt) {
  const body = { graph_id: name, prompt };
  try {
    return await ask(app, "serve", {}, body);
  } catch (error) {
    if (error.kind !== "DuplicateName") throw error;
  }
  const message = `Another graph is served as “${name}”. Nodes that call it will call this workflow.`;
  const agreed = await app.extensionManager.dialog.confirm({ title: "Replace it?", message, type: "overwrite" });
  return agreed ? ask(app, "serve", {}, { ...body, replace: true }) : null;
}

/**
 * Let this server know an endpoint whose address and token the user gives; it is kept if it answers.
 * @param {object} app
 */
export async function addEndpoint(app) {
  const { dialog } = app.extensionManager;
  const title = "Add an endpoint";
  const url = (await dialog.prompt({ title, message: "Its address", placeholder: "http://192.168.1.20:8188" }))?.trim();
  if (!url) return;
  const where = "Its token: the text in the file user/yggdrasill/token of that ComfyUI";
  const token = (await dialog.prompt({ title, message: where }))?.trim();
  if (token === undefined) return;
  const known = URL.canParse(url) ? new URL(url).hostname : "";
  const name = (await dialog.prompt({ title, message: "The name that workflows use for it", defaultValue: known }))?.trim();
  if (!name) return;
  try {
    const { graphs } = await ask(app, "endpoints", {}, { name, url, token });
    const served = graphs.map(({ graph_id }) => graph_id).join(", ") || "no graph yet";
    tell(app, "success", `Endpoint “${name}” is known`, `It serves ${served}.`);
  } catch (error) {
    tell(app, "error", `Endpoint “${name}” was not added`, error.message);
  }
}

/**
 * Let a Graph Input or Graph Output take its type from what it is linked to.
 * @param {object} node
 * @param {object} app
 */
export function attachPort(node, app) {
  const before = node.onConnectionsChange;
  node.onConnectionsChange = function (side, index, connected, link, slot) {
    before?.apply(this, arguments);
    if (connected && link && !app.configuringGraph) takeType(this, slot, link);
  };
}

/**
 * @param {object} node
 * @param {object} slot the one that was linked
 * @param {object} link
 */
function takeType(node, slot, link) {
  const widget = node.widgets?.find(({ name }) => name === "type");
  const ends = link.resolve(node.graph);
  const other = node.comfyClass === OUTPUT_NODE ? (ends.output ?? ends.subgraphInput) : (ends.input ?? ends.subgraphOutput);
  const marks = slot.name === (node.comfyClass === OUTPUT_NODE ? "value" : node.outputs[0].name);
  if (!widget || !marks || !other?.type || other.type === ANY) return;
  if (widget.value !== ANY && widget.value !== node.properties[FOUND_TYPE]) return;
  widget.value = String(other.type);
  node.properties[FOUND_TYPE] = widget.value;
}
