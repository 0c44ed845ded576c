/**
 * Settings of this server on ComfyUI's settings page. They are requested from the server when shown, because they are not stored in the browser.
 */
import { notify, request } from "./request.js";
import { make, useStyle } from "./elements.js";

const POLICIES = { fifo: "In order of arrival", front: "Ahead of my waiting prompts" };

/**
 * Show the list of queue policies in an element.
 * @param {object} app
 * @param {HTMLElement} container
 */
export async function showQueuePolicy(app, container) {
  useStyle(app);
  const options = Object.entries(POLICIES).map(([value, words]) => make("option", { value }, words));
  const list = make("select", { "aria-label": "Calls from other machines", disabled: true, onchange: () => void choose() }, ...options);
  container.classList.add("ygg");
  container.replaceChildren(list);
  let current = null;
  async function choose() {
    try {
      current = (await request(app, "settings", {}, { queue: list.value })).queue;
    } catch (error) {
      notify(app, "error", "The setting was not changed", error.message);
    }
    list.value = current;
  }
  try {
    current = (await request(app, "settings")).queue;
    Object.assign(list, { value: current, disabled: false });
  } catch (error) {
    container.replaceChildren(error.message);
  }
}
