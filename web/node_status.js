/**
 * The status of a Remote Graph node: a badge with a problem, a button that applies a changed contract, and a seed for graphs that use one.
 */
import { widgetOf } from "./widgets.js";

/** The label of the button. */
export const UPDATE = "Update to the changed contract";

/**
 * Show a problem as a badge, with a button if a changed contract can be applied; null removes both.
 * @param {object} node
 * @param {{text: string, tone: "warn" | "error", detail: string} | null} problem
 */
export function setProblem(node, problem) {
  node.yggdrasill.problem = problem;
  const button = widgetOf(node, UPDATE);
  if (node.yggdrasill.newContract && !button) {
    const widget = node.addWidget("button", UPDATE, null, () => node.yggdrasill.update(), { serialize: false });
    widget.serialize = false;
    widget.tooltip = problem?.detail;
  } else if (!node.yggdrasill.newContract && button) {
    node.removeWidget(button);
    node.setSize([node.size[0], node.computeSize()[1]]);
  }
  redraw(node);
}

/** Redraw the node in both renderings: the canvas, and the Vue rendering, which observes the list of widgets. */
function redraw(node) {
  node.widgets.push(node.widgets.pop());
  node.graph?.setDirtyCanvas(true, true);
}

/**
 * @param {object} node
 * @returns {object} the badge, with an empty text if there is no problem
 */
export function badgeOf(node) {
  const { problem } = node.yggdrasill;
  void node.widgets.length; // read, so that a change of it updates the badge
  const bgColor = problem?.tone === "error" ? "#a11" : "#960";
  return new LGraphBadge({ text: problem ? `⚠ ${problem.text}` : "", fgColor: "#fff", bgColor });
}

/**
 * Show the seed for graphs of blocks and hide it for workflows, which contain their seeds.
 * @param {object} node
 * @param {object | null} contract
 */
export function showSeed(node, contract) {
  const hidden = contract?.kind === "comfy";
  const seed = widgetOf(node, "seed");
  for (const widget of seed ? [seed, ...(seed.linkedWidgets ?? [])] : []) {
    widget.hidden = hidden;
    widget.options.hidden = hidden;
  }
  redraw(node);
}
