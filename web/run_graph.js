/**
 * The Run Graph node: its sockets are the ports of the graph that is linked to it. This server is asked for them whenever the nodes that
 * put the graph together have changed, also those on the other side of a subgraph's border; where other nodes take part the sockets stay
 * as they are.
 *
 * The ports are stored in the node, so a workflow opens as it was saved.
 */
import { ask, tell } from "./request.js";
import { essence, tooMany } from "./contract.js";
import { setSockets } from "./sockets.js";
import { origin } from "./sources.js";
import { after } from "./widgets.js";

/** @typedef {import("./contract.js").Contract} Contract */

const KEPT = "yggdrasill.contract";
const PAUSE_MS = 200;
/** The nodes that are looked after. */
const nodes = new Set();

/**
 * Give a node its behaviour; one that was made before this module was loaded may be linked already.
 * @param {object} node
 * @param {object} app
 */
export function attach(node, app) {
  if (!nodes.size) app.api.addEventListener("graphChanged", () => nodes.forEach(lookSoon));
  node.yggdrasill = { app, asked: "", timer: 0 };
  nodes.add(node);
  after(node, "onConfigure", () => settle(node));
  after(node, "onConnectionsChange", () => lookSoon(node));
  after(node, "onRemoved", () => nodes.delete(node));
  settle(node);
  lookSoon(node);
}

/** Let the sockets be those of the stored contract. */
function settle(node) {
  const contract = node.properties[KEPT];
  if (contract) setSockets(node, contract, contract);
}

/** Several changes in a row are one. */
function lookSoon(node) {
  clearTimeout(node.yggdrasill.timer);
  node.yggdrasill.timer = setTimeout(() => void look(node), PAUSE_MS);
}

/**
 * Ask what the linked graph takes and gives, if what it is made of has changed since.
 * @param {object} node
 */
async function look(node) {
  const { app } = node.yggdrasill;
  const slot = node.inputs?.find(({ name }) => name === "graph");
  if (slot?.link == null || !node.graph || app.configuringGraph) return;
  const from = origin(app, node.graph, slot.link);
  if (!from?.node) return;
  const body = { prompt: {}, node: idOf(from.node), output: from.slot };
  if (!collect(app, from.node, body.prompt)) return;
  const question = JSON.stringify(body);
  if (question === node.yggdrasill.asked) return;
  node.yggdrasill.asked = question;
  try {
    const { contract } = await ask(app, "ports", {}, body);
    if (node.graph && node.yggdrasill.asked === question) follow(node, contract);
  } catch {
    // A graph that cannot be says so on its own node when it is run; until then the sockets stay.
  }
}

/** A node's id in the question; two graphs of a workflow may number theirs alike. */
function idOf(node) {
  return `${node.graph.id}:${node.id}`;
}

/**
 * Write a node and those before it into a prompt.
 * @returns {boolean} false if something before it is not known
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
 * Make the sockets those of a contract; links stay with ports of the same name.
 * @param {object} node
 * @param {Contract} contract
 */
function follow(node, contract) {
  const { app } = node.yggdrasill;
  const problem = tooMany(contract);
  if (problem) {
    tell(app, "warn", `Graph “${contract.graph_id}” has too many ports`, problem);
    return;
  }
  node.graph.beforeChange?.();
  const lost = setSockets(node, node.properties[KEPT] ?? null, contract);
  node.properties[KEPT] = essence(contract);
  node.graph.afterChange?.();
  if (lost.length) tell(app, "warn", `Graph “${contract.graph_id}”`, `Unlinked, for the graph has no such port now: ${lost.join(", ")}`);
}
