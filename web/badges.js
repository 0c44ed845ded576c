/**
 * Badges on nodes that run on an endpoint, with what the server answered. They are updated when an answer or the open graph changes, not when a
 * node is drawn.
 */
import { onChange, signOf } from "./placements.js";

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
  for (const node of graph._nodes) setBadge(node, shown ? badgeText(signOf(node)) : "");
  graph.setDirtyCanvas(true, true);
}

const badgeText = (sign) => (sign ? `${sign.partly ? "partly on" : "on"} ${sign.places.join(", ")}` : "");

function setBadge(node, text) {
  if ((badges.get(node)?.text ?? "") === text) return;
  badges.set(node, new window.LGraphBadge({ text, fgColor: "#fff", bgColor: "#2563a8" }));
  const { outputs } = node;
  if (!outputs) return;
  if (!Object.hasOwn(outputs, BADGE_KEY)) Object.defineProperty(outputs, BADGE_KEY, { value: "", writable: true, configurable: true });
  outputs[BADGE_KEY] = text;
}
