/**
 * The origin of a value on a link, across the boundaries of subgraphs.
 */

const MAX_DEPTH = 100;

/**
 * @typedef {object} Origin
 * @property {object} [node] the node whose output it is; absent if the value comes from a widget of a subgraph node, or from nowhere
 * @property {number} [slot] the index of the output
 * @property {unknown} [value] the value of the widget
 */

/**
 * Find the origin of a link.
 * @param {object} app
 * @param {object} graph the graph that contains the link
 * @param {number} id the id of the link
 * @returns {Origin | null} null if it is not unique, because the subgraph has several instances
 */
export function origin(app, graph, id, depth = 0) {
  const link = graph.getLink(id);
  if (!link) return {};
  if (depth > MAX_DEPTH) return null;
  if (link.originIsIoNode) {
    const instances = instancesOf(app, graph);
    if (instances.length !== 1) return null;
    const input = instances[0].inputs[link.origin_slot];
    if (input?.link != null) return origin(app, instances[0].graph, input.link, depth + 1);
    return { value: instances[0].widgets?.find(({ name }) => name === input?.widget?.name)?.value };
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node?.isSubgraphNode?.()) return node ? { node, slot: link.origin_slot } : null;
  const inner = node.subgraph.outputs[link.origin_slot]?.linkIds?.[0];
  return inner == null ? null : origin(app, node.subgraph, inner, depth + 1);
}

/** The nodes that are instances of a subgraph's definition. */
function instancesOf(app, subgraph) {
  const root = app.rootGraph ?? app.graph;
  const graphs = [root, ...(root.subgraphs?.values() ?? [])];
  return graphs.flatMap((graph) => graph._nodes.filter((node) => node.isSubgraphNode?.() && node.subgraph === subgraph));
}
