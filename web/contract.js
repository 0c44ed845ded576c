/**
 * Contracts as nodes store them: the ports of a graph, how they changed, and ComfyUI's type for each.
 */

/** @typedef {{name: string, dtype?: string, comfy_type?: string, optional?: boolean}} Port */
/** @typedef {{graph_id: string, kind: string, hash: string, inputs: Port[], outputs: Port[]}} Contract */

/** The maximum number of sockets on each side of a node. */
const MAX_PORTS = 32;

/**
 * @param {Contract} contract
 * @returns {string} the problem if the contract has more ports than a node has sockets, else an empty string
 */
export function portLimitProblem({ inputs, outputs }) {
  const [count, side] = inputs.length > MAX_PORTS ? [inputs.length, "inputs"] : [outputs.length, "outputs"];
  if (count <= MAX_PORTS) return "";
  return `It has ${count} ${side}; a node supports at most ${MAX_PORTS}. Expose fewer ports, or split it into several graphs, each with its own node.`;
}

/**
 * @param {string} text
 * @returns {Contract | null} null if the text is not a contract
 */
export function readContract(text) {
  try {
    const contract = JSON.parse(text);
    return Array.isArray(contract?.inputs) && Array.isArray(contract?.outputs) ? contract : null;
  } catch {
    return null;
  }
}

/** @returns {Contract} the fields of a contract that a node stores */
export function essence({ graph_id, kind, hash, inputs, outputs }) {
  const port = ({ name, dtype, comfy_type, optional }) => ({ name, dtype, comfy_type, optional });
  return { graph_id, kind, hash, inputs: inputs.map(port), outputs: outputs.map(port) };
}

/**
 * @param {Port[]} before
 * @param {Port[]} after
 * @param {string} side
 * @returns {string[]} descriptions of the changes
 */
export function differences(before, after, side) {
  const from = origins(before, after);
  const changes = after.flatMap((port, index) => {
    const old = before[from[index]];
    if (!old) return [`${side} “${port.name}” is new`];
    if (old.name !== port.name) return [`${side} “${old.name}” was renamed to “${port.name}”`];
    if (socketType(old) !== socketType(port)) return [`${side} “${port.name}” is ${socketType(port)}, was ${socketType(old)}`];
    return from[index] === index ? [] : [`${side} “${port.name}” moved`];
  });
  const removed = before.filter((_, index) => !from.includes(index)).map((port) => `${side} “${port.name}” was removed`);
  return [...changes, ...removed];
}

/**
 * @param {Port[]} before
 * @param {Port[]} after
 * @returns {number[]} for each port of `after` the index of the same port in `before`: the port of its name, else a renamed port at its
 * position with its type; -1 for a new port
 */
export function origins(before, after) {
  const oldNames = before.map(({ name }) => name);
  const newNames = after.map(({ name }) => name);
  return after.map((port, index) => {
    const same = oldNames.indexOf(port.name);
    if (same >= 0) return same;
    const old = before[index];
    return old && !newNames.includes(old.name) && socketType(old) === socketType(port) ? index : -1;
  });
}

/**
 * @param {Port} port
 * @returns {string} ComfyUI's type for it
 */
export function socketType(port) {
  const dtype = port.dtype ?? "any";
  if (port.comfy_type) return port.comfy_type;
  if (dtype.startsWith("comfy/")) return dtype.slice("comfy/".length);
  return { image: "IMAGE", text: "STRING" }[dtype] ?? "*";
}
