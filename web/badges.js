/**
 * Signs on nodes that run elsewhere. What each node says is looked up when the workflow or the registry has changed, not when it is drawn.
 */
import { boxOf, nodesIn, partsOf } from "./parts.js";
import { onChange, placeOf } from "./registry.js";

/** The setting that shows them. */
const SHOWN = "Yggdrasill.Badges";
/** A key of the node's list of outputs: the drawing of nodes as elements watches what is read of it, as `start/yggdrasill.js` does. */
const WATCHED = "yggdrasillSign";

/** What each node says. @type {WeakMap<object, object>} */
const signs = new WeakMap();

/** @returns {object | undefined} the badge that a node bears */
export const signOf = (node) => signs.get(node);

/**
 * Keep the signs of the open graph true from now on.
 * @param {object} app
 */
export function showBadges(app) {
  const look = () => lookAt(app, app.canvas.graph);
  onChange(look);
  app.api.addEventListener("graphChanged", look);
  app.canvas.canvas.addEventListener("litegraph:set-graph", () => queueMicrotask(look));
  look();
}

/**
 * @param {object} app
 * @param {object | null} graph the one that is seen
 * @param {boolean} [shown] whether nodes say where they run; else as it is set
 */
export function lookAt(app, graph, shown = app.extensionManager.setting.get(SHOWN) ?? true) {
  if (!graph) return;
  const found = shown ? placedNodes(app, graph) : new Map();
  for (const node of graph._nodes) say(node, found.get(node) ?? "");
  graph.setDirtyCanvas(true, true);
}

/** @returns {Map<object, string>} the nodes of a graph that run elsewhere; what a subgraph says of itself goes before a group it lies in */
function placedNodes(app, graph) {
  const found = new Map();
  const parts = partsOf(app).map((part) => ({ ...part, ...placeOf(part) }));
  for (const { group, names, graph: home } of parts) {
    if (group && home === graph && names.length) for (const node of nodesIn(graph, boxOf(group))) found.set(node, words(names));
  }
  for (const part of parts.filter(({ node }) => node)) {
    for (const node of twinsOf(graph, part.node)) {
      const { names, key } = placeOf({ ...part, node });
      if (names.length || key) found.set(node, words(names));
    }
  }
  return found;
}

/** The nodes of a graph that are the same part: instances of one definition with one title. */
const twinsOf = (graph, { type, title }) => graph._nodes.filter((node) => node.type === type && node.title === title);

const words = (names) => (names.length ? `on ${names.join(" | ")}` : "");

function say(node, text) {
  if ((signs.get(node)?.text ?? "") === text) return;
  signs.set(node, new window.LGraphBadge({ text, fgColor: "#fff", bgColor: "#2563a8" }));
  const { outputs } = node;
  if (!outputs) return;
  if (!Object.hasOwn(outputs, WATCHED)) Object.defineProperty(outputs, WATCHED, { value: "", writable: true, configurable: true });
  outputs[WATCHED] = text;
}
