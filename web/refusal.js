/**
 * Refused prompts: why a placed part does not run, with what can be done, as a message and on the part's own nodes.
 *
 * ComfyUI's page knows the types of its own validation errors only and shows a general sentence for any other. So the errors of the extension are
 * taken out of the response that the page receives, their message becomes the error of the prompt, and the nodes are marked here.
 */
import { button, iconButton, make, useStyle } from "./elements.js";

/** How the types of the extension's errors begin in ComfyUI's response. */
const TYPE = "yggdrasill_";
/** How the types of the extension's exceptions begin. */
const EXCEPTION = "yggdrasill.errors.";
const BADGE_KEY = "yggdrasillRefusal";
const TAB = "yggdrasill";

/** The badge of each marked node. @type {Map<object, object>} */
const marked = new Map();
let message = null;

/** @returns {object | undefined} the badge of a node of a refused part */
export const badgeOf = (node) => marked.get(node);

/** Remove the message and the marks of the run before. */
export function clear(app) {
  message?.remove();
  message = null;
  const nodes = [...marked.keys()];
  marked.clear();
  for (const node of nodes) redraw(node, false);
  app.canvas?.setDirty(true, true);
}

/**
 * Show why a prompt was refused, if the extension has refused it.
 * @param {object} app
 * @param {object} response ComfyUI's answer; changed in place, so that the page shows the same sentence
 * @param {(parts: string[]) => void} runHere queues the workflow with these parts on this server
 */
export function showRefusal(app, response, runHere) {
  const own = takeOwn(response);
  if (!own.errors.length) return;
  const text = own.errors[0].details;
  const { kind, parts = [] } = own.errors[0].extra_info?.yggdrasill ?? {};
  if (!Object.keys(response.node_errors).length) response.error = { type: own.errors[0].type, message: firstSentence(text), details: text };
  for (const id of own.nodes) for (const node of nodesOnPath(app, id)) mark(node);
  app.canvas.setDirty(true, true);
  const title = parts.length ? `${parts.map((name) => (name === "*" ? "The workflow" : `“${name}”`)).join(", ")} cannot run where it is placed` : "The workflow cannot run as it is placed";
  const acts = [button(kind === "MissingFile" ? "Preflight: fetch what is missing" : "Preflight", () => command(app, "Yggdrasill.Preflight"))];
  if (parts.length) acts.push(button("Run here", () => runHere(parts)), button("Place elsewhere", () => openTab(app)));
  show(app, title, text, acts);
}

/**
 * Show why a part failed while the prompt ran, if the extension raised the error.
 * @param {object} app
 * @param {{exception_type: string, exception_message: string}} facts of ComfyUI's message
 */
export function showFailure(app, { exception_type, exception_message }) {
  if (!exception_type?.startsWith(EXCEPTION)) return;
  const acts = [button("Preflight", () => command(app, "Yggdrasill.Preflight")), button("Place elsewhere", () => openTab(app))];
  show(app, "A part that runs on an endpoint failed", exception_message.trim(), acts);
}

/** Take the extension's errors out of a response. @returns {{errors: object[], nodes: string[]}} */
function takeOwn(response) {
  const errors = [];
  const nodes = [];
  response.node_errors ??= {};
  for (const [id, entry] of Object.entries(response.node_errors)) {
    const own = entry.errors.filter(({ type }) => type.startsWith(TYPE));
    if (!own.length) continue;
    errors.push(...own);
    nodes.push(id);
    entry.errors = entry.errors.filter((error) => !own.includes(error));
    if (!entry.errors.length) delete response.node_errors[id];
  }
  return { errors, nodes };
}

/** @returns {string} the first sentence of a message; a dot inside a name or a version does not end it */
const firstSentence = (text) => text.match(/^.*?[.!?](?=\s+[A-Z]|$)/s)?.[0] ?? text;

/** @returns {object[]} the node with an id as prompts have it, and the subgraph nodes around it */
function nodesOnPath(app, path) {
  const found = [];
  let graph = app.rootGraph ?? app.graph;
  for (const id of String(path).split(":")) {
    const node = graph?.getNodeById(Number(id));
    if (node) found.push(node);
    graph = node?.subgraph;
  }
  return found;
}

function mark(node) {
  marked.set(node, new window.LGraphBadge({ text: "⚠ cannot run where placed", fgColor: "#fff", bgColor: "#a11" }));
  redraw(node, true);
}

/** Frame a node in red, and make the Vue rendering read its badges again: it observes reads of this key of `outputs`. */
function redraw(node, isRefused) {
  const before = node.has_errors;
  node.has_errors = isRefused;
  node.graph?.trigger?.("node:property:changed", { type: "node:property:changed", nodeId: node.id, property: "has_errors", oldValue: before, newValue: isRefused });
  const { outputs } = node;
  if (!outputs) return;
  if (!Object.hasOwn(outputs, BADGE_KEY)) Object.defineProperty(outputs, BADGE_KEY, { value: false, writable: true, configurable: true });
  outputs[BADGE_KEY] = isRefused;
}

function show(app, title, text, acts) {
  useStyle(app);
  message?.remove();
  const close = iconButton("pi-times", "Close", () => message?.remove());
  message = make(
    "div",
    { class: "ygg ygg-refusal", role: "alert", "aria-label": title },
    make("div", { class: "ygg-row" }, make("b", {}, title), close),
    make("div", {}, text),
    make("div", { class: "ygg-buttons" }, ...acts),
  );
  document.body.append(message);
}

function command(app, id) {
  message?.remove();
  void app.extensionManager.command.execute(id);
}

function openTab(app) {
  message?.remove();
  app.extensionManager.sidebarTab.activeSidebarTabId = TAB;
}
