/**
 * The command that adds an endpoint to this server's registry.
 */
import { notify, request } from "./request.js";

/**
 * Prompt for an endpoint's address, token and name, and add it if it answers.
 * @param {object} app
 */
export async function addEndpoint(app) {
  const { dialog } = app.extensionManager;
  const title = "Add an endpoint";
  const url = (await dialog.prompt({ title, message: "Address of the endpoint", placeholder: "http://192.168.1.20:8188" }))?.trim();
  if (!url) return;
  const tokenMessage = "Token of the endpoint: the content of the file user/yggdrasill/token of that ComfyUI";
  const token = (await dialog.prompt({ title, message: tokenMessage }))?.trim();
  if (token === undefined) return;
  const host = URL.canParse(url) ? new URL(url).hostname : "";
  const name = (await dialog.prompt({ title, message: "Name of the endpoint in workflows", defaultValue: host }))?.trim();
  if (!name) return;
  try {
    const { graphs } = await request(app, "endpoints", {}, { name, url, token });
    const served = graphs.map(({ graph_id }) => graph_id).join(", ") || "no graphs yet";
    notify(app, "success", `Endpoint “${name}” was added`, `It serves ${served}.`);
  } catch (error) {
    notify(app, "error", `Endpoint “${name}” was not added`, error.message);
  }
}
