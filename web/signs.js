/**
 * What the node says of itself: a badge with a problem, a button that follows a changed contract, a seed where there is one.
 */
import { widgetOf } from "./widgets.js";

/** The label of the button. */
export const FOLLOW = "Follow the changed contract";

/**
 * Show a problem as a badge, and offer to follow a changed contract; null takes both away.
 * @param {object} node
 * @param {{text: string, tone: "warn" | "error", detail: string} | null} problem
 */
export function say(node, problem) {
  node.yggdrasill.problem = problem;
  const button = widgetOf(node, FOLLOW);
  if (node.yggdrasill.offered && !button) {
    const made = node.addWidget("button", FOLLOW, null, () => node.yggdrasill.follow(), { serialize: false });
    made.serialize = false;
    made.tooltip = problem?.detail;
  } else if (!node.yggdrasill.offered && button) {
    node.removeWidget(button);
    node.setSize([node.size[0], node.computeSize()[1]]);
  }
  redraw(node);
}

/** Both ways of drawing nodes look again: the canvas, and the one that follows changes of the list of widgets. */
function redraw(node) {
  node.widgets.push(node.widgets.pop());
  node.graph?.setDirtyCanvas(true, true);
}

/**
 * @param {object} node
 * @returns {object} the badge; without text while all is well
 */
export function badgeOf(node) {
  const { problem } = node.yggdrasill;
  void node.widgets.length; // read, so that a change of it is a reason to ask again
  const bgColor = problem?.tone === "error" ? "#a11" : "#960";
  return new LGraphBadge({ text: problem ? `⚠ ${problem.text}` : "", fgColor: "#fff", bgColor });
}

/**
 * The seed is for graphs of blocks: a workflow has its own.
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
