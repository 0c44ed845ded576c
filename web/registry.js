/**
 * What the registry of this server says about parts of workflows: read once, again when something may have changed, and edited here.
 * The workflow is never touched.
 */
import { ask } from "./request.js";

/** The place of parts that stay on this server. */
export const LOCAL = "local";
/** Where an endpoint is pinned in a subgraph node's properties; the registry goes before it. */
const PINNED = "yggdrasill.endpoint";
const PATIENCE_MS = 5000;

const known = { endpoints: [], graphs: {}, default: LOCAL };
const listeners = new Set();

/** @returns {string[]} the names of the endpoints that are known here */
export const endpoints = () => known.endpoints;

/**
 * Be told whenever what is known has changed.
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
  take(await ask(app, "placements", {}, undefined, PATIENCE_MS).catch(() => null));
}

/**
 * Say where parts run from now on.
 * @param {object} app
 * @param {string[]} names of parts
 * @param {string | null} place an endpoint's name or "local"; null takes the line out of the registry
 */
export async function place(app, names, place) {
  for (const key of names) take(await ask(app, "place", {}, { key, place }));
}

/**
 * Where a part runs: as the longest key says that is its path or an end of it, else where it is pinned, else here.
 * @param {import("./parts.js").Part} part
 * @returns {{names: string[], key: string | null}} endpoints by name, none for this server; and the key that says so
 */
export function placeOf({ path, node }) {
  const ends = path.map((_, start) => path.slice(start).join("/"));
  const own = node ? [`${ends[0]} (${node.id})`] : [];
  const key = [...own, ...ends].find((end) => Object.hasOwn(known.graphs, end));
  if (key !== undefined) return { names: endpointsOf(known.graphs[key]), key };
  const pinned = node?.properties?.[PINNED];
  return { names: typeof pinned === "string" && pinned && pinned !== LOCAL ? [pinned] : [], key: null };
}

function endpointsOf(config) {
  if (typeof config === "string") return config === LOCAL ? [] : [config];
  return config.replicas ?? [];
}

function take(answer) {
  if (!answer || JSON.stringify(answer) === JSON.stringify(known)) return;
  Object.assign(known, answer);
  for (const listener of listeners) listener();
}
