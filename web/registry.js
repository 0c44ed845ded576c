/**
 * The placements of parts in this server's registry. They are read at the start, again when they may have changed, and edited here. The workflow
 * is never changed.
 */
import { request } from "./request.js";

/** The placement of parts that run on this server. */
export const LOCAL = "local";
/** The property of a subgraph node that pins it to an endpoint. The registry overrides it. */
const PINNED_PROPERTY = "yggdrasill.endpoint";
const TIMEOUT_MS = 5000;

const registry = { endpoints: [], graphs: {}, default: LOCAL };
const listeners = new Set();

/** @returns {string[]} the names of the endpoints in the registry */
export const endpoints = () => registry.endpoints;

/**
 * @param {object} workflow as saved in its file
 * @returns {boolean} whether a part of it may run on an endpoint
 */
export const anyPlaced = (workflow) => Object.keys(registry.graphs).length > 0 || JSON.stringify(workflow).includes(PINNED_PROPERTY);

/**
 * Call a listener whenever the registry has changed.
 * @param {() => void} listener
 */
export function onChange(listener) {
  listeners.add(listener);
}

/**
 * Read the registry again; nothing changes if it cannot be read.
 * @param {object} app
 */
export async function refresh(app) {
  apply(await request(app, "placements", {}, undefined, TIMEOUT_MS).catch(() => null));
}

/**
 * Place parts.
 * @param {object} app
 * @param {string[]} names of parts
 * @param {string | null} place an endpoint's name or "local"; null removes the entry from the registry
 */
export async function place(app, names, place) {
  for (const key of names) apply(await request(app, "place", {}, { key, place }));
}

/**
 * Find the placement of a part: that of the longest key that equals its path or the end of it, else its pinned endpoint, else local.
 * @param {import("./parts.js").Part} part
 * @returns {{names: string[], key: string | null}} the names of its endpoints, empty for this server; and the key in the registry
 */
export function placeOf({ path, node }) {
  const ends = path.map((_, start) => path.slice(start).join("/"));
  const instanceKeys = node ? [`${ends[0]} (${node.id})`] : [];
  const key = [...instanceKeys, ...ends].find((end) => Object.hasOwn(registry.graphs, end));
  if (key !== undefined) return { names: endpointsOf(registry.graphs[key]), key };
  const pinned = node?.properties?.[PINNED_PROPERTY];
  return { names: typeof pinned === "string" && pinned && pinned !== LOCAL ? [pinned] : [], key: null };
}

function endpointsOf(config) {
  if (typeof config === "string") return config === LOCAL ? [] : [config];
  return config.replicas ?? [];
}

function apply(answer) {
  if (!answer || JSON.stringify(answer) === JSON.stringify(registry)) return;
  Object.assign(registry, answer);
  for (const listener of listeners) listener();
}
