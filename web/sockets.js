/**
 * Sets the sockets of a node to the ports of a contract; links stay with their ports.
 */
import { origins, socketType } from "./contract.js";

/** @typedef {import("./contract.js").Contract} Contract */

/** The prefix of the server's name for the input of port number i, without i. */
const SOCKET = "ports.p";
const OPTIONAL_SHAPE = 7;

/**
 * Set the sockets of a node to the ports of a contract.
 * @param {object} node
 * @param {Contract | null} before the contract of the current sockets
 * @param {Contract} contract
 * @returns {string[]} the names of ports whose links were removed
 */
export function setSockets(node, before, contract) {
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

/** The removed sockets of hidden widgets. @type {WeakMap<object, object[]>} */
const removed = new WeakMap();

/**
 * Remove the sockets of hidden widgets, and restore those of widgets that are shown again. ComfyUI gives every widget a socket and places only
 * those of visible ones, so a hidden one lies over the first socket of the node and takes its links.
 * @param {object} node
 */
export function removeHiddenSockets(node) {
  const isHidden = (slot) => Boolean(slot.widget && node.widgets?.find(({ name }) => name === slot.widget.name)?.hidden);
  const kept = removed.get(node) ?? [];
  for (const slot of kept) if (!isHidden(slot) && !node.inputs.some(({ name }) => name === slot.name)) node.inputs.push(slot);
  const slots = node.inputs.filter((slot) => isHidden(slot) && slot.link == null);
  for (const slot of slots) node.removeInput(node.inputs.indexOf(slot));
  removed.set(node, [...kept.filter(isHidden), ...slots]);
}

/**
 * @param {object[]} slots
 * @param {Port[]} ports
 * @returns {boolean} whether the sockets already match the ports
 */
function fits(slots, ports) {
  return slots.length === ports.length && ports.every((port, index) => slots[index].label === port.name && slots[index].type === socketType(port));
}

/**
 * Remove the links of sockets that no port of the new contract takes over.
 * @returns {string[]} the names of sockets that were linked
 */
function unlink(node, slots, before, ports, drop) {
  const from = origins(before, ports);
  return slots.flatMap((slot, index) => {
    const successor = ports[from.indexOf(index)];
    const keepsLink = successor && LiteGraph.isValidConnection(slot.type, socketType(successor));
    return !keepsLink && drop(node, slot) ? [slot.label ?? slot.name] : [];
  });
}

function dropInput(node, slot) {
  return slot.link != null && node.disconnectInput(node.inputs.indexOf(slot));
}

function dropOutput(node, slot) {
  return Boolean(slot.links?.length) && node.disconnectOutput(node.outputs.indexOf(slot));
}

/** New sockets take over the links of old ones; `from` has the index of the old socket, -1 for none. */
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

function isPort(slot) {
  return slot.name.startsWith(SOCKET);
}
