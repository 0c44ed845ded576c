/**
 * Contracts as the node keeps them: the ports of a graph, what became of each when the graph changed, ComfyUI's type for it.
 */

/** @typedef {{name: string, dtype?: string, comfy_type?: string, optional?: boolean}} Port */
/** @typedef {{graph_id: string, kind: string, hash: string, inputs: Port[], outputs: Port[]}} Contract */

/** A node has so many sockets on each side at most. */
const MOST_PORTS = 32;

/**
 * @param {Contract} contract
 * @returns {string} why no node has sockets for all of its ports; empty if one has
 */
export function tooMany({ inputs, outputs }) {
  const [count, side] = inputs.length > MOST_PORTS ? [inputs.length, "inputs"] : [outputs.length, "outputs"];
  if (count <= MOST_PORTS) return "";
  return `It has ${count} ${side}, and a node up to ${MOST_PORTS}. Let fewer be ports of the whole, or divide it into graphs that each have a node.`;
}

/**
 * @param {string} text
 * @returns {Contract | null} null if it is none
 */
export function readContract(text) {
  try {
    const contract = JSON.parse(text);
    return Array.isArray(contract?.inputs) && Array.isArray(contract?.outputs) ? contract : null;
  } catch {
    return null;
  }
}

/** @returns {Contract} what of a contract the node needs */
export function essence({ graph_id, kind, hash, inputs, outputs }) {
  const port = ({ name, dtype, comfy_type, optional }) => ({ name, dtype, comfy_type, optional });
  return { graph_id, kind, hash, inputs: inputs.map(port), outputs: outputs.map(port) };
}

/**
 * @param {Port[]} before
 * @param {Port[]} now
 * @param {string} side
 * @returns {string[]} what changed, in words
 */
export function differences(before, now, side) {
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

/**
 * @param {Port[]} before
 * @param {Port[]} now
 * @returns {number[]} for each port of `now` the number of the one in `before` that it is: of its name, or in its place and of its
 * type under another name; -1 for none
 */
export function origins(before, now) {
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
export function socketType(port) {
  const dtype = port.dtype ?? "any";
  if (port.comfy_type) return port.comfy_type;
  if (dtype.startsWith("comfy/")) return dtype.slice("comfy/".length);
  return { image: "IMAGE", text: "STRING" }[dtype] ?? "*";
}
