/**
 * Where parts run, as the canvas shows and changes it: signs on nodes, and "Run on" in menus. Loaded once somebody is at the page.
 */
import { lookAt, showBadges } from "./badges.js";
export { signOf } from "./badges.js";
import { isGroup } from "./parts.js";
import { endpoints, refresh } from "./registry.js";
import { menuItems, offerForSelection, targetOf } from "./run_on.js";

/** The command of "Run on" for what is selected. */
const COMMAND = "Yggdrasill.RunOn";

/** Read the registry, and keep what is seen of it true. */
export async function begin(app) {
  await refresh(app);
  showBadges(app);
  const again = () => void refresh(app);
  window.addEventListener("focus", again);
  app.api.addEventListener("promptQueued", again);
}

/** @returns {object[]} lines for the menu of a node, which stands for the whole selection that it belongs to */
export function nodeItems(node, app) {
  const { selectedItems } = app.canvas;
  return menuItems(app, targetOf(app, selectedItems.has(node) ? selectedItems : [node]));
}

/** @returns {object[]} lines for the menu of the canvas: for the group under the pointer, or else for what is selected */
export function canvasItems(canvas, app) {
  const group = canvas.graph.getGroupOnPos(...canvas.graph_mouse);
  return menuItems(app, targetOf(app, group ? [group] : canvas.selectedItems));
}

/** @returns {string[]} commands for the tools over a selection */
export function toolboxCommands(item, app) {
  const worth = item.isSubgraphNode?.() || isGroup(item) || app.canvas.selectedItems.size > 1;
  return worth && endpoints().length ? [COMMAND] : [];
}

/** Offer "Run on" for what is selected. */
export const runOn = (app) => offerForSelection(app);

/** Draw the signs on nodes again: whether they are shown has changed. */
export const redraw = (app, shown) => lookAt(app, app.canvas.graph, shown);
