/**
 * The last run in the sidebar: for each endpoint the time it computed, transferred and waited; the whole run as a timeline on demand.
 */
import { request } from "./request.js";
import { button, bytes, fill, make, openDialog, seconds } from "./elements.js";

const PAUSE_MS = 5000;
const KINDS = ["compute", "transfer", "wait"];

/**
 * @param {object} app
 * @returns {import("./sidebar.js").Section}
 */
export function runSection(app) {
  const list = make("ul", { class: "ygg-list" });
  const whole = button("Timeline", () => void showTimeline(app), "timeline");
  const element = make("section", { "aria-label": "Last run", hidden: true }, make("div", { class: "ygg-title" }, make("h3", {}, "Last run"), whole), list);
  let shown = null;
  async function update() {
    const run = await request(app, "run").catch(() => null);
    const text = JSON.stringify(run);
    if (text === shown) return;
    shown = text;
    element.hidden = !run?.places?.length;
    if (run?.places) fill(list, ...run.places.map((place) => line(place, Math.max(run.seconds, place.total))), legend());
  }
  return { element, update, pause: () => PAUSE_MS };
}

function line(place, whole) {
  const parts = KINDS.map((kind) => make("span", { class: `ygg-${kind}`, style: `width:${(100 * place[kind]) / whole}%`, title: `${kind} ${seconds(place[kind])}` }));
  const words = KINDS.filter((kind) => place[kind]).map((kind) => `${kind} ${seconds(place[kind])}`);
  const transferred = place.bytes ? [`${bytes(place.bytes)} transferred`] : [];
  return make(
    "li",
    {},
    make("div", { class: "ygg-row" }, make("b", {}, place.name), make("span", { class: "ygg-soft ygg-end" }, seconds(place.total))),
    make("div", { class: "ygg-bar", "aria-hidden": "true" }, ...parts),
    make("div", { class: "ygg-soft" }, [...words, ...transferred].join(" · ")),
  );
}

function legend() {
  return make("li", { class: "ygg-legend ygg-soft", "aria-hidden": "true" }, ...KINDS.flatMap((kind) => [make("span", { class: `ygg-${kind}` }), kind]));
}

async function showTimeline(app) {
  const dark = document.querySelector(".dark-theme");
  const { svg } = await request(app, "timeline", { theme: dark ? "dark" : "light" });
  const picture = make("div", { class: "ygg-timeline" });
  picture.attachShadow({ mode: "open" }).innerHTML = svg;
  openDialog(app, "Timeline", picture);
}
