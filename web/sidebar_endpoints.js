/**
 * The endpoints in the sidebar: how each one is, what it has; adding one by its pairing line, testing and removing one.
 */
import { ask, tell } from "./request.js";
import { button, bytes, fill, iconButton, make } from "./elements.js";
import { refresh } from "./registry.js";

const PAUSE_MS = 5000;
const MOST_FILES = 200;
/** What an endpoint's state is called; its own words stand below. */
const SHORT = { down: "does not answer", refused: "refuses the token", "other version": "has another version of Yggdrasill" };

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
  const state = { app, list, told: null, files: new Map(), open: new Set(), look };

  function showForm() {
    if (place.firstChild) place.replaceChildren();
    else place.replaceChildren(pairingForm(app, () => (place.replaceChildren(), add.focus(), void look())));
    place.querySelector("textarea")?.focus();
  }

  async function look(fresh = false) {
    try {
      show(state, await ask(app, "status", fresh ? { fresh: "1" } : {}));
    } catch (error) {
      state.shown = null;
      fill(list, make("li", { class: "ygg-problem" }, error.message));
    }
  }
  return { element, look, pause: () => PAUSE_MS };
}

function show(state, told) {
  const text = JSON.stringify([told, [...state.files]]);
  if (text === state.shown) return;
  Object.assign(state, { told, shown: text });
  const lines = told.endpoints.map((facts) => line(state, facts));
  if (!lines.length) lines.push(make("li", { class: "ygg-empty" }, "No endpoint yet. Add one with the pairing line of another machine."));
  fill(state.list, hereLine(told.here), ...lines);
}

function hereLine(here) {
  const words = here.problem ? make("div", { class: "ygg-problem" }, here.problem) : make("div", { class: "ygg-soft" }, busy(here));
  return make("li", {}, make("div", { class: "ygg-row" }, dot(here.problem ? "failing" : "up"), make("b", {}, "This server")), words);
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
  const details = make("details", { open: state.open.has(facts.name) }, summary, about(state, facts));
  details.addEventListener("toggle", () => (details.open ? state.open.add(facts.name) : state.open.delete(facts.name)));
  return make("li", {}, details);
}

function about(state, facts) {
  const rows = facts.problem ? [["Problem", facts.problem]] : [
    ["Yggdrasill", facts.version],
    ["ComfyUI", facts.comfy ?? "none: it runs graphs of blocks only"],
    ["torch", facts.torch],
    ["Computes on", facts.devices.filter(Boolean).join(", ")],
    ["Answered in", facts.ms && `${facts.ms} ms`],
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
  const shown = files.slice(0, MOST_FILES).map((file) => make("li", { title: file }, file));
  if (files.length > MOST_FILES) shown.push(make("li", {}, `and ${files.length - MOST_FILES} more`));
  return make("ul", { class: "ygg-files" }, ...shown);
}

async function test(state, name, quiet = false) {
  const { app } = state;
  try {
    const { files, ...facts } = await ask(app, "endpoint", { name });
    state.files.set(name, files);
    show(state, { ...state.told, endpoints: state.told.endpoints.map((each) => (each.name === name ? facts : each)) });
    if (quiet) return;
    if (facts.problem) tell(app, "warn", `Endpoint “${name}”`, facts.problem);
    else tell(app, "success", `Endpoint “${name}” answers`, `in ${facts.ms} ms`);
  } catch (error) {
    tell(app, "error", `Endpoint “${name}”`, error.message);
  }
}

async function remove(state, name) {
  const { app } = state;
  const message = `This server forgets the address and the token of “${name}”. The endpoint itself is left alone.`;
  if (!(await app.extensionManager.dialog.confirm({ title: `Remove ${name}?`, message, type: "delete" }))) return;
  try {
    await ask(app, "remove", {}, { name });
    await Promise.all([refresh(app), state.look()]);
  } catch (error) {
    tell(app, "error", `Endpoint “${name}” stays`, error.message);
  }
}

// -- pairing ----------------------------------------------------------------------------------------------------

function pairingForm(app, done) {
  const line = make("textarea", { rows: 3, required: true, spellcheck: false, autocomplete: "off", placeholder: "yggdrasill endpoints add NAME URL --token TOKEN" });
  const name = make("input", { placeholder: "as the line says, or the host's", autocomplete: "off" });
  const problem = make("div", { class: "ygg-problem", role: "alert" });
  const add = make("button", { class: "ygg-button ygg-main", type: "submit" }, "Add");
  async function submit(event) {
    event.preventDefault();
    add.disabled = true;
    problem.textContent = "";
    try {
      const added = await ask(app, "pair", {}, { line: line.value.trim(), name: name.value.trim() || null });
      await refresh(app);
      tell(app, "success", `Endpoint “${added.name}” is known`, added.graphs.length ? `It serves ${added.graphs.map((graph) => graph.graph_id).join(", ")}.` : "");
      done();
    } catch (error) {
      problem.textContent = error.message;
      add.disabled = false;
    }
  }
  const keys = (event) => {
    if (event.key === "Escape") done();
    if (event.key === "Enter" && event.target === line && !event.shiftKey) (event.preventDefault(), form.requestSubmit());
    event.stopPropagation();
  };
  const form = make(
    "form",
    { class: "ygg-form", onsubmit: (event) => void submit(event), onkeydown: keys },
    make("label", {}, "Pairing line of the other machine", line),
    make("label", {}, "Name", name),
    problem,
    make("div", { class: "ygg-buttons" }, add, button("Cancel", done, "cancel", "ygg-quiet")),
  );
  return form;
}

async function copyPairing(app) {
  try {
    const { line, near } = await ask(app, "pairing", {}, {});
    await copyText(line);
    const where = near ? " It names this machine's own address: other machines need the one they reach it by." : "";
    tell(app, near ? "warn" : "success", "The pairing line is copied", `Whoever has it may use this server. Paste it where it is to be known.${where}`);
  } catch (error) {
    tell(app, "error", "The pairing line is not copied", error.message);
  }
}

/** Pages that were not loaded over https have no clipboard but the old one. */
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("this browser does not allow it");
}

// -- words ------------------------------------------------------------------------------------------------------

function dot(state) {
  return make("span", { class: `ygg-dot ygg-${state === "up" ? "up" : state === "down" ? "down" : "odd"}`, role: "img", "aria-label": state, title: state });
}

function busy({ queue, memory }) {
  const { running, queued } = queue;
  const words = running || queued ? [`${running} running, ${queued} waiting`] : ["idle"];
  words.push(...memory.map(({ free, total }) => `${bytes(free)} of ${bytes(total)} free`));
  return words.join(" · ");
}
