/**
 * The Remote Graph node: its graph and endpoint are chosen from lists, its sockets are named and typed after the graph's contract.
 *
 * The contract is stored in the node, so a workflow opens as it was saved whether or not the endpoint is there. What the endpoint
 * serves now is looked at when a workflow was loaded: if ports have changed, the node says so and keeps its sockets and links
 * until it is told to follow.
 */
import { ask, endpointsOf, graphsAt, refreshLists, tell } from "./serving.js";

/** The node's class. */
export const REMOTE_GRAPH = "YggdrasillRemoteGraph";

const AUTO = "auto";
const MOST_PORTS = 32;
/** How the server calls the input of port number i: its values are links. */
const SOCKET = "ports.p";
const OPTIONAL_SHAPE = 7;
const FOLLOW = "Follow the changed contract";
const PATIENCE_MS = 3000;

/** @typedef {{name: string, dtype?: string, comfy_type?: string, optional?: boolean}} Port */
/** @typedef {{graph_id: string, kind: string, hash: string, inputs: Port[], outputs: Port[]}} Contract */

/**
 * Make the node's class one of the editor: lists to choose from, no socket before there is a contract.
 * @param {object} definition as /object_info gives it; changed in place
 */
export function shapeDefinition(definition) {
  const { required, optional } = definition.input;
  required.graph = [[""], { ...required.graph[1], socketless: true }];
  required.endpoint = [[AUTO], { ...required.endpoint[1], socketless: true }];
  required.contract = ["STRING", { ...required.contract[1], multiline: false, hidden: true, socketless: true }];
  if (optional.seed) optional.seed = ["INT", { ...optional.seed[1], control_after_generate: "fixed" }];
  delete optional.ports;
  const order = definition.input_order;
  if (order?.optional) order.optional = order.optional.filter((name) => name !== "ports");
  Object.assign(definition, { output: [], output_name: [], output_is_list: [], output_tooltips: [] });
}

/**
 * Give a new node its behaviour.
 * @param {object} node
 * @param {object} app
 */
export function attachRemoteGraph(node, app) {
  node.yggdrasill = { app, problem: null, offered: null };
  const graph = widgetOf(node, "graph");
  const endpoint = widgetOf(node, "endpoint");
  widgetOf(node, "contract").serializeValue = () => contractNow(node);
  offer(graph, () => graphsAt(app, endpoint.value));
  offer(endpoint, () => [AUTO, ...endpointsOf(app)]);
  after(graph, "callback", () => choose(node));
  after(endpoint, "callback", () => {
    refreshLists(app, endpoint.value);
    void choose(node);
  });
  after(node, "onConfigure", () => {
    const contract = storedContract(node);
    if (contract) setSockets(node, contract, contract);
    showSeed(node, contract);
  });
  for (const widget of widgetOf(node, "seed")?.linkedWidgets ?? []) widget.label = "control after generate";
  node.badges.push(() => badgeOf(node));
  showSeed(node, null);
  if (!app.configuringGraph) refreshLists(app, endpoint.value);
}

/**
 * Compare the contract a loaded node was saved with to what its endpoint serves now.
 * @param {object} node
 */
export async function checkRemoteGraph(node) {
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

/**
 * What a run is given as the contract: the stored one with the hash of what is served now. ComfyUI computes a node again when what it
 * is given has changed, so a graph that was replaced at its endpoint is called again though nothing changed here.
 * @param {object} node
 * @returns {Promise<string>}
 */
async function contractNow(node) {
  const stored = storedContract(node);
  const { graph, endpoint } = settings(node);
  if (!stored || !graph) return widgetOf(node, "contract").value;
  const { app } = node.yggdrasill;
  const answer = await ask(app, "contract", { graph, endpoint }, undefined, PATIENCE_MS).catch(() => null);
  if (!answer) return widgetOf(node, "contract").value;
  if (!node.yggdrasill.offered) notice(node, stored, answer.contract);
  return JSON.stringify({ ...essence(stored), hash: answer.contract.hash });
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
  const most = Math.max(contract.inputs.length, contract.outputs.length);
  if (most > MOST_PORTS) {
    say(node, { text: `${most} ports`, tone: "error", detail: `a Remote Graph has up to ${MOST_PORTS} inputs and outputs` });
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

/**
 * @param {Port[]} before
 * @param {Port[]} now
 * @param {string} side
 * @returns {string[]} what changed, in words
 */
function differences(before, now, side) {
  const from = origins(before, now);
  const said = now.flatMap((port, index) => {
    const old = before[from[index]];
    if (!old) return [`${side} “${port.name}” is new`];
    if (old.name !== port.name) return [`${side} “${old.name}” is “${port.name}” now`];
    if (socketType(old) !== socketType(port)) return [`${side} “${port.name}” is ${socketType(port)}, was ${socketType(old)}`];
    return from[index] === index ? [] : [`${side} “${port.name}” moved`];
  });
  const gone = before.filter((_, index) => !from.includes(index)).map((port) => `${side} “${port.name}” is gone`);
  return [...said, ...gone];
}

// -- sockets ----------------------------------------------------------------------------------------------------

/**
 * Make the node's sockets those of a contract.
 * @param {object} node
 * @param {Contract | null} before the contract that the sockets follow now
 * @param {Contract} contract
 * @returns {string[]} the names of ports whose links had to go
 */
function setSockets(node, before, contract) {
  const old = { inputs: node.inputs.filter(isPort), outputs: [...node.outputs] };
  if (fits(old.inputs, contract.inputs) && fits(old.outputs, contract.outputs)) return [];
  const lost = [
    ...unlink(node, old.inputs, before?.inputs ?? [], contract.inputs, dropInput),
    ...unlink(node, old.outputs, before?.outputs ?? [], contract.outputs, dropOutput),
  ];
  setInputs(node, old.inputs, origins(before?.inputs ?? [], contract.inputs), contract.inputs);
  setOutputs(node, old.outputs, origins(before?.outputs ?? [], contract.outputs), contract.outputs);
  node.setSize([Math.max(node.size[0], node.computeSize()[0]), node.computeSize()[1]]);
  node.graph?.setDirtyCanvas(true, true);
  return lost;
}

/**
 * @param {object[]} slots
 * @param {Port[]} ports
 * @returns {boolean} whether the sockets are those of the ports already
 */
function fits(slots, ports) {
  return slots.length === ports.length && ports.every((port, index) => slots[index].label === port.name && slots[index].type === socketType(port));
}

/**
 * Take away the links of sockets that no port of the new contract takes over.
 * @returns {string[]} the names of those that had any
 */
function unlink(node, slots, before, ports, drop) {
  const from = origins(before, ports);
  return slots.flatMap((slot, index) => {
    const heir = ports[from.indexOf(index)];
    const keeps = heir && LiteGraph.isValidConnection(slot.type, socketType(heir));
    return !keeps && drop(node, slot) ? [slot.label ?? slot.name] : [];
  });
}

function dropInput(node, slot) {
  return slot.link != null && node.disconnectInput(node.inputs.indexOf(slot));
}

function dropOutput(node, slot) {
  return Boolean(slot.links?.length) && node.disconnectOutput(node.outputs.indexOf(slot));
}

/** New sockets take over the links of old ones; `from` gives the number of the old one, -1 for none. */
function setInputs(node, old, from, ports) {
  const others = node.inputs.filter((slot) => !isPort(slot));
  const fresh = ports.map((port, index) => {
    const shape = port.optional ? OPTIONAL_SHAPE : undefined;
    node.addInput(`${SOCKET}${index}`, socketType(port), { label: port.name, shape });
    return node.inputs.at(-1);
  });
  fresh.forEach((slot, index) => {
    slot.link = old[from[index]]?.link ?? null;
  });
  node.inputs = [...others, ...fresh];
  node.inputs.forEach((slot, index) => {
    const link = slot.link == null ? null : node.graph?.getLink(slot.link);
    if (link) link.target_slot = index;
  });
}

/** As `setInputs`. */
function setOutputs(node, old, from, ports) {
  const fresh = ports.map((port) => {
    node.addOutput(port.name, socketType(port), { label: port.name });
    return node.outputs.at(-1);
  });
  fresh.forEach((slot, index) => {
    slot.links = old[from[index]]?.links ?? null;
  });
  node.outputs = fresh;
  node.outputs.forEach((slot, index) => {
    for (const id of slot.links ?? []) {
      const link = node.graph?.getLink(id);
      if (link) Object.assign(link, { origin_slot: index, type: slot.type });
    }
  });
}

/**
 * @param {Port[]} before
 * @param {Port[]} now
 * @returns {number[]} for each port of `now` the number of the one in `before` that it is: of its name, or in its place and of its
 * type under another name; -1 for none
 */
function origins(before, now) {
  const was = before.map(({ name }) => name);
  const is = now.map(({ name }) => name);
  return now.map((port, index) => {
    const same = was.indexOf(port.name);
    if (same >= 0) return same;
    const there = before[index];
    return there && !is.includes(there.name) && socketType(there) === socketType(port) ? index : -1;
  });
}

/**
 * @param {Port} port
 * @returns {string} ComfyUI's type for it
 */
function socketType(port) {
  const dtype = port.dtype ?? "any";
  if (port.comfy_type) return port.comfy_type;
  if (dtype.startsWith("comfy/")) return dtype.slice("comfy/".length);
  return { image: "IMAGE", text: "STRING" }[dtype] ?? "*";
}

function isPort(slot) {
  return slot.name.startsWith(SOCKET);
}

// -- what the node says -----------------------------------------------------------------------------------------

/**
 * Show a problem as a badge, and offer to follow a changed contract; null takes both away.
 * @param {object} node
 * @param {{text: string, tone: "warn" | "error", detail: string} | null} problem
 */
function say(node, problem) {
  node.yggdrasill.problem = problem;
  const button = widgetOf(node, FOLLOW);
  if (node.yggdrasill.offered && !button) {
    const made = node.addWidget("button", FOLLOW, null, () => follow(node, node.yggdrasill.offered), { serialize: false });
    made.serialize = false;
    made.tooltip = problem?.detail;
  } else if (!node.yggdrasill.offered && button) {
    node.removeWidget(button);
    node.setSize([node.size[0], node.computeSize()[1]]);
  }
  redraw(node);
}

/** Both ways of drawing nodes look again: the canvas, and the one that follows changes of the list of widgets. */
function redraw(node) {
  node.widgets.push(node.widgets.pop());
  node.graph?.setDirtyCanvas(true, true);
}

function badgeOf(node) {
  const { problem } = node.yggdrasill;
  void node.widgets.length; // read, so that a change of it is a reason to ask again
  const bgColor = problem?.tone === "error" ? "#a11" : "#960";
  return new LGraphBadge({ text: problem ? `⚠ ${problem.text}` : "", fgColor: "#fff", bgColor });
}

/** The seed is for graphs of blocks: a workflow has its own. */
function showSeed(node, contract) {
  const hidden = contract?.kind === "comfy";
  const seed = widgetOf(node, "seed");
  for (const widget of seed ? [seed, ...(seed.linkedWidgets ?? [])] : []) {
    widget.hidden = hidden;
    widget.options.hidden = hidden;
  }
  redraw(node);
}

// -- parts of the node ------------------------------------------------------------------------------------------

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function settings(node) {
  return { graph: widgetOf(node, "graph").value, endpoint: widgetOf(node, "endpoint").value || AUTO };
}

/** @returns {Contract | null} the one stored in the node */
function storedContract(node) {
  try {
    const contract = JSON.parse(widgetOf(node, "contract").value);
    return Array.isArray(contract?.inputs) && Array.isArray(contract?.outputs) ? contract : null;
  } catch {
    return null;
  }
}

/** @returns {Contract} what of a contract the node needs */
function essence({ graph_id, kind, hash, inputs, outputs }) {
  const port = ({ name, dtype, comfy_type, optional }) => ({ name, dtype, comfy_type, optional });
  return { graph_id, kind, hash, inputs: inputs.map(port), outputs: outputs.map(port) };
}

/** Call `then` after the function `name` of `owner`, if it has one. */
function after(owner, name, then) {
  const before = owner[name];
  owner[name] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

/** Let a list of choices be looked up each time it is opened; what is chosen is always in it. */
function offer(widget, choices) {
  const values = () => {
    const found = choices();
    return found.includes(widget.value) || (!widget.value && found.length) ? found : [...found, widget.value];
  };
  Object.defineProperty(widget.options, "values", { get: () => values, set: () => {}, enumerable: true, configurable: true });
}
