/**
 * Serving the open workflow on this server.
 */
import { ask, tell } from "./asking.js";

const OUTPUT_NODE = "YggdrasillGraphOutput";

/**
 * Deploy the open workflow on this server under a name that the user gives, and say where it is served.
 * @param {object} app
 */
export async function serveWorkflow(app) {
  const { output: prompt } = await app.graphToPrompt();
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
