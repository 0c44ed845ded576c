/**
 * Where a value on a link comes from, also across the borders of subgraphs.
 */

const MOST_BORDERS = 100;

/**
 * @typedef {object} Origin
 * @property {object} [node] the node whose output it is; none if a widget on a subgraph gives it, or nothing does
 * @property {number} [slot] which of its outputs
 * @property {unknown} [value] what the widget holds
 */

/**
 * The origin of a link.
 * @param {object} app
 * @param {object} graph the graph that the link lies in
 * @param {number} id the link's
 * @returns {Origin | null} null if it is not known: a subgraph that stands in several places has one for each
 */
export function origin(app, graph, id, borders = 0) {
  const link = graph.getLink(id);
  if (!link) return {};
  if (borders > MOST_BORDERS) return null;
  if (link.originIsIoNode) {
    const around = standIns(app, graph);
    if (around.length !== 1) return null;
    const input = around[0].inputs[link.origin_slot];
    if (input?.link != null) return origin(app, around[0].graph, input.link, borders + 1);
    return { value: around[0].widgets?.find(({ name }) => name === input?.widget?.name)?.value };
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node?.isSubgraphNode?.()) return node ? { node, slot: link.origin_slot } : null;
  const inner = node.subgraph.outputs[link.origin_slot]?.linkIds?.[0];
  return inner == null ? null : origin(app, node.subgraph, inner, borders + 1);
}

/** The nodes that a subgraph's definition stands behind. */
function standIns(app, subgraph) {
  const root = app.rootGraph ?? app.graph;
  const graphs = [root, ...(root.subgraphs?.values() ?? [])];
  return graphs.flatMap((graph) => graph._nodes.filter((node) => node.isSubgraphNode?.() && node.subgraph === subgraph));
}
