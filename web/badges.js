/**
 * Badges on nodes that run on an endpoint. Their texts are computed when the workflow or the registry changes, not when a node is drawn.
 */
import { boxOf, nodesIn, partsOf } from "./parts.js";
import { onChange, placeOf } from "./registry.js";

/** The setting that shows the badges. */
const SHOW_BADGES = "Yggdrasill.Badges";
/** A key of a node's `outputs`. The Vue rendering observes reads of it, as `start/yggdrasill.js` does, and redraws the node when it changes. */
const BADGE_KEY = "yggdrasillBadge";

/** The badge of each node. @type {WeakMap<object, object>} */
const badges = new WeakMap();

/** @returns {object | undefined} the badge of a node */
export const badgeOf = (node) => badges.get(node);

/**
 * Keep the badges of the open graph up to date from now on.
 * @param {object} app
 */
export function showBadges(app) {
  const update = () => updateBadges(app, app.canvas.graph);
  onChange(update);
  app.api.addEventListener("graphChanged", update);
  app.canvas.canvas.addEventListener("litegraph:set-graph", () => queueMicrotask(update));
  update();
}

/**
 * Update the badges of a graph.
 * @param {object} app
 * @param {object | null} graph the graph that is shown
 * @param {boolean} [shown] whether badges are shown; by default as the setting says
 */
export function updateBadges(app, graph, shown = app.extensionManager.setting.get(SHOW_BADGES) ?? true) {
  if (!graph) return;
  const found = shown ? placedNodes(app, graph) : new Map();
  for (const node of graph._nodes) setBadge(node, found.get(node) ?? "");
  graph.setDirtyCanvas(true, true);
}

/** @returns {Map<object, string>} badge texts of a graph's placed nodes; the placement of a subgraph node overrides that of its group */
function placedNodes(app, graph) {
  const found = new Map();
  const parts = partsOf(app).map((part) => ({ ...part, ...placeOf(part) }));
  for (const { group, names, graph: owner } of parts) {
    if (group && owner === graph && names.length) for (const node of nodesIn(graph, boxOf(group))) found.set(node, badgeText(names));
  }
  for (const part of parts.filter(({ node }) => node)) {
    for (const node of instancesOf(graph, part.node)) {
      const { names, key } = placeOf({ ...part, node });
      if (names.length || key) found.set(node, badgeText(names));
    }
  }
  return found;
}

/** The nodes of a graph that belong to the same part: instances of one definition with one title. */
const instancesOf = (graph, { type, title }) => graph._nodes.filter((node) => node.type === type && node.title === title);

const badgeText = (names) => (names.length ? `on ${names.join(" | ")}` : "");

function setBadge(node, text) {
  if ((badges.get(node)?.text ?? "") === text) return;
  badges.set(node, new window.LGraphBadge({ text, fgColor: "#fff", bgColor: "#2563a8" }));
  const { outputs } = node;
  if (!outputs) return;
  if (!Object.hasOwn(outputs, BADGE_KEY)) Object.defineProperty(outputs, BADGE_KEY, { value: "", writable: true, configurable: true });
  outputs[BADGE_KEY] = text;
}
