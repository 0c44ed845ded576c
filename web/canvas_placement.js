/**
 * Placement on the canvas: badges on nodes and "Run on" in menus. Loaded at the first interaction with the page.
 */
import { updateBadges, showBadges } from "./badges.js";
export { badgeOf } from "./badges.js";
import { keepLists, updateNow } from "./model_lists.js";
import { endpoints, followCopies, isGroup, refresh, refreshSoon } from "./placements.js";
import { menuItems, openForSelection, targetOf } from "./run_on.js";

/** The command that opens "Run on" for the selection. */
const COMMAND = "Yggdrasill.RunOn";

/** Read the placements of the open workflow, and keep everything that depends on them up to date. */
export async function start(app) {
  await refresh(app);
  showBadges(app);
  followCopies(app);
  keepLists(app);
  await updateNow(app, false);
  const reload = () => void refresh(app);
  window.addEventListener("focus", reload);
  app.api.addEventListener("promptQueued", reload);
  app.api.addEventListener("graphChanged", () => refreshSoon(app));
}

/** Read the placements of a workflow that was opened, and show the lists of its nodes. */
export const opened = (app) => updateNow(app, true, refresh(app));

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

/** Show the lists of nodes whose definitions were read again. */
export const updateLists = (app) => updateNow(app, true);
