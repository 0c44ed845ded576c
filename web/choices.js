/**
 * Choices of lists: the endpoints in the registry, and the graphs at each.
 */
import { request } from "./request.js";

/** Answers of this server: the names of endpoints, the graphs at each, and when each was requested. */
const cache = { endpoints: [], graphs: new Map(), requested: new Map() };
const FRESH_MS = 3000;

/**
 * @param {object} app
 * @returns {string[]} the names of endpoints from the last answer; a new request is started
 */
export function endpointsOf(app) {
  void refreshEndpoints(app);
  return cache.endpoints;
}

/**
 * @param {object} app
 * @param {string} endpoint
 * @returns {string[]} the graphs at the endpoint from the last answer, as in `endpointsOf`
 */
export function graphsAt(app, endpoint) {
  void refreshGraphs(app, endpoint);
  return cache.graphs.get(endpoint) ?? [];
}

/**
 * Request both lists, so that they are loaded when one is opened.
 * @param {object} app
 * @param {string} endpoint
 */
export function refreshLists(app, endpoint) {
  void refreshEndpoints(app);
  void refreshGraphs(app, endpoint);
}

async function refreshEndpoints(app) {
  const answer = await requestIfStale(app, "endpoints", {});
  if (answer) cache.endpoints = answer.endpoints;
}

async function refreshGraphs(app, endpoint) {
  const answer = await requestIfStale(app, "graphs", { endpoint });
  if (answer) cache.graphs.set(endpoint, answer.graphs.map(({ graph_id }) => graph_id));
}

/** The answer, or null if it was requested a moment ago or failed; the list then stays unchanged. */
async function requestIfStale(app, path, query) {
  const key = `${path} ${query.endpoint ?? ""}`;
  if (performance.now() - (cache.requested.get(key) ?? -FRESH_MS) < FRESH_MS) return null;
  cache.requested.set(key, performance.now());
  return request(app, path, query).catch(() => null);
}

/**
 * Compute the choices of a list each time it is opened. The current value is always among them.
 * @param {object} widget
 * @param {() => string[]} choices
 */
export function setChoices(widget, choices) {
  const values = () => {
    const found = choices();
    return found.includes(widget.value) || (!widget.value && found.length) ? found : [...found, widget.value];
  };
  Object.defineProperty(widget.options, "values", { get: () => values, set: () => {}, enumerable: true, configurable: true });
}
