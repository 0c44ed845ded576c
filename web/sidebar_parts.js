/**
 * The parts of the open workflow in the sidebar, each with a list of endpoints to place it on.
 */
import { notify } from "./request.js";
import { button, fill, make, symbol } from "./elements.js";
import { LOCAL, endpoints, listParts, onChange, parts, place, problem, refresh } from "./placements.js";

const PAUSE_MS = 5000;

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
    const text = JSON.stringify([endpoints(), parts(), problem()]);
    if (text === shown) return;
    shown = text;
    const lines = parts().length ? parts().map((part) => line(app, part)) : [nothing()];
    if (problem()) lines.unshift(make("li", { class: "ygg-problem" }, problem()));
    fill(list, ...lines);
  };
  onChange(show);
  listParts(() => element.isConnected);
  return { element, update: async () => (await refresh(app), show()), pause: () => PAUSE_MS };
}

function line(app, part) {
  const { places, otherwise, stored } = part;
  const names = endpoints().includes(places[0]) || !places.length ? endpoints() : [...endpoints(), places[0]];
  const choices = [[LOCAL, "this server"], ...names.map((name) => [name, name])];
  const chosen = places.join("|") || LOCAL;
  if (places.length > 1) choices.push([chosen, places.join(" | ")]);
  const select = make(
    "select",
    { "data-key": `part ${part.name}`, "aria-label": `Endpoint for ${part.name}`, onchange: () => void choose() },
    ...choices.map(([value, words]) => make("option", { value, selected: value === chosen }, words)),
  );
  const elsewhere = otherwise.length ? otherwise.join(" | ") : "this server";
  select.title = stored ? `Placed in this workflow. Without this placement: ${elsewhere}` : places.length ? "Placed for all workflows, or by a part around it" : "";
  async function choose() {
    if (select.value.includes("|")) return;
    try {
      await place(app, [part], select.value);
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
  const root = app.rootGraph ?? app.graph;
  const graph = part.graph ? root.subgraphs.get(part.graph) : root;
  const items = part.kind === "group" ? graph?._groups : graph?._nodes;
  const item = items?.find(({ id }) => String(id) === part.id);
  if (!item) return;
  if (graph !== app.canvas.graph) app.canvas.setGraph(graph);
  app.canvas.deselectAll();
  app.canvas.select(item);
  app.canvas.centerOnNode?.(item);
  app.canvas.setDirty(true, true);
}
