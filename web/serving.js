/**
 * The command that serves the open workflow on this server.
 */
import { notify, request } from "./request.js";

const OUTPUT_NODE = "YggdrasillGraphOutput";
const PORT_NODES = new Set(["YggdrasillGraphInput", OUTPUT_NODE]);

/**
 * Deploy the open workflow under a name that the user enters, and show where it is served.
 * @param {object} app
 */
export async function serveWorkflow(app) {
  const { output: prompt } = await app.graphToPrompt();
  numberPorts(app.rootGraph, prompt);
  const classes = Object.values(prompt).map((node) => node.class_type);
  if (!classes.includes(OUTPUT_NODE)) {
    const advice = "Add a Graph Output node for each value that callers receive, and a Graph Input node for each value that they provide.";
    notify(app, "warn", "This workflow has no outputs for callers", advice);
    return;
  }
  const extra = app.graph.extra;
  const defaultName = extra.yggdrasill?.served_as ?? app.extensionManager.workflow?.activeWorkflow?.filename ?? "workflow";
  const question = { title: "Serve this workflow", message: "Name under which callers use the workflow", defaultValue: defaultName };
  const name = (await app.extensionManager.dialog.prompt(question))?.trim();
  if (!name) return;
  try {
    const served = await deploy(app, name, prompt);
    if (!served) return;
    extra.yggdrasill = { ...extra.yggdrasill, served_as: name };
    const ports = `${served.inputs.join(", ") || "nothing"} → ${served.outputs.join(", ")}`;
    notify(app, "success", `Served as “${name}”`, `${ports}\nat ${served.url ?? location.origin}`);
  } catch (error) {
    notify(app, "error", "The workflow was not served", error.message);
  }
}

/**
 * Number the ports in a prompt in the order of their nodes in the editor: from top to bottom, then from left to right.
 * @param {object} graph
 * @param {object} prompt changed in place
 */
function numberPorts(graph, prompt) {
  const ports = Object.keys(prompt).filter((id) => PORT_NODES.has(prompt[id].class_type));
  const place = new Map(ports.map((id) => [id, placeOf(graph, id)]));
  ports.sort((a, b) => compare(place.get(a), place.get(b)));
  ports.forEach((id, order) => {
    prompt[id]._meta = { ...prompt[id]._meta, order };
  });
}

/** @returns {number[]} the position of a node, preceded by those of its enclosing subgraph nodes */
function placeOf(graph, id) {
  let outer = graph;
  return id.split(":").flatMap((part) => {
    const node = outer?.getNodeById(Number(part));
    outer = node?.subgraph;
    return node ? [node.pos[1], node.pos[0]] : [];
  });
}

function compare(one, other) {
  const index = one.findIndex((value, position) => value !== other[position]);
  return index < 0 ? one.length - other.length : one[index] - (other[index] ?? -Infinity);
}

/**
 * @param {object} app
 * @param {string} name
 * @param {object} prompt in ComfyUI's API format
 * @returns {Promise<object | null>} the deployment; null if the user kept the previous one
 */
async function deploy(app, name, prompt) {
  const body = { graph_id: name, prompt };
  try {
    return await request(app, "serve", {}, body);
  } catch (error) {
    if (error.kind !== "DuplicateName") throw error;
  }
  const message = `Another graph is served as “${name}”. Nodes that call it will call this workflow instead.`;
  const agreed = await app.extensionManager.dialog.confirm({ title: "Replace it?", message, type: "overwrite" });
  return agreed ? request(app, "serve", {}, { ...body, replace: true }) : null;
}
