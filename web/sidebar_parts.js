/**
 * The parts of the open workflow in the sidebar, each with a list of endpoints to place it on.
 */
import { notify } from "./request.js";
import { button, fill, make, symbol } from "./elements.js";
import { partsOf } from "./parts.js";
import { LOCAL, endpoints, onChange, place, placeOf, refresh } from "./registry.js";

const PAUSE_MS = 5000;
const PINNED = "";

/**
 * @param {object} app
 * @returns {import("./sidebar.js").Section}
 */
export function partsSection(app) {
  const list = make("ul", { class: "ygg-list" });
  const check = button("Preflight", () => void app.extensionManager.command.execute("Yggdrasill.Preflight"), "preflight");
  check.title = "Check which nodes would run on which endpoint, and what is missing there";
  const element = make("section", { "aria-label": "This workflow" }, make("div", { class: "ygg-title" }, make("h3", {}, "This workflow"), check), list);
  let shown = null;
  const show = () => {
    if (!element.isConnected && shown !== null) return;
    const parts = partsOf(app);
    const text = JSON.stringify([endpoints(), parts.map((part) => [part.kind, part.name, placeOf(part)])]);
    if (text === shown) return;
    shown = text;
    check.hidden = !parts.length;
    fill(list, ...(parts.length ? parts.map((part) => line(app, part)) : [nothing()]));
  };
  onChange(show);
  app.api.addEventListener("graphChanged", show);
  return { element, update: async () => (await refresh(app), show()), pause: () => PAUSE_MS };
}

function line(app, part) {
  const { names, key } = placeOf(part);
  const choices = [[LOCAL, "this server"], ...endpoints().map((name) => [name, name])];
  if (names.length > 1) choices.push([names.join("|"), names.join(" | ")]);
  const pinned = key === null && names.length;
  if (pinned) choices.unshift([PINNED, `${names[0]} (pinned)`]);
  const chosen = pinned ? PINNED : names.join("|") || LOCAL;
  const select = make(
    "select",
    { "data-key": `part ${part.name}`, "aria-label": `Endpoint for ${part.name}`, onchange: () => void choose() },
    ...choices.map(([value, words]) => make("option", { value, selected: value === chosen }, words)),
  );
  async function choose() {
    if (select.value.includes("|")) return;
    try {
      await place(app, [key ?? part.name], select.value || null);
    } catch (error) {
      select.value = chosen;
      notify(app, "error", `“${part.name}” could not be placed`, error.message);
    }
  }
  const icon = part.kind === "subgraph" ? "pi-sitemap" : "pi-stop";
  const name = make("button", { class: "ygg-link", type: "button", title: `Show this ${part.kind}`, "data-key": `show ${part.name}`, onclick: () => goTo(app, part) }, part.name);
  return make("li", { class: "ygg-row" }, symbol(icon), name, select);
}

function nothing() {
  return make("li", { class: "ygg-empty" }, "This workflow has no named parts yet. Select nodes and choose “Run on”, or turn them into a subgraph or a group.");
}

function goTo(app, part) {
  const item = part.node ?? part.group;
  if (part.graph !== app.canvas.graph) app.canvas.setGraph(part.graph);
  app.canvas.deselectAll();
  app.canvas.select(item);
  app.canvas.centerOnNode?.(item);
  app.canvas.setDirty(true, true);
}
