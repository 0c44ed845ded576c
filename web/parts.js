/**
 * The parts of the open workflow that have a name, as the server determines them: subgraphs and groups by title, and the nodes in a group.
 */

/**
 * @typedef {object} Part
 * @property {"subgraph" | "group"} kind
 * @property {string} name its key in the registry: the title, or its path if different parts have this title
 * @property {string[]} path titles from the outermost subgraph down
 * @property {object} graph the graph that contains it
 * @property {object} [node] the subgraph node
 * @property {object} [group]
 */

/**
 * @param {object} app
 * @returns {Part[]} one for each name, outer parts first
 */
export function partsOf(app) {
  const all = [...walk(app.rootGraph ?? app.graph, [])];
  const sources = new Map();
  for (const part of all) sources.set(part.title, (sources.get(part.title) ?? new Set()).add(sourceOf(part)));
  const found = new Map();
  for (const part of all) {
    const name = sources.get(part.title).size > 1 ? part.path.join("/") : part.title;
    if (!found.has(name)) found.set(name, { ...part, name });
  }
  return [...found.values()];
}

/**
 * @param {object} app
 * @param {object} item on the canvas
 * @returns {Part | null} the part that a subgraph node or a group is; null for any other item, and without a title
 */
export function partOf(app, item) {
  if (!item?.title?.trim() || !(item.isSubgraphNode?.() || isGroup(item))) return null;
  const same = item.isSubgraphNode?.() ? ({ node }) => node && node.type === item.type && node.title === item.title : ({ group }) => group === item;
  return partsOf(app).find(same) ?? null;
}

/** @returns {boolean} whether an item on the canvas is a group */
export function isGroup(item) {
  return Boolean(item) && item.constructor === window.LiteGraph.LGraphGroup;
}

/**
 * @param {object} graph
 * @param {number[]} box x, y, width, height
 * @returns {object[]} the nodes whose center is in the box
 */
export function nodesIn(graph, [x, y, width, height]) {
  return graph._nodes.filter(({ boundingRect: [left, top, wide, high] }) => {
    const center = [left + wide / 2, top + high / 2];
    return center[0] >= x && center[0] < x + width && center[1] >= y && center[1] < y + height;
  });
}

/** @returns {number[]} the box of a group */
export const boxOf = (group) => [...group.pos, ...group.size];

function* walk(graph, outer) {
  for (const item of [...graph._groups, ...graph._nodes.filter((node) => node.isSubgraphNode?.())]) {
    const title = item.title?.trim();
    if (!title) continue;
    const path = [...outer, title];
    if (isGroup(item)) {
      yield { kind: "group", title, path, graph, group: item };
    } else {
      yield { kind: "subgraph", title, path, graph, node: item };
      yield* walk(item.subgraph, path);
    }
  }
}

const sourceOf = ({ node, group }) => node?.type ?? group;
