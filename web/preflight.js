/**
 * Preflight: what of the open workflow would run where, and what is missing there, before it runs. A model file that an endpoint lacks can
 * be fetched there, from a source that its owner allows.
 */
import { ask, tell } from "./request.js";
import { bytes, fill, make, openDialog } from "./elements.js";

const LOOK_MS = 700;
const LIVE = new Set(["IN_QUEUE", "IN_PROGRESS"]);

/**
 * Look, and show what was found.
 * @param {object} app
 */
export async function openPreflight(app) {
  const body = make("div", { "aria-live": "polite" }, make("p", { class: "ygg-soft" }, "Looking…"));
  const dialog = openDialog(app, "Preflight", body);
  const again = async () => {
    try {
      const { output: prompt, workflow } = await app.graphToPrompt();
      if (dialog.open) show(app, body, await ask(app, "preflight", {}, { prompt, workflow }, 60_000), again);
    } catch (error) {
      fill(body, make("p", { class: "ygg-problem" }, error.message));
    }
  };
  await again();
}

function show(app, body, found, again) {
  const lines = found.warnings.map((words) => make("p", { class: "ygg-odd-text" }, words));
  if (found.problem) lines.push(make("p", { class: "ygg-problem", role: "alert" }, found.problem));
  else if (!found.parts.length) lines.push(make("p", {}, "Everything runs on this server: no part of this workflow is placed elsewhere."));
  for (const part of found.parts) lines.push(partOf(app, part, again));
  if (found.stays.length) lines.push(stays(found.stays));
  fill(body, verdict(found), ...lines);
}

function verdict({ problem, parts }) {
  if (problem || !parts.length) return "";
  const lacking = parts.filter(({ places }) => !places.some((place) => place.up && !place.missing.length));
  const icon = make("i", { class: `pi ${lacking.length ? "pi-exclamation-triangle" : "pi-check-circle"}`, "aria-hidden": "true" });
  const words = lacking.length ? `It cannot run like this: ${lacking.map(({ name }) => name).join(", ")}` : "It can run like this.";
  return make("p", { class: `ygg-row ${lacking.length ? "ygg-problem" : "ygg-fine"}` }, icon, words);
}

function partOf(app, part, again) {
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  const facts = [count(part.nodes.length, "node"), `${count(part.inputs.length, "value")} sent`, `${part.outputs.length} ${part.outputs.length === 1 ? "comes" : "come"} back`];
  if (part.stages > 1) facts.push(`in ${part.stages} steps, with work here in between`);
  const rows = [
    ["Nodes", part.nodes.join(", ")],
    ["Made there too", part.copies.join(", ")],
    ["Sent", part.inputs.join(", ")],
    ["Come back", part.outputs.join(", ")],
  ].filter((row) => row[1]);
  return make(
    "section",
    { "aria-label": part.name },
    make("div", { class: "ygg-row" }, make("h3", {}, part.name), make("span", { class: "ygg-soft" }, facts.join(" · "))),
    ...part.places.map((place) => placeOf(app, place, again)),
    make("details", {}, make("summary", { class: "ygg-soft" }, "What goes there"), make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))),
  );
}

function placeOf(app, place, again) {
  const state = !place.up ? "down" : place.missing.length ? "odd" : "up";
  const words = !place.up ? place.reason ?? "does not answer" : place.missing.length ? "lacks" : "has all it needs";
  const head = make("div", { class: "ygg-row" }, make("span", { class: `ygg-dot ygg-${state}`, "aria-hidden": "true" }), make("b", {}, place.name), make("span", { class: "ygg-soft" }, words));
  return make("div", { class: "ygg-place" }, head, make("ul", { class: "ygg-list" }, ...place.missing.map((thing) => missing(app, place, thing, again))));
}

function missing(app, place, thing, again) {
  if (thing.kind !== "model file") return make("li", { class: "ygg-problem" }, `${thing.kind} ${thing.name}`);
  const line = make("li", {}, make("div", { class: "ygg-problem" }, `model file ${thing.name}`));
  if (!place.sources.length) line.append(make("div", { class: "ygg-soft" }, "Its owner allows no source to fetch it from; bring the file there by hand."));
  else line.append(fetchForm(app, place, thing, again));
  return line;
}

function fetchForm(app, place, thing, again) {
  const folder = make("input", { value: thing.folder ?? "", required: true, "aria-label": "Folder", placeholder: "folder, such as loras", size: 14 });
  const url = make("input", { value: thing.url ?? "", required: true, type: "url", "aria-label": "Source", placeholder: `${place.sources[0]}…`, class: "ygg-wide" });
  const go = make("button", { class: "ygg-button ygg-main", type: "submit" }, `Fetch to ${place.name}`);
  const said = make("div", { class: "ygg-soft ygg-row", "aria-live": "polite" }, `Allowed: ${place.sources.join(", ")}`);
  async function submit(event) {
    event.preventDefault();
    go.disabled = true;
    try {
      const wanted = { endpoint: place.name, url: url.value.trim(), folder: folder.value.trim(), name: thing.name, sha256: thing.sha256 ?? null };
      await follow(app, place.name, await ask(app, "fetch", {}, wanted), said);
      tell(app, "success", `${thing.name} is at ${place.name}`, "");
      await again();
    } catch (error) {
      said.replaceChildren(make("span", { class: "ygg-problem" }, error.message));
      go.disabled = false;
    }
  }
  return make("form", { class: "ygg-fetch", onsubmit: (event) => void submit(event) }, folder, url, go, said);
}

async function follow(app, endpoint, started, said) {
  const bar = make("progress", { "aria-label": "How far it is" });
  const words = make("span", {}, "waiting");
  said.replaceChildren(bar, words);
  let job = started;
  while (LIVE.has(job.status)) {
    if (!said.isConnected) return;
    await new Promise((then) => setTimeout(then, LOOK_MS));
    job = await ask(app, "job", { endpoint, job_id: job.job_id });
    const { done, total } = job.progress ?? {};
    if (total) Object.assign(bar, { max: total, value: done });
    if (done) words.textContent = total ? `${bytes(done)} of ${bytes(total)}` : bytes(done);
  }
  if (job.status !== "COMPLETED") throw new Error(job.error ?? job.status.toLowerCase());
}

function stays(nodes) {
  return make(
    "details",
    { class: "ygg-stays" },
    make("summary", { class: "ygg-soft" }, `${nodes.length} ${nodes.length === 1 ? "node of a part stays" : "nodes of parts stay"} on this server`),
    make("dl", {}, ...nodes.flatMap(({ node, why }) => [make("dt", {}, node), make("dd", {}, why)])),
  );
}
