/**
 * Serving the open workflow on this server.
 */
import { ask, tell } from "./request.js";

const OUTPUT_NODE = "YggdrasillGraphOutput";
const PORT_NODES = new Set(["YggdrasillGraphInput", OUTPUT_NODE]);

/**
 * Deploy the open workflow on this server under a name that the user gives, and say where it is served.
 * @param {object} app
 */
export async function serveWorkflow(app) {
  const { output: prompt } = await app.graphToPrompt();
  numberPorts(app.rootGraph, prompt);
  const classes = Object.values(prompt).map((node) => node.class_type);
  if (!classes.includes(OUTPUT_NODE)) {
    const advice = "Add a Graph Output node for each value that callers are to get, and a Graph Input node for each they are to give.";
    tell(app, "warn", "This workflow gives nothing to a caller", advice);
    return;
  }
  const extra = app.graph.extra;
  const known = extra.yggdrasill?.served_as ?? app.extensionManager.workflow?.activeWorkflow?.filename ?? "workflow";
  const asked = { title: "Serve this workflow", message: "The name that callers use", defaultValue: known };
  const name = (await app.extensionManager.dialog.prompt(asked))?.trim();
  if (!name) return;
  try {
    const served = await deploy(app, name, prompt);
    if (!served) return;
    extra.yggdrasill = { ...extra.yggdrasill, served_as: name };
    const ports = `${served.inputs.join(", ") || "nothing"} → ${served.outputs.join(", ")}`;
    tell(app, "success", `Served as “${name}”`, `${ports}\nat ${served.url ?? location.origin}`);
  } catch (error) {
    tell(app, "error", "The workflow is not served", error.message);
  }
}

/**
 * Say in a prompt which port comes first: callers see them as they stand in the editor, from top to bottom, then from left to right.
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

/** @returns {number[]} where a node stands, its subgraph's place before its own */
function placeOf(graph, id) {
  let around = graph;
  return id.split(":").flatMap((part) => {
    const node = around?.getNodeById(Number(part));
    around = node?.subgraph;
    return node ? [node.pos[1], node.pos[0]] : [];
  });
}

function compare(one, other) {
  const index = one.findIndex((value, at) => value !== other[at]);
  return index < 0 ? one.length - other.length : one[index] - (other[index] ?? -Infinity);
}

/**
 * @param {object} app
 * @param {string} name
 * @param {object} prompt in ComfyUI's API format
 * @returns {Promise<object | null>} what is served now; null if the user kept what was served before
 */
async function deploy(app, name, prompt) {
  const body = { graph_id: name, prompt };
  try {
    return await ask(app, "serve", {}, body);
  } catch (error) {
    if (error.kind !== "DuplicateName") throw error;
  }
  const message = `Another graph is served as “${name}”. Nodes that call it will call this workflow.`;
  const agreed = await app.extensionManager.dialog.confirm({ title: "Replace it?", message, type: "overwrite" });
  return agreed ? ask(app, "serve", {}, { ...body, replace: true }) : null;
}
