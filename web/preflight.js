/**
 * Preflight: which nodes of the open workflow would run on which endpoint, and what is missing there. A missing model file can be fetched to an
 * endpoint from a source that its owner allows.
 */
import { notify, request } from "./request.js";
import { bytes, fill, make, openDialog } from "./elements.js";

const POLL_MS = 700;
const LIVE = new Set(["IN_QUEUE", "IN_PROGRESS"]);

/**
 * Run the preflight and show its result in a dialog.
 * @param {object} app
 */
export async function openPreflight(app) {
  const body = make("div", { "aria-live": "polite" }, make("p", { class: "ygg-soft" }, "Checking…"));
  const dialog = openDialog(app, "Preflight", body);
  const rerun = async () => {
    try {
      const { output: prompt, workflow } = await app.graphToPrompt();
      if (dialog.open) show(app, body, await request(app, "preflight", {}, { prompt, workflow }, 60_000), rerun);
    } catch (error) {
      fill(body, make("p", { class: "ygg-problem" }, error.message));
    }
  };
  await rerun();
}

function show(app, body, found, rerun) {
  const lines = found.warnings.map((words) => make("p", { class: "ygg-odd-text" }, words));
  if (found.problem) lines.push(make("p", { class: "ygg-problem", role: "alert" }, found.problem));
  else if (!found.parts.length) lines.push(make("p", {}, "Everything runs on this server: no part of this workflow is placed on an endpoint."));
  for (const part of found.parts) lines.push(partOf(app, part, rerun));
  if (found.parts.some(({ places }) => places.some(({ different }) => different.length))) lines.push(modelChoice(app, found, rerun));
  if (found.stays.length) lines.push(stays(found.stays));
  fill(body, verdict(found), ...lines);
}

function verdict({ problem, parts }) {
  if (problem || !parts.length) return "";
  const lacking = parts.filter(({ places, models }) => !places.some((place) => isReady(place, models)));
  const icon = make("i", { class: `pi ${lacking.length ? "pi-exclamation-triangle" : "pi-check-circle"}`, "aria-hidden": "true" });
  const words = lacking.length ? `Not ready to run: ${lacking.map(({ name }) => name).join(", ")}` : "Ready to run.";
  return make("p", { class: `ygg-row ${lacking.length ? "ygg-problem" : "ygg-fine"}` }, icon, words);
}

const isReady = (place, models) => place.up && !place.missing.length && (models === "theirs" || !place.different.length);

/** The choice whether the workflow uses the endpoints' model files that differ from this server's. It is saved with the workflow. */
function modelChoice(app, { their_models: chosen }, rerun) {
  const words = chosen ? "This workflow uses the endpoints' files where they differ." : "Results may differ from those of this server's files.";
  const choose = async () => {
    const { extra } = app.rootGraph ?? app.graph;
    extra.yggdrasill = { ...extra.yggdrasill, models: chosen ? "same" : "theirs" };
    app.extensionManager.workflow?.activeWorkflow?.changeTracker?.captureCanvasState();
    await rerun();
  };
  const label = chosen ? "Require equal files" : "Use the endpoint's files";
  return make("div", { class: "ygg-row" }, make("span", { class: "ygg-soft" }, words), make("button", { class: "ygg-button", type: "button", onclick: () => void choose() }, label));
}

function partOf(app, part, rerun) {
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  const facts = [count(part.nodes.length, "node"), `${count(part.inputs.length, "value")} sent`, `${part.outputs.length} received`];
  if (part.stages > 1) facts.push(`in ${part.stages} steps, with local nodes in between`);
  const rows = [
    ["Nodes", part.nodes.join(", ")],
    ["Executed there too", part.copies.join(", ")],
    ["Sent", part.inputs.join(", ")],
    ["Received", part.outputs.join(", ")],
  ].filter((row) => row[1]);
  return make(
    "section",
    { "aria-label": part.name },
    make("div", { class: "ygg-row" }, make("h3", {}, part.name), make("span", { class: "ygg-soft" }, facts.join(" · "))),
    ...part.places.map((place) => placeOf(app, place, part.models, rerun)),
    make("details", {}, make("summary", { class: "ygg-soft" }, "Details"), make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))),
  );
}

function placeOf(app, place, models, rerun) {
  const state = !place.up ? "down" : isReady(place, models) ? "up" : "odd";
  const problem = place.missing.length ? "is missing" : "has other files";
  const words = !place.up ? place.reason ?? "does not answer" : isReady(place, models) ? "has everything it needs" : problem;
  const head = make("div", { class: "ygg-row" }, make("span", { class: `ygg-dot ygg-${state}`, "aria-hidden": "true" }), make("b", {}, place.name), make("span", { class: "ygg-soft" }, words));
  return make("div", { class: "ygg-place" }, head, make("ul", { class: "ygg-list" }, ...place.missing.map((thing) => missing(app, place, thing, rerun)), ...place.different.map(different)));
}

const different = ({ name, folder }) => make("li", { class: "ygg-odd-text" }, `model file ${name} in ${folder} differs from this server's`);

function missing(app, place, thing, rerun) {
  if (thing.kind !== "model file") return make("li", { class: "ygg-problem" }, `${thing.kind} ${thing.name}`);
  const line = make("li", {}, make("div", { class: "ygg-problem" }, `model file ${thing.name}${thing.folder ? ` in ${thing.folder}` : ""}`));
  if (thing.at?.length) line.append(make("div", { class: "ygg-soft" }, `Available on ${thing.at.join(", ")}: place the part there, or copy the file.`));
  if (!place.sources.length) line.append(make("div", { class: "ygg-soft" }, "The endpoint's owner allows no source for model files. Copy the file to that machine manually."));
  else line.append(fetchForm(app, place, thing, rerun));
  return line;
}

function fetchForm(app, place, thing, rerun) {
  const folder = make("input", { value: thing.folder ?? "", required: true, "aria-label": "Folder", placeholder: "folder, such as loras", size: 14 });
  const url = make("input", { value: thing.url ?? "", required: true, type: "url", "aria-label": "Source", placeholder: `${place.sources[0]}…`, class: "ygg-wide" });
  const submitButton = make("button", { class: "ygg-button ygg-main", type: "submit" }, `Fetch to ${place.name}`);
  const output = make("div", { class: "ygg-soft ygg-row", "aria-live": "polite" }, `Allowed: ${place.sources.join(", ")}`);
  async function submit(event) {
    event.preventDefault();
    submitButton.disabled = true;
    try {
      const file = { endpoint: place.name, url: url.value.trim(), folder: folder.value.trim(), name: thing.name, sha256: thing.sha256 ?? null };
      await follow(app, place.name, await request(app, "fetch", {}, file), output);
      notify(app, "success", `${thing.name} was fetched to ${place.name}`, "");
      await rerun();
    } catch (error) {
      output.replaceChildren(make("span", { class: "ygg-problem" }, error.message));
      submitButton.disabled = false;
    }
  }
  return make("form", { class: "ygg-fetch", onsubmit: (event) => void submit(event) }, folder, url, submitButton, output);
}

async function follow(app, endpoint, started, output) {
  const bar = make("progress", { "aria-label": "Progress of the fetch" });
  const words = make("span", {}, "waiting");
  output.replaceChildren(bar, words);
  let job = started;
  while (LIVE.has(job.status)) {
    if (!output.isConnected) return;
    await new Promise((then) => setTimeout(then, POLL_MS));
    job = await request(app, "job", { endpoint, job_id: job.job_id });
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
    make("summary", { class: "ygg-soft" }, `${nodes.length} ${nodes.length === 1 ? "node of a placed part runs" : "nodes of placed parts run"} on this server`),
    make("dl", {}, ...nodes.flatMap(({ node, why }) => [make("dt", {}, node), make("dd", {}, why)])),
  );
}
