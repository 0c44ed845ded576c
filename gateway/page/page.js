/**
 * The page: the token, the look, the connection, and what is requested when.
 */
import { Events, load, request, token, whenRefused } from "./connection.js";
import { clock, make, notify, pretty, say } from "./elements.js";
import { Endpoints } from "./endpoints.js";
import { WORDS, nameOf } from "./job_row.js";
import { Jobs } from "./jobs.js";

const POLL_MS = 3000;
const COUNT_MS = 500;
const MOST_LINES = 200;
const LOOK = "yggdrasill.gateway.theme";
const byId = (id) => document.getElementById(id);

const endpoints = new Endpoints(byId("endpoints"));
const jobs = new Jobs({ list: byId("jobs"), filters: byId("filters"), empty: byId("jobs-empty"), more: byId("more") });
/** @type {Events | null} */
let events = null;
let counting = null;

// -- the look -----------------------------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

function showLook() {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colors`);
}

byId("theme").onclick = () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  localStorage.setItem(LOOK, document.documentElement.dataset.theme);
  showLook();
};
dark.addEventListener("change", showLook);
if (["light", "dark"].includes(localStorage.getItem(LOOK))) document.documentElement.dataset.theme = localStorage.getItem(LOOK);
showLook();

// -- the token ----------------------------------------------------------------------------------------------------------

/** Ask for a token. What was shown stays in the page only until then. */
function askForToken(problem = "") {
  stop();
  byId("main").hidden = true;
  byId("leave").hidden = true;
  showState("waiting", "token needed");
  say(byId("token-problem"), problem);
  if (!byId("sign-in").open) byId("sign-in").showModal();
  byId("token").focus();
}

byId("sign-in").addEventListener("cancel", (event) => event.preventDefault());
byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = byId("token").value.trim();
  byId("token").value = "";
  if (!/^[\x21-\x7e]+$/.test(given)) return askForToken("A token has visible ASCII characters only.");
  token.set(given);
  await begin();
});
byId("leave").onclick = () => {
  token.clear();
  location.reload();
};
whenRefused(() => {
  const had = token.get() !== null;
  token.clear();
  askForToken(had ? "The gateway does not accept this token." : "");
});

// -- the connection -----------------------------------------------------------------------------------------------------

function showState(state, text) {
  byId("state").dataset.state = state;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
}

/** Begin to show the gateway, if it accepts the token. */
async function begin() {
  try {
    await request("v1/health");
  } catch (error) {
    if (error.status === 401) return;
    if (error.status === undefined || error.status >= 500) {
      showState("waiting", "gateway does not answer");
      setTimeout(() => void begin(), POLL_MS);
    } else askForToken(error.message);
    return;
  }
  if (byId("sign-in").open) byId("sign-in").close();
  byId("main").hidden = false;
  byId("leave").hidden = false;
  stop();
  events = new Events(receive, (state) => {
    showState(state, state === "live" ? "live" : "connecting again");
    if (state === "live") void refresh();
  });
  void events.start();
}

function stop() {
  events?.stop();
  events = null;
}

/** Request everything that is shown: at the start, and when a connection was lost, because not all events are stored. */
async function refresh() {
  await Promise.all([jobs.reload(), showEndpoints(), showCounts()]).catch((error) => error.status === 401 || notify(error.message));
}

async function showEndpoints() {
  endpoints.show(await load("v1/endpoints"));
}

async function showCounts() {
  jobs.count((await load("v1/health")).jobs);
}

setInterval(() => {
  if (document.hidden || byId("state").dataset.state !== "live") return;
  void Promise.all([showEndpoints(), showCounts()]).catch(() => {});
}, POLL_MS);

// -- events -------------------------------------------------------------------------------------------------------------

function receive(kind, data) {
  jobs.apply(kind, data);
  if (kind === "status") counting ??= setTimeout(() => ((counting = null), void showCounts().catch(() => {})), COUNT_MS);
  const text = wordsOf(kind, data);
  if (text) writeLine(text, data);
}

/** Return the line of an event. Progress and messages of nodes are shown at the job alone. */
function wordsOf(kind, data) {
  if (kind === "status") {
    const where = data.endpoint ? ` at ${data.endpoint}` : "";
    const why = data.error?.message ?? data.reason;
    return `${WORDS[data.status] ?? data.status}${where}${why ? `: ${why}` : ""}`;
  }
  if (kind === "queue") return data.moved ? "moved" : data.paused === undefined ? `priority ${data.priority}` : data.paused ? "paused" : "resumed";
  if (kind === "log") return `${data.level ?? "log"}: ${data.message ?? data.text ?? pretty(data, 300)}`;
  return kind === "stream" ? `output: ${pretty(data.output, 300)}` : "";
}

function writeLine(text, data) {
  const job = jobs.rows.get(data.job_id)?.job;
  const name = job ? nameOf(job) : data.job_id.slice(0, 8);
  const label = make("b", { class: "cut", "data-job": job ? undefined : data.job_id }, name);
  const line = make("li", { "data-status": data.status }, make("time", { class: "soft" }, clock(data.time)), label, make("span", { class: "what" }, text));
  const log = byId("events");
  log.prepend(line);
  while (log.children.length > MOST_LINES) log.lastChild.remove();
}

jobs.onArranged = () => {
  for (const label of byId("events").querySelectorAll("b[data-job]")) {
    const job = jobs.rows.get(label.dataset.job)?.job;
    if (!job) continue;
    label.textContent = nameOf(job);
    label.removeAttribute("data-job");
  }
};

void begin();
