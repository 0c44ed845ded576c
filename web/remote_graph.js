/**
 * The Remote Graph node: its graph and endpoint are chosen from lists, and its sockets have the names and types of the graph's contract.
 *
 * The contract is stored in the node, so a workflow opens as it was saved even if the endpoint is not reachable. The current contract is
 * requested when a workflow was loaded, and when a run has failed at the node. If the ports have changed, the node shows it and keeps its
 * sockets and links until the user applies the change. The server refuses to run the node with other ports, and checks itself whether the graph
 * was replaced since the last run.
 */
import { notify, request } from "./request.js";
import { endpointsOf, graphsAt, setChoices, refreshLists } from "./choices.js";
import { differences, essence, readContract, portLimitProblem } from "./contract.js";
import { UPDATE, badgeOf, setProblem, showSeed } from "./node_status.js";
import { removeHiddenSockets, setSockets } from "./sockets.js";
import { after, widgetOf } from "./widgets.js";

/** @typedef {import("./contract.js").Contract} Contract */

const AUTO = "auto";
/** The nodes with this behaviour. */
const attached = new WeakSet();
let listening = false;

/**
 * Give a node its behaviour. A node created before this module was loaded may already have values.
 * @param {object} node
 * @param {object} app
 */
export function attach(node, app) {
  node.yggdrasill = { app, problem: null, newContract: null, update: () => applyContract(node, node.yggdrasill.newContract) };
  attached.add(node);
  listen(app);
  const graph = widgetOf(node, "graph");
  const endpoint = widgetOf(node, "endpoint");
  setChoices(graph, () => graphsAt(app, endpoint.value));
  setChoices(endpoint, () => [AUTO, ...endpointsOf(app)]);
  after(graph, "callback", () => choose(node));
  after(endpoint, "callback", () => {
    refreshLists(app, endpoint.value);
    void choose(node);
  });
  after(node, "onConfigure", () => applyStored(node));
  after(node, "onExecuted", (shown) => showLocalRun(node, shown));
  for (const widget of widgetOf(node, "seed")?.linkedWidgets ?? []) widget.label = "control after generate";
  node.badges.push(() => badgeOf(node));
  if (!app.configuringGraph) refreshLists(app, endpoint.value);
  applyStored(node);
  if (graph.value && !storedContract(node)) void choose(node);
}

/** Show that a run took place on this server instead of the endpoint. */
function showLocalRun(node, shown) {
  const detail = shown?.yggdrasill?.[0]?.ran_here;
  if (!detail) return;
  setProblem(node, { text: "ran locally", tone: "warn", detail });
  notify(node.yggdrasill.app, "warn", `Remote Graph “${settings(node).graph}” ran locally`, detail);
}

/** Show the sockets of the stored contract. */
function applyStored(node) {
  const contract = storedContract(node);
  if (contract) setSockets(node, contract, contract);
  showSeed(node, contract);
  removeHiddenSockets(node);
}

/**
 * Compare the stored contract of a loaded node with the one that its endpoint serves now.
 * @param {object} node
 */
export async function check(node) {
  const { app } = node.yggdrasill;
  const stored = storedContract(node);
  const { graph, endpoint } = settings(node);
  refreshLists(app, endpoint);
  if (!stored || !graph) return;
  try {
    const { contract } = await request(app, "contract", { graph, endpoint });
    if (node.graph) compareContracts(node, stored, contract);
  } catch (error) {
    setProblem(node, { text: error.kind === "UnknownGraph" ? "no longer served" : "cannot be checked", tone: "warn", detail: error.message });
  }
}

// -- runs -------------------------------------------------------------------------------------------------------

/**
 * Follow runs: a node that starts clears its warning; a node that failed checks whether the ports of its graph have changed.
 * @param {object} app
 */
function listen(app) {
  if (listening) return;
  listening = true;
  app.api.addEventListener("executing", ({ detail }) => {
    const node = attachedAt(app, detail);
    if (node?.yggdrasill.problem?.tone === "warn") setProblem(node, null);
  });
  app.api.addEventListener("execution_error", ({ detail }) => {
    const node = attachedAt(app, detail.node_id);
    if (node && !node.yggdrasill.newContract) void check(node);
  });
}

/**
 * @param {object} app
 * @param {string | null} path the ids of the enclosing subgraph nodes, and the node's id
 * @returns {object | null} the node, if it has this behaviour
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

// -- choices ----------------------------------------------------------------------------------------------------

/**
 * Request the contract of the chosen graph, and apply it.
 * @param {object} node
 */
async function choose(node) {
  const { app } = node.yggdrasill;
  const { graph, endpoint } = settings(node);
  if (!graph) return;
  try {
    const { contract } = await request(app, "contract", { graph, endpoint });
    const current = settings(node);
    if (node.graph && current.graph === graph && current.endpoint === endpoint) applyContract(node, contract);
  } catch (error) {
    setProblem(node, { text: "not found", tone: "warn", detail: error.message });
    notify(app, "warn", `Remote Graph “${graph}”`, error.message);
  }
}

/**
 * Store a contract and set the sockets to its ports. Links are kept for ports of the same name, and for a port that was renamed at its position.
 * @param {object} node
 * @param {Contract} contract
 */
function applyContract(node, contract) {
  const { app } = node.yggdrasill;
  const detail = portLimitProblem(contract);
  if (detail) {
    setProblem(node, { text: "too many ports", tone: "error", detail });
    notify(app, "warn", `Remote Graph “${contract.graph_id}” has too many ports`, detail);
    return;
  }
  node.graph.beforeChange?.();
  const lost = setSockets(node, storedContract(node), contract);
  widgetOf(node, "contract").value = JSON.stringify(essence(contract));
  node.yggdrasill.newContract = null;
  showSeed(node, contract);
  removeHiddenSockets(node);
  setProblem(node, null);
  node.graph.afterChange?.();
  if (lost.length) notify(app, "warn", `Remote Graph “${contract.graph_id}”`, `Unlinked because the graph no longer has these ports: ${lost.join(", ")}`);
}

/**
 * Show on the node that the ports of its graph have changed, or clear the problem if they have not.
 * @param {object} node
 * @param {Contract} stored
 * @param {Contract} contract
 */
function compareContracts(node, stored, contract) {
  const changes = [...differences(stored.inputs, contract.inputs, "input"), ...differences(stored.outputs, contract.outputs, "output")];
  if (!changes.length) {
    widgetOf(node, "contract").value = JSON.stringify(essence(contract));
    setProblem(node, null);
    return;
  }
  node.yggdrasill.newContract = contract;
  setProblem(node, { text: "contract changed", tone: "error", detail: changes.join("; ") });
  notify(node.yggdrasill.app, "warn", `The ports of Remote Graph “${contract.graph_id}” have changed`, `${changes.join("; ")}. Press “${UPDATE}” on the node.`);
}

// -- stored values -----------------------------------------------------------------------------------------------

function settings(node) {
  return { graph: widgetOf(node, "graph").value, endpoint: widgetOf(node, "endpoint").value || AUTO };
}

/** @returns {Contract | null} */
function storedContract(node) {
  return readContract(widgetOf(node, "contract").value);
}
