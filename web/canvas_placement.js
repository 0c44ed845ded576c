/**
 * Placement on the canvas: badges on nodes and "Run on" in menus. Loaded at the first interaction with the page.
 */
import { updateBadges, showBadges } from "./badges.js";
export { badgeOf } from "./badges.js";
import { keepLists, updateNow } from "./model_lists.js";
import { isGroup } from "./parts.js";
import { endpoints, refresh } from "./registry.js";
import { menuItems, openForSelection, targetOf } from "./run_on.js";

/** The command that opens "Run on" for the selection. */
const COMMAND = "Yggdrasill.RunOn";

/** Read the registry, and keep everything that depends on it up to date. */
export async function start(app) {
  await refresh(app);
  showBadges(app);
  keepLists(app);
  await updateNow(app, false);
  const reload = () => void refresh(app);
  window.addEventListener("focus", reload);
  app.api.addEventListener("promptQueued", reload);
}

/** @returns {object[]} items for the menu of a node; they apply to the whole selection if the node is part of it */
export function nodeItems(node, app) {
  const { selectedItems } = app.canvas;
  return menuItems(app, targetOf(app, selectedItems.has(node) ? selectedItems : [node]));
}

/** @returns {object[]} items for the menu of the canvas: for the group under the pointer, else for the selection */
export function canvasItems(canvas, app) {
  const group = canvas.graph.getGroupOnPos(...canvas.graph_mouse);
  return menuItems(app, targetOf(app, group ? [group] : canvas.selectedItems));
}

/** @returns {string[]} commands for the toolbox of a selection */
export function toolboxCommands(item, app) {
  const placeable = item.isSubgraphNode?.() || isGroup(item) || app.canvas.selectedItems.size > 1;
  return placeable && endpoints().length ? [COMMAND] : [];
}

/** Open "Run on" for the selection. */
export const runOn = (app) => openForSelection(app);

/** Redraw the badges after the setting that shows them has changed. */
export const redraw = (app, shown) => updateBadges(app, app.canvas.graph, shown);

/** Show the lists of a workflow that was opened, or of nodes whose lists were read again. */
export const updateLists = (app) => updateNow(app, true);
