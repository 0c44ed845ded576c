/**
 * Graph Input and Graph Output take their type from their links, so that the workflow declares the types of its ports.
 */
import { after } from "./widgets.js";

const OUTPUT_NODE = "YggdrasillGraphOutput";
const ANY = "*";
/** The property with the type that a link set. A type that the user entered is kept. */
const FOUND_TYPE = "yggdrasill.found_type";

/**
 * Set the type of a node from its links from now on. A node created before this module was loaded may already be linked.
 * @param {object} node
 * @param {object} app
 */
export function attach(node, app) {
  after(node, "onConnectionsChange", (_side, _index, connected, link, slot) => {
    if (connected && link && !app.configuringGraph) takeType(node, slot, link);
  });
  if (app.configuringGraph || !node.graph) return;
  for (const slot of [...node.inputs, ...node.outputs]) {
    const link = node.graph.getLink(slot.link ?? slot.links?.[0]);
    if (link) takeType(node, slot, link);
  }
}

/**
 * @param {object} node
 * @param {object} slot the slot that was linked
 * @param {object} link
 */
function takeType(node, slot, link) {
  const widget = node.widgets?.find(({ name }) => name === "type");
  const ends = link.resolve(node.graph);
  const other = node.comfyClass === OUTPUT_NODE ? (ends.output ?? ends.subgraphInput) : (ends.input ?? ends.subgraphOutput);
  const isPort = slot.name === (node.comfyClass === OUTPUT_NODE ? "value" : node.outputs[0].name);
  if (!widget || !isPort || !other?.type || other.type === ANY) return;
  if (widget.value !== ANY && widget.value !== node.properties[FOUND_TYPE]) return;
  widget.value = String(other.type);
  node.properties[FOUND_TYPE] = widget.value;
}
