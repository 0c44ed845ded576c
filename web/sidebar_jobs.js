/**
 * The jobs in the sidebar: those on this server and those at the endpoints, with their progress and a button to cancel.
 */
import { notify, request } from "./request.js";
import { fill, iconButton, make, seconds } from "./elements.js";

const IDLE_MS = 4000;
const BUSY_MS = 1000;
const LIVE = new Set(["IN_QUEUE", "IN_PROGRESS"]);
const SIGNS = { COMPLETED: "pi-check", FAILED: "pi-exclamation-triangle", CANCELLED: "pi-ban", TIMED_OUT: "pi-clock" };

/**
 * @param {object} app
 * @returns {import("./sidebar.js").Section}
 */
export function jobsSection(app) {
  const list = make("ul", { class: "ygg-list" });
  const element = make("section", { "aria-label": "Jobs" }, make("div", { class: "ygg-title" }, make("h3", {}, "Jobs")), list);
  let live = false;
  /** The lines by job. A line is kept while only its progress changes, so that a click on it is not lost. */
  let lines = new Map();
  function lineOf(job) {
    const key = `${job.endpoint ?? ""}/${job.job_id}`;
    const known = lines.get(key);
    if (known?.status !== job.status) return [key, { status: job.status, element: line(app, job, update) }];
    if (LIVE.has(job.status)) known.element.lastChild.replaceWith(progress(job));
    return [key, known];
  }
  async function update() {
    try {
      const { places } = await request(app, "jobs");
      const jobs = places.flatMap(({ endpoint, jobs: rows }) => rows.map((row) => ({ ...row, endpoint })));
      live = jobs.some(({ status }) => LIVE.has(status));
      jobs.sort((a, b) => LIVE.has(b.status) - LIVE.has(a.status) || b.created - a.created);
      lines = new Map(jobs.slice(0, 30).map(lineOf));
      const elements = lines.size ? [...lines.values()].map(({ element: each }) => each) : [make("li", { class: "ygg-empty" }, "No jobs.")];
      if (elements.length !== list.children.length || elements.some((each, place) => each !== list.children[place])) fill(list, ...elements);
    } catch (error) {
      lines = new Map();
      fill(list, make("li", { class: "ygg-problem" }, error.message));
    }
  }
  return { element, update, pause: () => (live ? BUSY_MS : IDLE_MS) };
}

function line(app, job, update) {
  const where = job.endpoint ? `at ${job.endpoint}` : "on this server";
  const head = make("div", { class: "ygg-row" }, make("b", { class: "ygg-cut", title: job.graph_id }, job.graph_id), make("span", { class: "ygg-soft ygg-end" }, where));
  if (!LIVE.has(job.status)) {
    const took = job.finished && job.started ? ` · ${seconds(job.finished - job.started)}` : "";
    const words = `${job.status.toLowerCase().replace("_", " ")}${took}`;
    const failed = job.error && job.status !== "CANCELLED";
    head.prepend(make("i", { class: `pi ${SIGNS[job.status]} ygg-soft`, "aria-hidden": "true" }));
    return make("li", {}, head, make("div", failed ? { class: "ygg-problem ygg-clamp", title: job.error } : { class: "ygg-soft" }, failed ? job.error : words));
  }
  head.append(iconButton("pi-times", `Cancel ${job.graph_id}`, () => void cancel(app, job, update), `cancel ${job.job_id}`));
  return make("li", {}, head, progress(job));
}

function progress({ status, progress: state, graph_id: name }) {
  if (status === "IN_QUEUE") return make("div", { class: "ygg-soft" }, "waiting");
  const bar = make("progress", { "aria-label": `Progress of ${name}` });
  if (state?.total) Object.assign(bar, { max: state.total, value: state.done });
  const words = state?.total ? `${state.text ?? ""} ${state.done} of ${state.total}`.trim() : "running";
  return make("div", { class: "ygg-row ygg-soft" }, bar, words);
}

async function cancel(app, job, update) {
  try {
    await request(app, "cancel", {}, { job_id: job.job_id, endpoint: job.endpoint });
    await update();
  } catch (error) {
    notify(app, "error", `“${job.graph_id}” was not cancelled`, error.message);
  }
}
