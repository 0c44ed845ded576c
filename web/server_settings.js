/**
 * Settings of this server on ComfyUI's settings page: asked of the server when they are shown, for they belong to it and not to a browser.
 */
import { ask, tell } from "./request.js";
import { make, useStyle } from "./elements.js";

const POLICIES = { fifo: "In the order in which they come", front: "Ahead of my prompts that wait" };

/**
 * Put the list of queue policies into an element.
 * @param {object} app
 * @param {HTMLElement} place
 */
export async function showQueuePolicy(app, place) {
  useStyle(app);
  const options = Object.entries(POLICIES).map(([value, words]) => make("option", { value }, words));
  const list = make("select", { "aria-label": "Calls of other machines", disabled: true, onchange: () => void choose() }, ...options);
  place.classList.add("ygg");
  place.replaceChildren(list);
  let now = null;
  async function choose() {
    try {
      now = (await ask(app, "settings", {}, { queue: list.value })).queue;
    } catch (error) {
      tell(app, "error", "The setting stays as it was", error.message);
    }
    list.value = now;
  }
  try {
    now = (await ask(app, "settings")).queue;
    Object.assign(list, { value: now, disabled: false });
  } catch (error) {
    place.replaceChildren(error.message);
  }
}
