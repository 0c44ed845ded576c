/**
 * The list of jobs: pages of it, the filter by state, and what events change in it.
 */
import { load, post } from "./connection.js";
import { make, notify, say } from "./elements.js";
import { JobRow, WORDS, hasEnded, nameOf } from "./job_row.js";

const PAGE = 50;
const MOST_ROWS = 2000;
const RELOAD_MS = 400;
const MOST_FOREIGN = 5000;

export class Jobs {
  /** @param {{list: HTMLElement, filters: HTMLElement, empty: HTMLElement, more: HTMLButtonElement}} parts */
  constructor(parts) {
    this.parts = parts;
    /** @type {Map<string, JobRow>} in the order of the list */
    this.rows = new Map();
    this.filter = "";
    /** Jobs that are not in this list, such as steps of composites. */
    this.foreign = new Set();
    this.unknown = new Set();
    this.timer = null;
    this.loads = 0;
    this.onArranged = () => {};
    this.seen = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && this.#see(entry.target)), { rootMargin: "200px" });
    this.buttons = new Map(["", ...Object.keys(WORDS)].map((status) => [status, this.#filterButton(status)]));
    parts.filters.replaceChildren(...this.buttons.values());
    parts.more.onclick = () => void this.#more();
    this.#showFilter();
    setInterval(() => document.hidden || this.rows.forEach((row) => hasEnded(row.job) || row.tick()), 1000);
  }

  #filterButton(status) {
    const label = status ? WORDS[status] : "all";
    return make("button", { type: "button", class: "filter", onclick: () => void this.choose(status) }, make("span", {}, label), make("b", { class: "count", hidden: true }));
  }

  #showFilter() {
    this.buttons.forEach((each, status) => each.setAttribute("aria-pressed", String(status === this.filter)));
    this.parts.list.dataset.filter = this.filter;
  }

  /** Show the jobs in one state, or all. */
  async choose(status) {
    this.filter = status;
    this.foreign.clear();
    this.#showFilter();
    await this.reload({ fresh: true });
  }

  /** @param {Record<string, number>} counts the number of jobs by state */
  count(counts) {
    const all = Object.keys(WORDS).reduce((sum, status) => sum + (counts[status] ?? 0), 0);
    this.buttons.forEach((each, status) => say(each.lastChild, String(status ? (counts[status] ?? 0) : all)));
  }

  #path(limit, query = "") {
    if (this.filter === "IN_QUEUE") return `v1/queue?limit=${MOST_ROWS}`;
    return `v1/jobs?limit=${limit}${this.filter ? `&status=${this.filter}` : ""}${query}`;
  }

  /** Load as many jobs as are shown, or with `fresh` one page. */
  async reload({ fresh = false } = {}) {
    clearTimeout(this.timer);
    this.timer = null;
    const number = (this.loads += 1);
    const waiting = new Set(this.unknown);
    const limit = fresh ? PAGE : Math.min(MOST_ROWS, PAGE * Math.max(1, Math.ceil(this.rows.size / PAGE)));
    const { jobs } = await load(this.#path(limit));
    if (number !== this.loads) return;
    const rows = new Map(jobs.map((job) => [job.job_id, this.#row(job)]));
    this.rows.forEach((row, id) => rows.has(id) || this.seen.unobserve(row.element));
    this.rows = rows;
    for (const id of waiting) {
      this.unknown.delete(id);
      if (!rows.has(id)) this.foreign.add(id);
    }
    if (this.foreign.size > MOST_FOREIGN) this.foreign.clear();
    this.parts.more.hidden = this.filter === "IN_QUEUE" || jobs.length < limit;
    this.#arrange();
  }

  #row(job) {
    const known = this.rows.get(job.job_id);
    if (known) {
      known.update(job);
      return known;
    }
    const row = new JobRow(job, this);
    row.element.row = row;
    this.seen.observe(row.element);
    return row;
  }

  #see(element) {
    this.seen.unobserve(element);
    element.row.seen();
  }

  async #more() {
    const last = [...this.rows.values()].at(-1)?.job;
    if (!last) return;
    try {
      const { jobs } = await load(this.#path(PAGE, `&before=${last.created}&last=${encodeURIComponent(last.job_id)}`));
      jobs.forEach((job) => this.rows.set(job.job_id, this.#row(job)));
      this.parts.more.hidden = jobs.length < PAGE;
      this.#arrange();
      this.rows.get(jobs[0]?.job_id)?.name.focus({ preventScroll: true });
    } catch (error) {
      notify(error.message);
    }
  }

  /** Bring the elements into the order of the rows, moving as few as possible, so that the focus stays. */
  #arrange() {
    const { list, empty } = this.parts;
    let place = list.firstElementChild;
    for (const { element } of this.rows.values()) {
      if (element === place) place = place.nextElementSibling;
      else list.insertBefore(element, place);
    }
    while (place) {
      const next = place.nextElementSibling;
      place.remove();
      place = next;
    }
    say(empty, this.rows.size ? "" : this.filter ? `No job is ${WORDS[this.filter]}.` : "No jobs.");
    this.onArranged();
  }

  /** Apply an event of a job. */
  apply(kind, data) {
    const row = this.rows.get(data.job_id);
    if (!row) {
      if (kind === "status" && !this.foreign.has(data.job_id)) {
        this.unknown.add(data.job_id);
        this.#reloadSoon();
      } else if (kind === "status" && this.filter === data.status) {
        this.#reloadSoon();
      }
      return;
    }
    if (kind === "progress" && row.job.status === "IN_PROGRESS") row.update({ ...row.job, progress: data });
    if (kind === "comfy" && data.what === "preview") void row.preview(data.image);
    if (kind === "queue") this.#reloadSoon();
    if (kind !== "status") return;
    this.#show(row, { ...row.job, ...changes(row.job, data) });
    // what the event does not say, such as the number of attempts or the time at which the row is deleted
    if (hasEnded(row.job) || data.status === "IN_QUEUE") this.#reloadSoon();
  }

  #show(row, job) {
    row.update(job);
    const isOpen = !row.details.hidden || row.element.contains(document.activeElement);
    if (this.filter && job.status !== this.filter && !isOpen) {
      this.rows.delete(row.id);
      this.foreign.add(row.id);
      this.#arrange();
    }
  }

  /** Show a job as a command has left it. */
  changed(job, command) {
    const row = this.rows.get(job.job_id);
    if (row) this.#show(row, job);
    if (command === "move" || command === "priority") this.#reloadSoon(0);
  }

  /** Move a queued job one place up (-1) or down (1) among those of its priority. */
  async move(row, step) {
    const queued = this.filter === "IN_QUEUE" ? [...this.rows.values()] : [...this.rows.values()].filter(({ job }) => job.status === "IN_QUEUE").reverse();
    const other = queued[queued.indexOf(row) + step];
    if (!other || other.job.priority !== row.job.priority) {
      notify(`${nameOf(row.job)} is already the ${step < 0 ? "first" : "last"} of its priority.`);
      return;
    }
    const [moved, target] = step < 0 ? [row, other] : [other, row];
    try {
      await post(`v1/jobs/${moved.id}/move`, { before: target.id });
      await this.reload();
    } catch (error) {
      notify(`${nameOf(row.job)}: ${error.message}`);
    }
  }

  #reloadSoon(pause = RELOAD_MS + this.rows.size) {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      void this.reload().catch(() => {});
    }, pause);
  }
}

/** Return the fields of a job that an event of its state changes. */
function changes(job, { status, endpoint, error, time }) {
  if (status === "IN_QUEUE") return { status, started: null, finished: null, endpoint: null, progress: null, error: null };
  if (status === "IN_PROGRESS") return { status, started: time, finished: null, endpoint: endpoint ?? null, progress: null };
  return { status, finished: time, error: error ?? null };
}
