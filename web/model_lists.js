/**
 * The lists of model files on placed nodes: each has the files of the endpoint where its node runs, and those of this server again when the node
 * runs here. The server determines which node runs where.
 */
import { anyPlaced, onChange } from "./placements.js";
import { request } from "./request.js";

const MODEL = /\.(safetensors|sft|ckpt|pt2?|pth|bin|pkl|gguf|onnx)$/i;
const PAUSE_MS = 400;
/** How long the opening of a workflow waits for the lists. */
const OPENING_MS = 3000;

/** The list of this server, and the list shown, of each widget that shows another list. @type {WeakMap<object, {local: any[], shown: any[]}>} */
const replaced = new WeakMap();
let sent = "";
let timer = null;
let placed = false;

/**
 * Keep the lists up to date from now on.
 * @param {object} app
 */
export function keepLists(app) {
  const later = () => (clearTimeout(timer), (timer = setTimeout(() => void update(app), PAUSE_MS)));
  onChange(() => void update(app, true));
  app.api.addEventListener("graphChanged", later);
}

/**
 * Query the endpoints and update the lists, for at most a few seconds.
 * @param {object} app
 * @param {boolean} opening the editor itself looks for missing files afterwards
 * @param {Promise<void>} [ready] ends when the placements of the workflow are known
 */
export async function updateNow(app, opening, ready = Promise.resolve()) {
  await Promise.race([ready.then(() => update(app, true, opening)), new Promise((then) => setTimeout(then, OPENING_MS))]);
}

/**
 * @param {object} app
 * @param {boolean} [fresh] query the endpoints although the workflow is unchanged
 * @param {boolean} [opening] the editor itself looks for missing files afterwards
 */
async function update(app, fresh = false, opening = false) {
  const root = app.rootGraph ?? app.graph;
  const nodes = [...walk(root, "")];
  const workflow = root.serialize();
  const used = anyPlaced(workflow);
  if (!used && !placed) return;
  const classes = Object.fromEntries(nodes.filter(([, node]) => (node.widgets ?? []).some(isModelList)).map(([id, node]) => [id, node.comfyClass]));
  const body = { nodes: classes, workflow };
  const text = JSON.stringify(body);
  if (text === sent && !fresh) return;
  sent = text;
  const answer = used ? await request(app, "lists", {}, { ...body, fresh }).catch(() => null) : { nodes: {}, lists: {} };
  if (!answer || root !== (app.rootGraph ?? app.graph)) return;
  placed = Object.keys(answer.nodes).length > 0;
  const changed = show(nodes, answer);
  if (changed) app.canvas?.setDirty(true, true);
  if (changed && !opening) await app.refreshMissingModels?.({ reloadDefs: false });
}

/** Every node with its id in the prompt; nodes of a subgraph once for each instance. */
function* walk(graph, prefix) {
  for (const node of graph._nodes) {
    yield [`${prefix}${node.id}`, node];
    if (node.isSubgraphNode?.()) yield* walk(node.subgraph, `${prefix}${node.id}:`);
  }
}

function isModelList(widget) {
  const values = widget.type === "combo" ? widget.options?.values : null;
  return Array.isArray(values) && (!values.length || MODEL.test(widget.value) || replaced.has(widget) || values.some((value) => MODEL.test(value)));
}

/** Show the lists of an answer; return whether one changed. */
function show(nodes, answer) {
  const instances = new Map();
  for (const [id, node] of nodes) instances.set(node, [...(instances.get(node) ?? []), id]);
  let changed = false;
  for (const [node, ids] of instances) {
    if (node.isSubgraphNode?.()) continue;
    const widgets = (node.widgets ?? []).filter((widget) => setList(widget, ids.map((id) => listAt(answer, id, node, widget))));
    if (!widgets.length) continue;
    changed = true;
    node.widgets.push(node.widgets.pop()); // the Vue rendering observes the list of widgets
  }
  for (const [id, node] of nodes) if (node.isSubgraphNode?.()) showPromoted(id, node, answer);
  return changed;
}

/** The list of a widget where its node runs: null for this server's, undefined if the endpoint's is unknown. */
function listAt({ nodes, lists }, id, node, widget) {
  const place = nodes[id];
  if (place === undefined) return null;
  return lists[place] ? lists[place][node.comfyClass]?.[widget.name] ?? null : undefined;
}

/** Show in a widget the files of all its lists; return whether it changed. */
function setList(widget, lists) {
  if (!isModelList(widget)) return false;
  const known = replaced.get(widget);
  const values = widget.options.values;
  // the editor has read the lists of this server again if another list than ours is shown
  const local = known && sameList(known.shown, values) ? known.local : [...values];
  const found = [...new Set(lists.flatMap((list) => (list === undefined ? withValue(local, widget) : list ?? local)))];
  const isOurs = lists.some((list) => list !== null);
  const slashed = (value) => String(value).replaceAll("\\", "/");
  const same = found.includes(widget.value) ? -1 : found.findIndex((value) => slashed(value) === slashed(widget.value));
  if (same >= 0 && isOurs) found[same] = widget.value; // the endpoint reads the path with either separator
  else if (same >= 0 && known) widget.value = found[same];
  if (isOurs) replaced.set(widget, { local, shown: found });
  else replaced.delete(widget);
  if (sameList(found, values)) return false;
  widget.options.values = found;
  return true;
}

/** A list with the file that a widget names, which the endpoint may have. */
const withValue = (list, { value }) => (MODEL.test(value) && !list.includes(value) ? [...list, value] : list);

const sameList = (one, other) => one.length === other.length && one.every((value, index) => value === other[index]);

/** Show on a subgraph node the lists of the inner widgets that it shows. */
function showPromoted(id, host, answer) {
  for (const input of host.inputs) {
    const shown = input.widget && host.widgets?.find(({ name }) => name === input.name);
    const inner = shown?.type === "combo" ? sourceOf(host, input.name, id) : null;
    if (inner && Array.isArray(inner.widget.options?.values) && Array.isArray(shown.options?.values)) {
      const local = replaced.get(inner.widget)?.local ?? inner.widget.options.values;
      const list = listAt(answer, inner.id, inner.node, inner.widget);
      const found = list === undefined ? withValue(local, shown) : list ?? local;
      if (!sameList(found, shown.options.values)) shown.options.values = [...found];
    }
  }
}

/** The inner widget behind an input of a subgraph node, with its node and the node's id in the prompt. */
function sourceOf(host, name, id) {
  const { subgraph } = host;
  const links = subgraph.inputs.find((slot) => slot.name === name)?.linkIds ?? [];
  for (const link of links.map((each) => subgraph.getLink(each))) {
    const node = link && subgraph.getNodeById(link.target_id);
    const input = node?.inputs[link.target_slot];
    if (node?.isSubgraphNode?.()) return sourceOf(node, input.name, `${id}:${node.id}`);
    const widget = input?.widget && node.widgets?.find((each) => each.name === input.widget.name);
    if (widget) return { id: `${id}:${node.id}`, node, widget };
  }
  return null;
}
