/**
 * What a list offers: the endpoints that this server knows, and the graphs at each.
 */
import { ask } from "./request.js";

/** What was heard of this server: the names of endpoints, and the graphs at each. */
const heard = { endpoints: [], graphs: new Map(), asked: new Map() };
const FRESH_MS = 3000;

/**
 * @param {object} app
 * @returns {string[]} the names of endpoints, as they were when last asked; asks again
 */
export function endpointsOf(app) {
  void refreshEndpoints(app);
  return heard.endpoints;
}

/**
 * @param {object} app
 * @param {string} endpoint
 * @returns {string[]} the graphs there, as `endpointsOf`
 */
export function graphsAt(app, endpoint) {
  void refreshGraphs(app, endpoint);
  return heard.graphs.get(endpoint) ?? [];
}

/**
 * Ask for both lists, so that they are there when one is opened.
 * @param {object} app
 * @param {string} endpoint
 */
export function refreshLists(app, endpoint) {
  void refreshEndpoints(app);
  void refreshGraphs(app, endpoint);
}

async function refreshEndpoints(app) {
  const answer = await fresh(app, "endpoints", {});
  if (answer) heard.endpoints = answer.endpoints;
}

async function refreshGraphs(app, endpoint) {
  const answer = await fresh(app, "graphs", { endpoint });
  if (answer) heard.graphs.set(endpoint, answer.graphs.map(({ graph_id }) => graph_id));
}

/** The answer, or null if the same was asked a moment ago or cannot be answered: the list then stays as it was. */
async function fresh(app, path, query) {
  const question = `${path} ${query.endpoint ?? ""}`;
  if (performance.now() - (heard.asked.get(question) ?? -FRESH_MS) < FRESH_MS) return null;
  heard.asked.set(question, performance.now());
  return ask(app, path, query).catch(() => null);
}

/**
 * Let a list of choices be looked up each time it is opened; what is chosen is always in it.
 * @param {object} widget
 * @param {() => string[]} choices
 */
export function offer(widget, choices) {
  const values = () => {
    const found = choices();
    return found.includes(widget.value) || (!widget.value && found.length) ? found : [...found, widget.value];
  };
  Object.defineProperty(widget.options, "values", { get: () => values, set: () => {}, enumerable: true, configurable: true });
}
