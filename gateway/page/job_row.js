/**
 * One job in the list: its state, times, progress, pictures, error, actions, and its details. The elements are created once and updated, so
 * that the focus and open details stay.
 */
import { load, now, post } from "./connection.js";
import { button, clock, make, notify, pretty, say, seconds } from "./elements.js";
import { itemsOf, showItems, showPreview } from "./pictures.js";

export const WORDS = { IN_QUEUE: "queued", IN_PROGRESS: "running", COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled", TIMED_OUT: "timed out" };
const RETRYABLE = new Set(["FAILED", "TIMED_OUT"]);
const MOST_BYTES = 4 * 2 ** 20;

/** @returns {boolean} whether a job has ended */
export function hasEnded(job) {
  return job.status !== "IN_QUEUE" && job.status !== "IN_PROGRESS";
}

/** @returns {string} the name of a job for people */
export function nameOf(job) {
  if (job.extra?.name) return String(job.extra.name);
  if (job.step) return `step ${job.step}`;
  if (job.kind === "graph" || job.kind === "pool") return job.target;
  return `${job.kind === "composite" ? "composite" : "workflow"} ${job.job_id.slice(0, 8)}`;
}

export class JobRow {
  /**
   * @param {any} job
   * @param {{changed: (job: any) => void, move: (row: JobRow, step: number) => Promise<void>}} list
   */
  constructor(job, list) {
    this.list = list;
    this.id = job.job_id;
    this.result = null;
    /** Set when the row was seen; before that no result is requested. */
    this.isSeen = false;
    const name = nameOf(job);
    const act = (path, body) => () => this.#act(path, body);
    this.name = make("button", { type: "button", class: "name cut", "aria-expanded": "false", onclick: () => this.toggle() }, name);
    this.where = make("span", { class: "soft cut" });
    this.status = make("span", { class: "status" });
    this.times = make("span", { class: "soft times" });
    this.bar = make("progress", { "aria-label": `Progress of ${name}` });
    this.progressText = make("span", { class: "soft cut" });
    this.progress = make("div", { class: "row", hidden: true }, this.bar, this.progressText);
    this.problem = make("p", { class: "problem clamp" });
    this.pictures = make("div", { class: "pictures", hidden: true });
    this.details = make("div", { class: "details", hidden: true });
    this.cancel = button("Cancel", act("cancel"), { name: `Cancel ${name}` });
    this.retry = button("Retry", act("retry"), { name: `Retry ${name}` });
    this.pause = button("Pause", act("pause"), { name: `Pause ${name}` });
    this.resume = button("Resume", act("resume"), { name: `Resume ${name}` });
    this.up = button("↑", () => void this.list.move(this, -1), { name: `Move ${name} up`, look: "order" });
    this.down = button("↓", () => void this.list.move(this, 1), { name: `Move ${name} down`, look: "order" });
    this.front = button("Run first", act("move"), { name: `Run ${name} first`, look: "order" });
    this.priority = make("input", { type: "number", min: -1000, max: 1000, step: 1, "aria-label": `Priority of ${name}`, onchange: () => void this.#prioritise() });
    this.priorityLabel = make("label", { class: "soft priority" }, "Priority ", this.priority);
    const actions = make("div", { class: "actions" }, this.priorityLabel, this.up, this.down, this.front, this.pause, this.resume, this.retry, this.cancel);
    this.element = make(
      "li",
      { class: "job", "aria-label": name },
      make("div", { class: "head" }, this.status, make("span", { class: "title" }, this.name, this.where), this.times, actions),
      this.progress, this.problem, this.pictures, this.details,
    );  // prettier-ignore
    this.update(job);
  }

  /** Show a newer state of the job. */
  update(job) {
    const before = this.job;
    this.job = job;
    const { status } = job;
    const isQueued = status === "IN_QUEUE";
    this.element.dataset.status = status;
    this.element.dataset.paused = String(isQueued && job.paused);
    say(this.status, isQueued && job.paused ? "paused" : (WORDS[status] ?? status));
    say(this.where, [job.endpoint && `at ${job.endpoint}`, job.kind, job.principal !== "owner" && `by ${job.principal}`].filter(Boolean).join(" · "));
    this.cancel.hidden = hasEnded(job);
    this.retry.hidden = !RETRYABLE.has(status);
    this.pause.hidden = !isQueued || job.paused;
    this.resume.hidden = !isQueued || !job.paused;
    for (const each of [this.up, this.down, this.front, this.priorityLabel]) each.hidden = !isQueued;
    if (document.activeElement !== this.priority) this.priority.value = job.priority;
    const failed = job.error && status !== "CANCELLED";
    say(this.problem, failed ? String(job.error.message ?? job.error.code) : "");
    this.#showProgress();
    this.tick();
    if (before && before.status !== status) {
      this.result = null;
      this.pictures.replaceChildren();
      this.pictures.hidden = true;
    }
    if (this.isSeen && before?.status !== status) void this.#showPictures();
    if (!this.details.hidden && before?.status !== status) void this.#fillDetails();
  }

  /** Show the times that pass. */
  tick() {
    const { created, started, finished } = this.job;
    const parts = [`waited ${seconds((started ?? finished ?? now()) - created)}`];
    if (started !== null) parts.push(`ran ${seconds((finished ?? now()) - started)}`);
    parts.push(clock(created));
    say(this.times, parts.join(" · "));
  }

  #showProgress() {
    const { status, progress } = this.job;
    this.progress.hidden = status !== "IN_PROGRESS";
    if (this.progress.hidden) return;
    const given = progress?.output ?? progress ?? {};
    const total = Number(given.total ?? given.max) || 0;
    const done = Number(given.done ?? given.completed ?? given.value) || 0;
    if (total > 0) Object.assign(this.bar, { max: total, value: Math.min(done, total) });
    else this.bar.removeAttribute("value");
    const text = typeof given === "string" ? given : (given.text ?? given.place ?? given.node ?? "");
    say(this.progressText, [String(text), total > 0 && `${done} of ${total}`].filter(Boolean).join(" · ") || "running");
  }

  /** Show the preview of a node, as base64 of an image, if the row was seen and its job runs. */
  async preview(text) {
    if (!this.isSeen || this.job.status !== "IN_PROGRESS" || typeof text !== "string") return;
    await showPreview(this.pictures, text, nameOf(this.job));
    if (this.job.status === "IN_PROGRESS" || this.result) return;
    this.pictures.replaceChildren();
    this.pictures.hidden = true;
  }

  /** Called when the row comes into view. */
  seen() {
    this.isSeen = true;
    void this.#showPictures();
  }

  async #showPictures() {
    const { job } = this;
    if (job.status !== "COMPLETED" || this.result) return;
    const result = await this.#load(MOST_BYTES);
    if (result && this.job.status === job.status) await showItems(this.pictures, itemsOf(result), nameOf(job));
  }

  /** Return the job with its output, or null if it is larger than `most` bytes or does not exist any more. */
  async #load(most = Infinity) {
    if (this.result) return this.result;
    const found = await load(`v1/jobs/${this.id}/output`, most).catch(() => null);
    if (found) this.result = found;
    return found;
  }

  toggle() {
    const isOpen = this.details.hidden;
    this.details.hidden = !isOpen;
    this.problem.classList.toggle("clamp", !isOpen);
    this.name.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) void this.#fillDetails();
  }

  async #fillDetails() {
    const { job } = this;
    const rows = [
      ["Id", job.job_id], ["Kind", `${job.kind}, ${job.dialect}`], ["Target", job.target], ["Endpoint", job.endpoint], ["Caller", job.principal],
      ["Priority", String(job.priority)], ["Attempts", `${job.attempts}${job.retries ? `, ${job.retries} repeated` : ""}`],
      ["Submitted", clock(job.created)], ["Started", job.started && clock(job.started)], ["Ended", job.finished && clock(job.finished)],
      ["Timeout", job.timeout && seconds(job.timeout)], ["Kept until", job.expires && clock(job.expires)], ["Error", job.error && pretty(job.error)],
    ];  // prettier-ignore
    const list = make("dl", {});
    for (const [name, value] of rows) if (value) list.append(make("dt", {}, name), make("dd", {}, String(value)));
    this.details.replaceChildren(list);
    if (job.kind === "composite") await this.#addSteps();
    if (job.status !== "COMPLETED") return;
    const result = await this.#load();
    if (!result || this.job.status !== "COMPLETED") return;
    const output = result.output ?? result.texts ?? {};
    this.details.append(make("h3", {}, "Output"), make("pre", { tabIndex: 0, "aria-label": "Output" }, pretty(output)));
    if (!this.pictures.children.length) await showItems(this.pictures, itemsOf(result), nameOf(job));
  }

  async #addSteps() {
    const { steps } = await load(`v1/jobs/${this.id}/steps`).catch(() => ({ steps: [] }));
    const lines = steps.reverse().map((step) => make("li", {}, `${step.step} · ${WORDS[step.status] ?? step.status}${step.endpoint ? ` · at ${step.endpoint}` : ""}`));
    this.details.append(make("h3", {}, "Steps"), make("ul", { class: "names" }, ...lines));
  }

  async #prioritise() {
    const priority = Number(this.priority.value);
    if (this.priority.value === "" || !Number.isInteger(priority)) this.priority.value = this.job.priority;
    else await this.#act("priority", { priority });
  }

  async #act(path, body) {
    try {
      this.list.changed(await post(`v1/jobs/${this.id}/${path}`, body), path);
    } catch (error) {
      this.priority.value = this.job.priority;
      notify(`${nameOf(this.job)}: ${error.message}`);
    }
  }
}
