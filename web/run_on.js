/**
 * "Run on": places a part of the open workflow on an endpoint. A part is a subgraph or a group.
 *
 * Other nodes become a part that is visible in the workflow: a group or, if a group would include other nodes, a subgraph. A selection that is
 * not visible would move work to another machine without a trace in the workflow.
 */
import { notify } from "./request.js";
import { make, useStyle } from "./elements.js";
import { LOCAL, endpoints, partOf, parts, place } from "./placements.js";

const THIS_SERVER = "This server";
const FRAME_MARGIN = 10;
const TITLE_HEIGHT = 30;

/**
 * @typedef {object} Target
 * @property {import("./placements.js").Part[]} parts items that have a name
 * @property {object[]} nodes items that have none
 */

/**
 * Determine what "Run on" applies to: parts, if all items are parts, else the nodes among them.
 * @param {object} app
 * @param {Iterable<object>} items
 * @returns {Target}
 */
export function targetOf(app, items) {
  const list = [...items];
  const found = list.map(partOf);
  if (list.length && found.every(Boolean)) return { parts: found, nodes: [] };
  return { parts: [], nodes: list.filter((item) => item.inputs && item.outputs) };
}

/**
 * The items for a context menu, one with a submenu; empty if nothing can be placed.
 * @param {object} app
 * @param {Target} target
 * @returns {object[]}
 */
export function menuItems(app, target) {
  const options = choicesFor(app, target).map(({ label, chosen, action }) => ({ content: chosen ? `✓ ${label}` : label, callback: () => void action() }));
  return options.length ? [null, { content: "Run on", has_submenu: true, submenu: { options } }] : [];
}

/**
 * Open the choices for the selection next to its toolbox: for the keyboard, and where menus cannot be extended.
 * @param {object} app
 */
export function openForSelection(app) {
  const choices = choicesFor(app, targetOf(app, app.canvas.selectedItems));
  if (choices.length) openMenu(app, choices);
  else notify(app, "info", "Nothing is selected", "Select a subgraph, a group, or the nodes to run on an endpoint.");
}

/** @returns {{label: string, chosen: boolean, action: () => Promise<void>}[]} */
function choicesFor(app, target) {
  if (!target.parts.length && !target.nodes.length) return [];
  const current = target.parts.length === 1 ? target.parts[0].places : null;
  const remote = endpoints().map((name) => ({ label: name, chosen: current?.includes(name) ?? false, action: () => runOn(app, target, name) }));
  if (!remote.length) return [{ label: "Add an endpoint…", chosen: false, action: () => app.extensionManager.command.execute("Yggdrasill.AddEndpoint") }];
  if (!target.parts.length) return remote;
  return [{ label: THIS_SERVER, chosen: current?.length === 0, action: () => runOn(app, target, LOCAL) }, ...remote];
}

/**
 * Place the target, after giving it a name if it has none.
 * @param {object} app
 * @param {Target} target
 * @param {string} endpoint
 */
async function runOn(app, target, endpoint) {
  try {
    const chosen = target.parts.length ? target.parts : await nameNodes(app, target.nodes, endpoint);
    if (chosen.length) await place(app, chosen, endpoint);
  } catch (error) {
    notify(app, "error", "The selection could not be placed", error.message);
  }
}

/**
 * Give nodes a name that is visible in the workflow.
 * @returns {Promise<import("./placements.js").Part[]>} empty if the user cancelled
 */
async function nameNodes(app, nodes, endpoint) {
  const taken = new Set(titlesOf(app));
  const graph = app.canvas.graph;
  const bounds = frameAround(nodes);
  const chosen = new Set(nodes);
  const others = nodesIn(graph, bounds).filter((node) => !chosen.has(node));
  const what = others.length
    ? `${others.length === 1 ? "Another node lies" : `${others.length} other nodes lie`} between them, so the selection becomes a subgraph with this name.`
    : `${nodes.length === 1 ? "It is" : "They are"} put into a group with this name.`;
  const title = `Run ${nodes.length === 1 ? "this node" : `these ${nodes.length} nodes`} on ${endpoint}`;
  const name = (await app.extensionManager.dialog.prompt({ title, message: what, defaultValue: freeName(nodes, taken) }))?.trim();
  if (!name) return [];
  if (taken.has(name)) throw new Error(`This workflow already has a part named “${name}”. Choose another name.`);
  if (others.length) {
    const { node } = graph.convertToSubgraph(chosen);
    node.title = name;
    return [partOf(node)];
  }
  const group = new window.LiteGraph.LGraphGroup(name);
  group.pos = bounds.slice(0, 2);
  group.size = bounds.slice(2);
  graph.beforeChange();
  graph.add(group);
  graph.afterChange();
  app.extensionManager.workflow?.activeWorkflow?.changeTracker?.captureCanvasState();
  return [partOf(group)];
}

/** The titles of the parts in the graph that is shown, and of all parts that the server knows. */
function titlesOf(app) {
  const { _groups, _nodes } = app.canvas.graph;
  const shown = [..._groups, ..._nodes.filter((node) => node.isSubgraphNode?.())].map(({ title }) => title?.trim());
  return [...shown, ...parts().map(({ title }) => title)];
}

/** The nodes of a graph whose center is in a box, as a group contains them. */
function nodesIn(graph, [x, y, width, height]) {
  return graph._nodes.filter(({ boundingRect: [left, top, wide, high] }) => {
    const center = [left + wide / 2, top + high / 2];
    return center[0] >= x && center[0] < x + width && center[1] >= y && center[1] < y + height;
  });
}

function frameAround(nodes) {
  const boxes = nodes.map(({ boundingRect }) => boundingRect);
  const left = Math.min(...boxes.map((box) => box[0])) - FRAME_MARGIN;
  const top = Math.min(...boxes.map((box) => box[1])) - TITLE_HEIGHT - FRAME_MARGIN;
  const right = Math.max(...boxes.map((box) => box[0] + box[2])) + FRAME_MARGIN;
  const bottom = Math.max(...boxes.map((box) => box[1] + box[3])) + FRAME_MARGIN;
  return [left, top, right - left, bottom - top];
}

function freeName(nodes, taken) {
  const base = nodes.length === 1 ? nodes[0].title : "Part";
  let name = base;
  for (let number = 2; taken.has(name); number += 1) name = `${base} ${number}`;
  return name;
}

/** Open a menu at the toolbox of the selection, or in the center; arrow keys, Enter and Escape work in it. */
function openMenu(app, choices) {
  useStyle(app);
  const lines = choices.map(({ label, chosen, action }) => {
    const choose = () => (dialog.close(), void action());
    const mark = make("i", { class: `pi ${chosen ? "pi-check" : ""}`, "aria-hidden": "true" });
    return make("button", { class: "ygg-line", type: "button", role: "menuitemradio", "aria-checked": String(chosen), onclick: choose }, mark, label);
  });
  const move = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, Enter: 0 }[event.key];
    event.stopPropagation();
    if (step === undefined) return;
    event.preventDefault();
    lines[(lines.indexOf(document.activeElement) + step + lines.length) % lines.length].focus();
  };
  // on keyup, because a dialog opened on keydown would handle the same key
  const press = (event) => event.key === "Enter" && document.activeElement.click();
  const dialog = make(
    "dialog",
    { class: "ygg ygg-menu", role: "menu", "aria-label": "Run on", onclose: () => dialog.remove(), onkeydown: move, onkeyup: press },
    make("div", { class: "ygg-menu-title" }, "Run on"),
    ...lines,
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  const tools = document.querySelector("[data-testid=selection-toolbox]")?.getBoundingClientRect();
  const { width, height } = dialog.getBoundingClientRect();
  const x = tools ? tools.right - width : (innerWidth - width) / 2;
  const y = tools ? tools.bottom + 6 : (innerHeight - height) / 2;
  dialog.style.left = `${Math.max(8, Math.min(x, innerWidth - width - 8))}px`;
  dialog.style.top = `${Math.max(8, Math.min(y, innerHeight - height - 8))}px`;
  lines[0].focus();
}
