/**
 * "Run on": says of a part of the workflow which endpoint runs it. A subgraph and a group have a name, which is placed in the registry.
 *
 * Nodes without a name are given one that everybody can see: a frame around them, or a subgraph where a frame would take others in.
 * A selection that only this browser remembered would move work to another machine without a trace in the workflow.
 */
import { tell } from "./request.js";
import { make, useStyle } from "./elements.js";
import { nodesIn, partOf, partsOf } from "./parts.js";
import { LOCAL, endpoints, place, placeOf } from "./registry.js";

const HERE = "This server";
const FRAME_MARGIN = 10;
const TITLE_HEIGHT = 30;

/**
 * @typedef {object} Target
 * @property {import("./parts.js").Part[]} parts those that have a name already
 * @property {object[]} nodes those that have none
 */

/**
 * What "Run on" means for things on the canvas: parts, if all of them are parts, or their nodes.
 * @param {object} app
 * @param {Iterable<object>} items
 * @returns {Target}
 */
export function targetOf(app, items) {
  const list = [...items];
  const parts = list.map((item) => partOf(app, item));
  if (list.length && parts.every(Boolean)) return { parts, nodes: [] };
  return { parts: [], nodes: list.filter((item) => item.inputs && item.outputs) };
}

/**
 * The lines for a context menu, one with a submenu; none where nothing can be placed.
 * @param {object} app
 * @param {Target} target
 * @returns {object[]}
 */
export function menuItems(app, target) {
  const options = choicesFor(app, target).map(({ words, chosen, act }) => ({ content: chosen ? `✓ ${words}` : words, callback: () => void act() }));
  return options.length ? [null, { content: "Run on", has_submenu: true, submenu: { options } }] : [];
}

/**
 * Offer the choices for what is selected, at the tools over it: for the keyboard, and where menus cannot be added to.
 * @param {object} app
 */
export function offerForSelection(app) {
  const choices = choicesFor(app, targetOf(app, app.canvas.selectedItems));
  if (choices.length) openMenu(app, choices);
  else tell(app, "info", "Nothing is selected", "Select a subgraph, a group, or the nodes that are to run elsewhere.");
}

/** @returns {{words: string, chosen: boolean, act: () => Promise<void>}[]} */
function choicesFor(app, target) {
  if (!target.parts.length && !target.nodes.length) return [];
  const now = target.parts.length === 1 ? placeOf(target.parts[0]) : { names: [] };
  const there = endpoints().map((name) => ({ words: name, chosen: now.names.includes(name), act: () => runOn(app, target, name) }));
  if (!there.length) return [{ words: "Add an endpoint…", chosen: false, act: () => app.extensionManager.command.execute("Yggdrasill.AddEndpoint") }];
  if (!target.parts.length) return there;
  return [{ words: HERE, chosen: !now.names.length, act: () => runOn(app, target, LOCAL) }, ...there];
}

/**
 * Place what was chosen, after giving it a name if it has none.
 * @param {object} app
 * @param {Target} target
 * @param {string} where
 */
async function runOn(app, target, where) {
  try {
    const parts = target.parts.length ? target.parts : await named(app, target.nodes, where);
    await place(app, parts.map((part) => placeOf(part).key ?? part.name), where);
  } catch (error) {
    tell(app, "error", "It could not be placed", error.message);
  }
}

/**
 * Give nodes a name that the workflow shows.
 * @returns {Promise<import("./parts.js").Part[]>} none if the user thought better of it
 */
async function named(app, nodes, where) {
  const taken = new Set(partsOf(app).map(({ title }) => title));
  const graph = app.canvas.graph;
  const bounds = frameAround(nodes);
  const chosen = new Set(nodes);
  const others = nodesIn(graph, bounds).filter((node) => !chosen.has(node));
  const what = others.length
    ? `${others.length === 1 ? "Another node lies" : `${others.length} other nodes lie`} between them, so they become a subgraph of this name`
    : "They get a frame with this name";
  const title = `Run ${nodes.length === 1 ? "this node" : `these ${nodes.length} nodes`} on ${where}`;
  const name = (await app.extensionManager.dialog.prompt({ title, message: what, defaultValue: freeName(nodes, taken) }))?.trim();
  if (!name) return [];
  if (taken.has(name)) throw new Error(`A part of this workflow is called “${name}” already; choose another name.`);
  if (others.length) {
    const { node } = graph.convertToSubgraph(chosen);
    node.title = name;
    return [partOf(app, node)];
  }
  const group = new window.LiteGraph.LGraphGroup(name);
  group.pos = bounds.slice(0, 2);
  group.size = bounds.slice(2);
  graph.beforeChange();
  graph.add(group);
  graph.afterChange();
  app.extensionManager.workflow?.activeWorkflow?.changeTracker?.captureCanvasState();
  return [partOf(app, group)];
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

/** A menu at the tools over the selection, or in the middle; arrow keys, Enter and Escape work in it. */
function openMenu(app, choices) {
  useStyle(app);
  const lines = choices.map(({ words, chosen, act }) => {
    const choose = () => (dialog.close(), void act());
    const mark = make("i", { class: `pi ${chosen ? "pi-check" : ""}`, "aria-hidden": "true" });
    return make("button", { class: "ygg-line", type: "button", role: "menuitemradio", "aria-checked": String(chosen), onclick: choose }, mark, words);
  });
  const move = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, Enter: 0 }[event.key];
    event.stopPropagation();
    if (step === undefined) return;
    event.preventDefault();
    lines[(lines.indexOf(document.activeElement) + step + lines.length) % lines.length].focus();
  };
  // once the key is up: a dialog that opens would take it for its own
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
