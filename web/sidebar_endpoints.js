/**
 * The endpoints in the sidebar: their states and inventories; adding one by its pairing line, testing and removing one.
 */
import { notify, request } from "./request.js";
import { button, bytes, fill, iconButton, make } from "./elements.js";
import { endpointForm } from "./endpoints.js";
import { refresh } from "./placements.js";

const PAUSE_MS = 5000;
const MAX_FILES = 200;
/** The names of the features that the server reports as off. */
const FEATURES = {
  endpoint: "Endpoint",
  remote_graph: "Graph nodes",
  placement: "Placement",
  nested_runs: "Local fallback and call cycles",
  editor: "Editor",
};
/** Short descriptions of an endpoint's state; its error message is shown below. */
const SHORT = { down: "does not answer", refused: "refuses the token", "other version": "has another version of Yggdrasill", starting: "is starting" };

/**
 * @param {object} app
 * @returns {import("./sidebar.js").Section}
 */
export function endpointsSection(app) {
  const list = make("ul", { class: "ygg-list" });
  const place = make("div");
  const copy = iconButton("pi-copy", "Copy this server's pairing line", () => void copyPairing(app));
  const add = iconButton("pi-plus", "Add an endpoint", () => showForm(), "add");
  const element = make("section", { "aria-label": "Endpoints" }, make("div", { class: "ygg-title" }, make("h3", {}, "Endpoints"), copy, add), place, list);
  const state = { app, list, status: null, files: new Map(), open: new Set(), update };

  function showForm() {
    if (place.firstChild) place.replaceChildren();
    else place.replaceChildren(endpointForm(app, () => (place.replaceChildren(), add.focus(), void update())));
    place.querySelector("textarea")?.focus();
  }

  async function update(fresh = false) {
    try {
      show(state, await request(app, "status", fresh ? { fresh: "1" } : {}));
    } catch (error) {
      state.shown = null;
      fill(list, make("li", { class: "ygg-problem" }, error.message));
    }
  }
  return { element, update, pause: () => PAUSE_MS };
}

function show(state, status) {
  const text = JSON.stringify([status, [...state.files]]);
  if (text === state.shown) return;
  Object.assign(state, { status, shown: text });
  const lines = status.endpoints.map((facts) => line(state, facts));
  if (!lines.length) lines.push(make("li", { class: "ygg-empty" }, "No endpoints yet. Add one with the pairing line of another machine."));
  fill(state.list, thisServerLine(status.here), ...lines);
}

function thisServerLine(here) {
  const words = here.problem ? make("div", { class: "ygg-problem" }, here.problem) : make("div", { class: "ygg-soft" }, busy(here));
  const off = Object.entries(here.off ?? {}).map(([feature, reason]) => make("div", { class: "ygg-problem", title: reason }, `${FEATURES[feature] ?? feature}: off`));
  return make("li", {}, make("div", { class: "ygg-row" }, dot(here.problem || off.length ? "failing" : "up"), make("b", {}, "This server")), words, ...off);
}

function line(state, facts) {
  const key = `endpoint ${facts.name}`;
  const summary = make(
    "summary",
    { "data-key": key },
    make("div", { class: "ygg-row" }, dot(facts.state), make("b", {}, facts.name), make("span", { class: "ygg-soft ygg-end" }, facts.host)),
    facts.problem
      ? make("div", { class: "ygg-problem" }, SHORT[facts.state] ?? "fails")
      : make("div", { class: "ygg-soft" }, busy(facts)),
  );
  const details = make("details", { open: state.open.has(facts.name) }, summary, detailsOf(state, facts));
  details.addEventListener("toggle", () => (details.open ? state.open.add(facts.name) : state.open.delete(facts.name)));
  return make("li", {}, details);
}

function detailsOf(state, facts) {
  const rows = facts.problem ? [["Problem", facts.problem]] : [
    ["Yggdrasill", facts.version],
    ["ComfyUI", facts.comfy ?? "none: it runs graphs of blocks only"],
    ["torch", facts.torch],
    ["Devices", facts.devices.filter(Boolean).join(", ")],
    ["Response time", facts.ms && `${facts.ms} ms`],
    ["Serves", facts.graphs === 1 ? "1 graph" : `${facts.graphs} graphs`],
  ];
  const table = make("dl", {}, ...rows.filter((row) => row[1]).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  const buttons = make(
    "div",
    { class: "ygg-buttons" },
    button("Test", () => void test(state, facts.name), `test ${facts.name}`),
    button("Remove", () => void remove(state, facts.name), `remove ${facts.name}`, "ygg-quiet"),
  );
  return make("div", { class: "ygg-about" }, table, modelsOf(state, facts), buttons);
}

function modelsOf(state, facts) {
  const folders = Object.entries(facts.models ?? {});
  if (!folders.length) return "";
  const count = folders.reduce((sum, [, number]) => sum + number, 0);
  const key = `models ${facts.name}`;
  const files = state.files.get(facts.name);
  const inside = files
    ? folders.map(([folder]) => make("div", {}, make("div", { class: "ygg-soft" }, folder), fileList(files[folder] ?? [])))
    : [make("div", { class: "ygg-soft" }, folders.map(([folder, number]) => `${folder}: ${number}`).join(", "))];
  const summary = make("summary", { "data-key": key }, count === 1 ? "1 model" : `${count} models`);
  const details = make("details", { class: "ygg-models", open: state.open.has(key) }, summary, ...inside);
  details.addEventListener("toggle", () => {
    if (details.open) state.open.add(key);
    else state.open.delete(key);
    if (details.open && !files) void test(state, facts.name, true);
  });
  return details;
}

function fileList(files) {
  const shown = files.slice(0, MAX_FILES).map((file) => make("li", { title: file }, file));
  if (files.length > MAX_FILES) shown.push(make("li", {}, `and ${files.length - MAX_FILES} more`));
  return make("ul", { class: "ygg-files" }, ...shown);
}

async function test(state, name, quiet = false) {
  const { app } = state;
  try {
    const { files, ...facts } = await request(app, "endpoint", { name });
    state.files.set(name, files);
    show(state, { ...state.status, endpoints: state.status.endpoints.map((each) => (each.name === name ? facts : each)) });
    if (quiet) return;
    if (facts.problem) notify(app, "warn", `Endpoint “${name}”`, facts.problem);
    else notify(app, "success", `Endpoint “${name}” answers`, `in ${facts.ms} ms`);
  } catch (error) {
    notify(app, "error", `Endpoint “${name}”`, error.message);
  }
}

async function remove(state, name) {
  const { app } = state;
  try {
    const used = await request(app, "uses", { name });
    const message = `This server deletes the address and the token of “${name}”. The endpoint itself is not changed.${usesText(used)}`;
    if (!(await app.extensionManager.dialog.confirm({ title: `Remove ${name}?`, message, type: "delete" }))) return;
    await request(app, "remove", {}, { name, drop: true });
    await Promise.all([refresh(app), state.update()]);
  } catch (error) {
    notify(app, "error", `Endpoint “${name}” was not removed`, error.message);
  }
}

/** What the removal of an endpoint means for the workflows that place parts on it. */
function usesText({ workflows, others }) {
  const lines = workflows.map(({ name, parts }) => `“${name}”: ${parts.join(", ")}`);
  if (others) lines.push(`${others} ${others === 1 ? "workflow" : "workflows"} of other users`);
  return lines.length ? `\n\nThese workflows run parts on it, which will run on this server:\n${lines.join("\n")}` : "";
}

// -- pairing ----------------------------------------------------------------------------------------------------

async function copyPairing(app) {
  try {
    const { line, near } = await request(app, "pairing", {}, {});
    await copyText(line);
    const where = near ? " It contains the local address of this machine. Replace it with the address at which other machines reach it." : "";
    notify(app, near ? "warn" : "success", "The pairing line was copied", `Anyone who has it can use this server. Paste it on the machine that will call this server.${where}`);
  } catch (error) {
    notify(app, "error", "The pairing line was not copied", error.message);
  }
}

/** Copy a text; pages that were not loaded over HTTPS have no `navigator.clipboard`. */
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("This browser does not allow copying.");
}

// -- texts ------------------------------------------------------------------------------------------------------

function dot(state) {
  return make("span", { class: `ygg-dot ygg-${state === "up" ? "up" : state === "down" ? "down" : "odd"}`, role: "img", "aria-label": state, title: state });
}

function busy({ queue, memory }) {
  const { running, queued } = queue;
  const words = running || queued ? [`${running} running, ${queued} waiting`] : ["idle"];
  words.push(...memory.map(({ free, total }) => `${bytes(free)} of ${bytes(total)} free`));
  return words.join(" · ");
}
