/**
 * The endpoints and pools with their load.
 */
import { bytes, make, say } from "./elements.js";

const KINDS = { comfy: "ComfyUI with the extension", plain: "ComfyUI", headless: "headless", runpod: "RunPod" };

/** The list of endpoints. A card is kept while its endpoint exists, so that an open list in it stays open. */
export class Endpoints {
  /** @param {HTMLElement} list */
  constructor(list) {
    this.list = list;
    this.cards = new Map();
  }

  /** @param {{endpoints: any[], pools: any[]}} found the answer of /v1/endpoints */
  show({ endpoints, pools }) {
    const shown = [...endpoints.map((each) => [`endpoint ${each.name}`, each, card, update]), ...pools.map((each) => [`pool ${each.name}`, each, card, updatePool])];
    const cards = new Map();
    for (const [key, facts, create, fill] of shown) {
      const known = this.cards.get(key) ?? create(facts.name);
      fill(known, facts);
      cards.set(key, known);
    }
    this.cards = cards;
    const elements = cards.size ? [...cards.values()].map(({ element }) => element) : [make("li", { class: "empty" }, "No endpoints.")];
    if (elements.length !== this.list.children.length || elements.some((each, place) => each !== this.list.children[place])) {
      this.list.replaceChildren(...elements);
    }
  }
}

function card(name) {
  const parts = {
    dot: make("span", { class: "dot", "aria-hidden": "true" }),
    kind: make("span", { class: "soft cut" }),
    load: make("span", { class: "load" }),
    bar: make("meter", { min: 0, "aria-label": `Load of ${name}` }),
    memory: make("div", { class: "memory" }),
    problem: make("p", { class: "problem" }),
    summary: make("summary", {}),
    names: make("ul", { class: "names" }),
  };
  parts.details = make("details", {}, parts.summary, parts.names);
  const head = make("div", { class: "row" }, parts.dot, make("b", { class: "cut", title: name }, name), parts.kind);
  parts.element = make("li", { class: "card", "aria-label": name }, head, make("div", { class: "row" }, parts.bar, parts.load), parts.problem, parts.memory, parts.details);
  return parts;
}

function update(parts, endpoint) {
  const { up, running, queued, slots } = endpoint;
  const busy = Math.max(running + queued, endpoint.jobs);
  parts.element.dataset.up = String(up);
  say(parts.kind, [KINDS[endpoint.kind] ?? endpoint.kind, endpoint.version].filter(Boolean).join(" · "));
  say(parts.load, up ? `${running} running · ${queued} queued · ${slots} ${slots === 1 ? "slot" : "slots"}` : "does not answer");
  parts.bar.hidden = !up;
  parts.bar.max = Math.max(slots, 1);
  parts.bar.value = Math.min(busy, slots);
  say(parts.problem, up ? "" : (endpoint.error ?? ""));
  parts.memory.replaceChildren(...(up ? memory(endpoint) : []));
  names(parts, endpoint.graphs, "graph");
}

function updatePool(parts, pool) {
  const workers = Object.entries(pool.workers);
  const busy = workers.filter(([, count]) => count > 0).length;
  parts.element.dataset.up = String(workers.length > 0);
  say(parts.kind, "pool");
  say(parts.load, workers.length ? `${busy} of ${workers.length} ${workers.length === 1 ? "worker" : "workers"} busy` : "no worker");
  parts.bar.hidden = !workers.length;
  parts.bar.max = Math.max(workers.length, 1);
  parts.bar.value = busy;
  say(parts.problem, "");
  names(parts, workers.map(([name, count]) => `${name} · ${count} running`), "worker");
}

function memory({ memory: found = [], devices = [] }) {
  if (found.length) return found.map(({ device, free, total }) => make("div", { class: "soft" }, `${device} · ${bytes(free)} of ${bytes(total)} free`));
  return devices.map(({ name, type, memory: total }) => make("div", { class: "soft cut", title: name }, [type, name, total && bytes(total)].filter(Boolean).join(" · ")));
}

function names(parts, found, what) {
  parts.details.hidden = !found.length;
  say(parts.summary, found.length ? `${found.length} ${what}${found.length === 1 ? "" : "s"}` : "");
  const shown = [...parts.names.children].map(({ textContent }) => textContent);
  if (shown.join("\n") !== found.join("\n")) parts.names.replaceChildren(...found.map((name) => make("li", {}, name)));
}
