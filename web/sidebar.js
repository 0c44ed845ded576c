/**
 * The tab "Yggdrasill" of the sidebar: its frame, and the refresh of its sections. Each section is a module of its own.
 */
import { notify } from "./request.js";
import { iconButton, make, useStyle } from "./elements.js";
import { refresh } from "./placements.js";
import { endpointsSection } from "./sidebar_endpoints.js";
import { jobsSection } from "./sidebar_jobs.js";
import { partsSection } from "./sidebar_parts.js";
import { runSection } from "./sidebar_run.js";

/** The setting that refreshes sections automatically. */
const AUTO_REFRESH = "Yggdrasill.Refresh";
const TICK_MS = 500;

/**
 * @typedef {object} Section
 * @property {HTMLElement} element
 * @property {() => Promise<void>} update requests the data and shows it
 * @property {() => number} pause milliseconds until the next update
 */

let open = null;
/** Created once, so that unfolded details survive closing the tab. @type {Section[] | null} */
let sections = null;

/**
 * Show the tab in an element of the sidebar; the same element again changes nothing.
 * @param {object} app
 * @param {HTMLElement} container
 */
export function openTab(app, container) {
  if (open?.container === container) return;
  closeTab();
  useStyle(app);
  sections ??= [endpointsSection(app), partsSection(app), jobsSection(app), runSection(app)];
  const refreshButton = iconButton("pi-refresh", "Refresh", () => void updateAll(app));
  const head = make("header", { class: "ygg-head" }, make("h2", {}, "Yggdrasill"), refreshButton);
  container.classList.add("ygg", "ygg-tab");
  container.replaceChildren(head, make("div", { class: "ygg-scroll" }, ...sections.map(({ element }) => element)));
  const due = new Map(sections.map((section) => [section, 0]));
  const timer = setInterval(() => void tick(app, container, due), TICK_MS);
  open = { container, timer };
  void tick(app, container, due);
}

/** Stop the updates. */
export function closeTab() {
  if (open) clearInterval(open.timer);
  open = null;
}

async function tick(app, container, due) {
  if (!container.isConnected && open?.container === container) closeTab();
  if (document.hidden || !container.isConnected) return;
  const autoRefresh = app.extensionManager.setting.get(AUTO_REFRESH) ?? true;
  for (const [section, at] of due) {
    if (performance.now() < at || (at && !autoRefresh)) continue;
    due.set(section, Infinity);
    void section.update(false).finally(() => due.set(section, performance.now() + section.pause()));
  }
}

async function updateAll(app) {
  await refresh(app);
  await Promise.all(sections.map((section) => section.update(true))).catch((error) => notify(app, "error", "Yggdrasill", error.message));
}
