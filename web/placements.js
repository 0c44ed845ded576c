/**
 * Where the parts and nodes of the open workflow run, as this server determines it, and the placements that belong to the workflow.
 *
 * The server is asked again when the workflow or its placements may have changed, and only if something in it can be placed. The workflow is
 * never changed.
 */
import { notify, request } from "./request.js";

/** The placement of parts that run on this server. */
export const LOCAL = "local";
/** The property of a subgraph node that pins it to an endpoint. */
const PINNED_PROPERTY = "yggdrasill.endpoint";
const TIMEOUT_MS = 10_000;
const PAUSE_MS = 250;

/**
 * @typedef {object} Part a subgraph node or a group
 * @property {string} graph the id of the definition that contains it, empty for the workflow itself
 * @property {"subgraph" | "group"} kind
 * @property {string} id
 * @property {string} title
 * @property {string} name the title, or a longer name if several parts have this title
 * @property {string[]} places its endpoints, empty for this server
 * @property {boolean} stored whether the placement belongs to this workflow
 * @property {string[]} otherwise its endpoints without that placement
 */

const rootOf = (app) => app.rootGraph ?? app.graph;

const NOTHING = { parts: [], signs: {}, problem: null };
const state = { endpoints: [], placed: false, ...NOTHING };
const listeners = new Set();
/** Numbers the questions to the server, because an older answer may arrive after a newer one. */
let asked = 0;
let timer = null;
/** Whether the names of all parts are shown, also where nothing is placed. */
let listed = () => false;

/** @returns {string[]} the names of the endpoints in the registry */
export const endpoints = () => state.endpoints;
/** @returns {Part[]} the parts of the open workflow, outer ones first */
export const parts = () => state.parts;
/** @returns {string | null} why a prompt of the open workflow would be refused */
export const problem = () => state.problem;
/** @returns {{places: string[], partly: boolean} | undefined} where a node runs; undefined for this server */
export const signOf = (node) => state.signs[graphOf(node)]?.[String(node.id)];

/** @returns {boolean} whether a part of the workflow may run on an endpoint */
export const anyPlaced = (workflow) => state.placed || isPinned(workflow);

/** Call a listener whenever one of these has changed. */
export const onChange = (listener) => void listeners.add(listener);

/** Ask for the parts of a workflow without placements, too, while `shown()` is true. */
export const listParts = (shown) => void (listed = shown);

/** @returns {Part | null} the part that a subgraph node or a group with a title is, without its placement if that is unknown */
export function partOf(item) {
  const kind = item?.isSubgraphNode?.() ? "subgraph" : isGroup(item) ? "group" : null;
  const title = item?.title?.trim();
  if (!kind || !title) return null;
  const ref = { graph: graphOf(item), kind, id: String(item.id) };
  const found = state.parts.find((part) => part.graph === ref.graph && part.kind === kind && part.id === ref.id);
  return found ?? { ...ref, title, name: title, places: [], stored: false, otherwise: [] };
}

/** @returns {boolean} whether an item on the canvas is a group */
export const isGroup = (item) => Boolean(item) && item.constructor === window.LiteGraph.LGraphGroup;

const graphOf = ({ graph }) => (!graph || graph.isRootGraph || graph === graph.rootGraph ? "" : graph.id);

/**
 * Ask the server again; nothing changes if it does not answer.
 * @param {object} app
 */
export async function refresh(app) {
  const mine = ++asked;
  const { id } = rootOf(app);
  const answer = await request(app, "placements", { workflow: id }, undefined, TIMEOUT_MS).catch(() => null);
  if (!answer || mine !== asked) return;
  state.placed = answer.stored || Object.keys(answer.graphs).length > 0;
  await ask(app, mine, answer.endpoints);
}

/** Ask the server after a change of the workflow, once for several changes in a row. */
export function refreshSoon(app) {
  clearTimeout(timer);
  timer = setTimeout(() => void ask(app, ++asked, state.endpoints), PAUSE_MS);
}

async function ask(app, mine, names) {
  const workflow = rootOf(app).serialize();
  if (!state.placed && !listed() && !isPinned(workflow)) return apply({ endpoints: names, ...NOTHING });
  const prompt = await promptOf(app);
  const body = prompt ? { workflow, prompt } : { workflow };
  const answer = await request(app, "signs", {}, body, TIMEOUT_MS).catch(() => null);
  if (answer && mine === asked) apply(answer);
}

function apply({ endpoints, parts, signs, problem }) {
  const before = JSON.stringify([state.endpoints, state.parts, state.signs, state.problem]);
  Object.assign(state, { endpoints, parts, signs, problem });
  if (JSON.stringify([endpoints, parts, signs, problem]) === before) return;
  for (const listener of listeners) listener();
}

/**
 * The prompt of the open workflow, or null if making it may have effects: widgets that serialize asynchronously may upload a file or take a
 * picture.
 */
async function promptOf(app) {
  const root = rootOf(app);
  for (const graph of [root, ...root.subgraphs.values()]) {
    for (const { serializeValue } of graph._nodes.flatMap(({ widgets }) => widgets ?? [])) {
      if (serializeValue?.constructor.name === "AsyncFunction") return null;
    }
  }
  // making the prompt numbers the nodes anew, which would change the file of the workflow
  const orders = root._nodes.map((node) => [node, node.order]);
  try {
    return (await app.graphToPrompt()).output;
  } catch {
    return null;
  } finally {
    for (const [node, order] of orders) node.order = order;
  }
}

function isPinned(workflow) {
  const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])];
  return graphs.some(({ nodes }) => nodes?.some(({ properties }) => properties?.[PINNED_PROPERTY]));
}

/**
 * Place parts of the open workflow; other workflows are not affected.
 * @param {object} app
 * @param {Part[]} chosen
 * @param {string} endpoint a name, or "local" for this server
 */
export async function place(app, chosen, endpoint) {
  const workflow = rootOf(app).id;
  const name = nameOf(app);
  // a part that runs on this server without a placement needs none
  const needsNone = ({ otherwise }) => endpoint === LOCAL && !otherwise.length;
  for (const group of [chosen.filter(needsNone), chosen.filter((part) => !needsNone(part))]) {
    if (!group.length) continue;
    const list = group.map(({ graph, kind, id, title }) => ({ graph, kind, id, title }));
    await request(app, "place", {}, { workflow, name, parts: list, place: needsNone(group[0]) ? null : endpoint });
  }
  await refresh(app);
}

const nameOf = (app) => app.extensionManager.workflow?.activeWorkflow?.filename ?? "";

/** The actions of ComfyUI's store that make a workflow of the open one: "Save As", and "Duplicate" or opening a file. */
const SAVE_AS = "saveAs";
const OPENING = new Set(["createTemporary", "createNewTemporary"]);

/**
 * Give copies of workflows the placements of their originals: "Save As" and "Duplicate" give the copy an id of its own.
 * @param {object} app
 */
export function followCopies(app) {
  app.extensionManager.workflow?.$onAction?.(({ name, args, after }) => {
    const opened = OPENING.has(name) ? args[1] : null;
    const original = name === SAVE_AS ? args[0]?.activeState : app.extensionManager.workflow.activeWorkflow?.activeState;
    if (name !== SAVE_AS && !isCopy(original, opened)) return;
    after((made) => void copyPlacements(app, original?.id, opened?.id ?? idOf(made), made.filename ?? ""));
  });
}

async function copyPlacements(app, workflow, copy, name) {
  if (!workflow || !copy || workflow === copy) return;
  try {
    const { copied } = await request(app, "copied", {}, { workflow, copy_id: copy, name });
    if (copied) await refresh(app);
  } catch (error) {
    notify(app, "warn", "The placements were not copied, so the copy of the workflow runs on this server", error.message);
  }
}

function idOf({ content }) {
  try {
    return JSON.parse(content).id;
  } catch {
    return null;
  }
}

/** Whether a workflow that is opened has another id and otherwise the content of the one that is open, except for how it is shown. */
function isCopy(original, opened) {
  if (!original?.id || !opened?.id || opened.id === original.id || !opened.nodes?.length) return false;
  const content = ({ nodes, links, groups, definitions }) => JSON.stringify([nodes.map((node) => ({ ...node, order: 0 })), links, groups, definitions]);
  return content(opened) === content(original);
}
