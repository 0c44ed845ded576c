/**
 * The Remote Graph node: its graph and endpoint are chosen from lists, its sockets are named and typed after the graph's contract.
 *
 * The contract is stored in the node, so a workflow opens as it was saved whether or not the endpoint is there. What the endpoint
 * serves now is looked at when a workflow was loaded, and when a run has stopped at the node: if ports have changed, the node says so
 * and keeps its sockets and links until it is told to follow. The server refuses to run it with other ports; whether the graph was
 * replaced since the last run it asks by itself.
 */
import { ask, tell } from "./request.js";
import { endpointsOf, graphsAt, offer, refreshLists } from "./choices.js";
import { differences, essence, readContract, tooMany } from "./contract.js";
import { FOLLOW, badgeOf, say, showSeed } from "./signs.js";
import { setSockets } from "./sockets.js";
import { after, widgetOf } from "./widgets.js";

/** @typedef {import("./contract.js").Contract} Contract */

const AUTO = "auto";
/** The nodes with this behaviour. */
const attached = new WeakSet();
let listening = false;

/**
 * Give a node its behaviour; one that was made before this module was loaded may have its values already.
 * @param {object} node
 * @param {object} app
 */
export function attach(node, app) {
  node.yggdrasill = { app, problem: null, offered: null, follow: () => follow(node, node.yggdrasill.offered) };
  attached.add(node);
  listen(app);
  const graph = widgetOf(node, "graph");
  const endpoint = widgetOf(node, "endpoint");
  offer(graph, () => graphsAt(app, endpoint.value));
  offer(endpoint, () => [AUTO, ...endpointsOf(app)]);
  after(graph, "callback", () => choose(node));
  after(endpoint, "callback", () => {
    refreshLists(app, endpoint.value);
    void choose(node);
  });
  after(node, "onConfigure", () => settle(node));
  after(node, "onExecuted", (shown) => sayWhere(node, shown));
  for (const widget of widgetOf(node, "seed")?.linkedWidgets ?? []) widget.label = "control after generate";
  node.badges.push(() => badgeOf(node));
  if (!app.configuringGraph) refreshLists(app, endpoint.value);
  settle(node);
  if (graph.value && !storedContract(node)) void choose(node);
}

/** Say that a run took place here and not at the endpoint. */
function sayWhere(node, shown) {
  const detail = shown?.yggdrasill?.[0]?.ran_here;
  if (!detail) return;
  say(node, { text: "ran here", tone: "warn", detail });
  tell(node.yggdrasill.app, "warn", `Remote Graph “${settings(node).graph}” ran here`, detail);
}

/** Let the node look like the contract it stores. */
function settle(node) {
  const contract = storedContract(node);
  if (contract) setSockets(node, contract, contract);
  showSeed(node, contract);
}

/**
 * Compare the contract a loaded node was saved with to what its endpoint serves now.
 * @param {object} node
 */
export async function check(node) {
  const { app } = node.yggdrasill;
  const stored = storedContract(node);
  const { graph, endpoint } = settings(node);
  refreshLists(app, endpoint);
  if (!stored || !graph) return;
  try {
    const { contract } = await ask(app, "contract", { graph, endpoint });
    if (node.graph) notice(node, stored, contract);
  } catch (error) {
    say(node, { text: error.kind === "UnknownGraph" ? "no longer served" : "cannot be asked", tone: "warn", detail: error.message });
  }
}

// -- runs -------------------------------------------------------------------------------------------------------

/**
 * Hear of runs: a node that begins leaves behind what was odd about it before; where one stopped, its ports may not be the graph's any more.
 * @param {object} app
 */
function listen(app) {
  if (listening) return;
  listening = true;
  app.api.addEventListener("executing", ({ detail }) => {
    const node = attachedAt(app, detail);
    if (node?.yggdrasill.problem?.tone === "warn") say(node, null);
  });
  app.api.addEventListener("execution_error", ({ detail }) => {
    const node = attachedAt(app, detail.node_id);
    if (node && !node.yggdrasill.offered) void check(node);
  });
}

/**
 * @param {object} app
 * @param {string | null} path the ids of the subgraphs around a node, and its own
 * @returns {object | null} the node, if it is one of these
 */
function attachedAt(app, path) {
  let node = null;
  let graph = app.rootGraph ?? app.graph;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return attached.has(node) ? node : null;
}

// -- choosing ---------------------------------------------------------------------------------------------------

/**
 * Ask for the contract of the graph that was chosen, and let the sockets follow it.
 * @param {object} node
 */
async function choose(node) {
  const { app } = node.yggdrasill;
  const { graph, endpoint } = settings(node);
  if (!graph) return;
  try {
    const { contract } = await ask(app, "contract", { graph, endpoint });
    const now = settings(node);
    if (node.graph && now.graph === graph && now.endpoint === endpoint) follow(node, contract);
  } catch (error) {
    say(node, { text: "not found", tone: "warn", detail: error.message });
    tell(app, "warn", `Remote Graph “${graph}”`, error.message);
  }
}

/**
 * Take a contract over: store it, and make the sockets those of its ports. Links stay with ports of the same name, and with a port
 * that was renamed in its place.
 * @param {object} node
 * @param {Contract} contract
 */
function follow(node, contract) {
  const { app } = node.yggdrasill;
  const detail = tooMany(contract);
  if (detail) {
    say(node, { text: "too many ports", tone: "error", detail });
    tell(app, "warn", `Remote Graph “${contract.graph_id}” has too many ports`, detail);
    return;
  }
  node.graph.beforeChange?.();
  const lost = setSockets(node, storedContract(node), contract);
  widgetOf(node, "contract").value = JSON.stringify(essence(contract));
  node.yggdrasill.offered = null;
  showSeed(node, contract);
  say(node, null);
  node.graph.afterChange?.();
  if (lost.length) tell(app, "warn", `Remote Graph “${contract.graph_id}”`, `Unlinked, for the graph has no such port now: ${lost.join(", ")}`);
}

/**
 * Say on the node that its ports are not the graph's any more, or that all is well.
 * @param {object} node
 * @param {Contract} stored
 * @param {Contract} contract
 */
function notice(node, stored, contract) {
  const changes = [...differences(stored.inputs, contract.inputs, "input"), ...differences(stored.outputs, contract.outputs, "output")];
  if (!changes.length) {
    widgetOf(node, "contract").value = JSON.stringify(essence(contract));
    say(node, null);
    return;
  }
  node.yggdrasill.offered = contract;
  say(node, { text: "contract changed", tone: "error", detail: changes.join("; ") });
  tell(node.yggdrasill.app, "warn", `Remote Graph “${contract.graph_id}” has other ports now`, `${changes.join("; ")}. Press “${FOLLOW}” on the node.`);
}

// -- what is stored in the node ----------------------------------------------------------------------------------

function settings(node) {
  return { graph: widgetOf(node, "graph").value, endpoint: widgetOf(node, "endpoint").value || AUTO };
}

/** @returns {Contract | null} */
function storedContract(node) {
  return readContract(widgetOf(node, "contract").value);
}
