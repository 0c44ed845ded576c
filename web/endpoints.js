/**
 * Letting this server know another endpoint.
 */
import { ask, tell } from "./request.js";

/**
 * Let this server know an endpoint whose address and token the user gives; it is kept if it answers.
 * @param {object} app
 */
export async function addEndpoint(app) {
  const { dialog } = app.extensionManager;
  const title = "Add an endpoint";
  const url = (await dialog.prompt({ title, message: "Its address", placeholder: "http://192.168.1.20:8188" }))?.trim();
  if (!url) return;
  const where = "Its token: the text in the file user/yggdrasill/token of that ComfyUI";
  const token = (await dialog.prompt({ title, message: where }))?.trim();
  if (token === undefined) return;
  const known = URL.canParse(url) ? new URL(url).hostname : "";
  const name = (await dialog.prompt({ title, message: "The name that workflows use for it", defaultValue: known }))?.trim();
  if (!name) return;
  try {
    const { graphs } = await ask(app, "endpoints", {}, { name, url, token });
    const served = graphs.map(({ graph_id }) => graph_id).join(", ") || "no graph yet";
    tell(app, "success", `Endpoint “${name}” is known`, `It serves ${served}.`);
  } catch (error) {
    tell(app, "error", `Endpoint “${name}” was not added`, error.message);
  }
}
