/**
 * The tab "Yggdrasill" of the sidebar: its frame, and when what stands in it is looked at again. Each section is a module of its own.
 */
import { tell } from "./request.js";
import { iconButton, make, useStyle } from "./elements.js";
import { refresh } from "./registry.js";
import { endpointsSection } from "./sidebar_endpoints.js";
import { jobsSection } from "./sidebar_jobs.js";
import { partsSection } from "./sidebar_parts.js";
import { runSection } from "./sidebar_run.js";

/** The setting that lets sections look again by themselves. */
const KEEPS_UP = "Yggdrasill.Refresh";
const TICK_MS = 500;

/**
 * @typedef {object} Section
 * @property {HTMLElement} element
 * @property {() => Promise<void>} look asks anew and shows it
 * @property {() => number} pause milliseconds until it should look again
 */

let open = null;
/** Made once: they keep what is unfolded while the tab is closed. @type {Section[] | null} */
let sections = null;

/**
 * Show the tab in an element of the sidebar; the same element again changes nothing.
 * @param {object} app
 * @param {HTMLElement} place
 */
export function openTab(app, place) {
  if (open?.place === place) return;
  closeTab();
  useStyle(app);
  sections ??= [endpointsSection(app), partsSection(app), jobsSection(app), runSection(app)];
  const again = iconButton("pi-refresh", "Look again", () => void lookAll(app));
  const head = make("header", { class: "ygg-head" }, make("h2", {}, "Yggdrasill"), again);
  place.classList.add("ygg", "ygg-tab");
  place.replaceChildren(head, make("div", { class: "ygg-scroll" }, ...sections.map(({ element }) => element)));
  const due = new Map(sections.map((section) => [section, 0]));
  const timer = setInterval(() => void tick(app, place, due), TICK_MS);
  open = { place, timer };
  void tick(app, place, due);
}

/** Stop asking. */
export function closeTab() {
  if (open) clearInterval(open.timer);
  open = null;
}

async function tick(app, place, due) {
  if (!place.isConnected && open?.place === place) closeTab();
  if (document.hidden || !place.isConnected) return;
  const keepsUp = app.extensionManager.setting.get(KEEPS_UP) ?? true;
  for (const [section, at] of due) {
    if (performance.now() < at || (at && !keepsUp)) continue;
    due.set(section, Infinity);
    void section.look(false).finally(() => due.set(section, performance.now() + section.pause()));
  }
}

async function lookAll(app) {
  await refresh(app);
  await Promise.all(sections.map((section) => section.look(true))).catch((error) => tell(app, "error", "Yggdrasill", error.message));
}
