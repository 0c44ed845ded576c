/**
 * The Run Graph node: its sockets are the ports of the linked graph. They are requested from this server whenever the nodes that compose the
 * graph have changed, also across the boundaries of subgraphs; if the graph depends on other nodes, the sockets stay unchanged.
 *
 * The ports are stored in the node, so a workflow opens as it was saved.
 */
import { notify, request } from "./request.js";
import { essence, portLimitProblem } from "./contract.js";
import { setSockets } from "./sockets.js";
import { origin } from "./link_origin.js";
import { after } from "./widgets.js";

/** @typedef {import("./contract.js").Contract} Contract */

const STORED_CONTRACT = "yggdrasill.contract";
const DELAY_MS = 200;
/** The nodes with this behaviour. */
const nodes = new Set();

/**
 * Give a node its behaviour. A node created before this module was loaded may already be linked.
 * @param {object} node
 * @param {object} app
 */
export function attach(node, app) {
  if (!nodes.size) app.api.addEventListener("graphChanged", () => nodes.forEach(scheduleUpdate));
  node.yggdrasill = { app, requested: "", timer: 0 };
  nodes.add(node);
  after(node, "onConfigure", () => applyStored(node));
  after(node, "onConnectionsChange", () => scheduleUpdate(node));
  after(node, "onRemoved", () => nodes.delete(node));
  applyStored(node);
  scheduleUpdate(node);
}

/** Set the sockets to those of the stored contract. */
function applyStored(node) {
  const contract = node.properties[STORED_CONTRACT];
  if (contract) setSockets(node, contract, contract);
}

/** Update the ports after a delay; several changes in a row cause one update. */
function scheduleUpdate(node) {
  clearTimeout(node.yggdrasill.timer);
  node.yggdrasill.timer = setTimeout(() => void updatePorts(node), DELAY_MS);
}

/**
 * Request the contract of the linked graph, if the nodes that compose it have changed.
 * @param {object} node
 */
async function updatePorts(node) {
  const { app } = node.yggdrasill;
  const slot = node.inputs?.find(({ name }) => name === "graph");
  if (slot?.link == null || !node.graph || app.configuringGraph) return;
  const from = origin(app, node.graph, slot.link);
  if (!from?.node) return;
  const body = { prompt: {}, node: idOf(from.node), output: from.slot };
  if (!collect(app, from.node, body.prompt)) return;
  const key = JSON.stringify(body);
  if (key === node.yggdrasill.requested) return;
  node.yggdrasill.requested = key;
  try {
    const { contract } = await request(app, "ports", {}, body);
    if (node.graph && node.yggdrasill.requested === key) applyContract(node, contract);
  } catch {
    // A graph that is not valid is reported on its own node when it runs; until then the sockets stay.
  }
}

/** The id of a node in the request; nodes of different graphs of a workflow may have the same id. */
function idOf(node) {
  return `${node.graph.id}:${node.id}`;
}

/**
 * Add a node and those that it depends on to a prompt.
 * @returns {boolean} false if the origin of an input is not known
 */
function collect(app, node, prompt) {
  const id = idOf(node);
  if (prompt[id]) return true;
  const inputs = {};
  prompt[id] = { class_type: node.comfyClass, inputs };
  for (const { name, value } of node.widgets ?? []) inputs[name] = value;
  return (node.inputs ?? []).every(({ name, link }) => {
    if (link == null) return true;
    const from = origin(app, node.graph, link);
    if (!from) return false;
    if (!from.node) {
      if (from.value !== undefined) inputs[name] = from.value;
      return true;
    }
    inputs[name] = [idOf(from.node), from.slot];
    return collect(app, from.node, prompt);
  });
}

/**
 * Set the sockets to the ports of a contract. Links are kept for ports of the same name.
 * @param {object} node
 * @param {Contract} contract
 */
function applyContract(node, contract) {
  const { app } = node.yggdrasill;
  const problem = portLimitProblem(contract);
  if (problem) {
    notify(app, "warn", `Graph “${contract.graph_id}” has too many ports`, problem);
    return;
  }
  node.graph.beforeChange?.();
  const lost = setSockets(node, node.properties[STORED_CONTRACT] ?? null, contract);
  node.properties[STORED_CONTRACT] = essence(contract);
  node.graph.afterChange?.();
  if (lost.length) notify(app, "warn", `Graph “${contract.graph_id}”`, `Unlinked because the graph no longer has these ports: ${lost.join(", ")}`);
}
