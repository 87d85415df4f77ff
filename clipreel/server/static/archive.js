// The archive: what is indexed, indexing as it happens, and in sections of their own what else there is to know of it.

import { api } from "./api.js";
import { at, closeOutside, h, icon, iconButton, toast } from "./dom.js";
import { Kept } from "./kept.js";
import { ago, bytes, capital, count, long } from "./say.js";
import { Skipped } from "./skipped.js";

const MOVING = ["running"];

export class Archive {
  /**
   * `changed()` is called when the index has changed, `status(facts)` when its facts are known. `sections` have an
   * element `section`, and `read()`, which is called whenever the drawer opens or the index has changed.
   */
  constructor({ changed, status, sections }) {
    this.changed = changed;
    this.told = status;
    this.dialog = at("archive");
    this.button = at("open-archive");
    this.bar = at("progress");
    this.jobs = new Map();
    this.facts = null;
    this.sections = [...sections, new Skipped(), new Kept()];
    this.counts = h("div", { class: "counts" });
    this.job = h("section", { class: "job" });
    this.made = h("section", { hidden: true });
    const title = h("h2", { id: "archive-name", tabindex: "-1", autofocus: true }, "Archive");
    const head = h("header", {}, title, h("span", { class: "room" }), iconButton("close", "Close", () => this.dialog.close()));
    const body = h("div", { class: "scroll" }, this.counts, this.job, ...this.sections.map((s) => s.section), this.made);
    this.dialog.append(h("div", { class: "sheet" }, head, body));
    closeOutside(this.dialog);
    this.button.addEventListener("click", () => this.show());
    this.#label();
    this.#drawJob();
  }

  async start() {
    api.events((job) => this.#moved(job), () => this.#connected());
    await this.read();
  }

  /** The stream says what happens from now on; what was under way is asked for. */
  async #connected() {
    try {
      const told = await api.jobs();
      for (const job of told.jobs) this.#moved(job);
    } catch {
      // the search says that the server is away
    }
  }

  async read() {
    try {
      this.facts = await api.status();
      await this.told(this.facts);
      this.#drawFacts();
    } catch {
      // the search says that the server is away
    }
  }

  async show() {
    this.dialog.showModal();
    await this.#readAll();
  }

  async #readAll() {
    await Promise.all([this.read(), ...this.sections.map((s) => s.read())]);
  }

  #moved(job) {
    const before = this.jobs.get(job.id);
    this.jobs.set(job.id, job);
    if (!MOVING.includes(job.state) && MOVING.includes(before?.state)) {
      if (job.state === "failed") toast(`Indexing failed: ${job.message}`, null, true);
      else toast(job.message || doneLine(job));
      this.changed();
      if (this.dialog.open) this.#readAll();
      else this.read();
    }
    this.#label();
    this.#drawJob();
  }

  get running() {
    return [...this.jobs.values()].find((j) => MOVING.includes(j.state)) ?? null;
  }

  #label() {
    const job = this.running;
    const share = job?.total ? Math.round((100 * job.done) / job.total) : 0;
    this.bar.hidden = !job;
    this.bar.classList.toggle("vague", Boolean(job) && !job.total);
    this.bar.setAttribute("aria-valuenow", String(share));
    this.bar.firstChild.style.width = job?.total ? `${share}%` : "";
    const text = job?.total ? `Indexing ${job.done}/${job.total}` : "Indexing";
    this.button.replaceChildren(...(job ? [h("span", { class: "dot" }), h("span", { class: "busy" }, text)] : [icon("box"), h("span", { class: "wide-only" }, "Archive")]));
    this.button.setAttribute("aria-label", job ? text : "Archive");
    this.button.title = job ? progressLine(job) : "What is indexed, and what was skipped";
  }

  /** The box of the job: made anew when one begins or ends, else only brought up to date, so that the focus stays. */
  #drawJob() {
    const job = this.running;
    if (!job || this.live?.id !== job.id) {
      const focused = this.job.contains(document.activeElement);
      this.live = job ? liveJob(job.id) : null;
      this.job.replaceChildren(...(job ? this.live.elements : this.#idle()));
      if (focused) this.job.querySelector("button").focus();
    }
    if (job) this.live.tell(job);
  }

  #idle() {
    const only = this.facts?.read_only;
    if (only) return [h("p", { class: "hint" }, capital(only))];
    const index = () => api.index().then((job) => this.#moved(job), refused);
    const folders = this.facts?.folders ?? [];
    const text = folders.length ? `Looks again through ${folders.map((f) => f.name).join(", ")}: new and changed videos are read, the others stay.` : "Looks through the folders of the index again.";
    return [h("button", { type: "button", class: "button", id: "index-now", onclick: index }, "Index now"), h("p", { class: "hint" }, text)];
  }

  #drawFacts() {
    const f = this.facts;
    const one = (value, label) => h("div", {}, h("b", {}, value), h("span", {}, label));
    this.counts.replaceChildren(one(f.videos.toLocaleString("en"), f.videos === 1 ? "video" : "videos"), one(long(f.duration_s), "of film"));
    const rows = ["model", "adapter", "index"].flatMap((key) => {
      const its = f[key];
      if (!its) return [];
      const facts = [its.name, its.bytes ? bytes(its.bytes) : "", key === "index" ? count(f.vectors, "vector") : "", its.age_s ? `${ago(its.age_s)} old` : ""];
      return [h("dt", {}, capital(key)), h("dd", {}, facts.filter(Boolean).join(" · "))];
    });
    for (const [what, licence] of Object.entries(f.licences ?? {})) rows.push(h("dt", {}, `Licence: ${what}`), h("dd", {}, String(licence ?? "unknown")));
    this.made.replaceChildren(h("h3", {}, "Made with"), h("dl", { class: "facts" }, ...rows));
    this.made.hidden = false;
    if (!this.running) this.#drawJob();
  }
}

/** The elements of a job under way, and `tell(job)`, which says how far it is. */
function liveJob(id) {
  const line = h("strong");
  const meter = h("progress", { "aria-label": "Indexing" });
  const current = h("p", { class: "hint current" });
  const stop = h("button", { type: "button", class: "button", id: "cancel", onclick: () => api.cancel(id).catch(refused) }, "Stop");
  const tell = (job) => {
    line.textContent = progressLine(job);
    current.textContent = now(job);
    current.title = job.current ?? "";
    if (job.total) Object.assign(meter, { max: job.total, value: job.done });
  };
  return { id, tell, elements: [h("p", {}, line), meter, current, stop] };
}

/** What a job is at: a file, or after the files what scores are compared with. */
function now(job) {
  if (job.current) return baseName(job.current);
  if (job.queries_total) return `Learning what scores mean: ${job.queries} of ${count(job.queries_total, "query", "queries")}`;
  return job.done ? "Storing…" : "Looking for videos…";
}

const refused = (error) => toast(error.message, null, true);

const baseName = (path) => path.split(/[\\/]/).pop();

function progressLine(job) {
  const parts = [job.total ? `${job.done} of ${count(job.total, "video")}` : "Indexing"];
  if (job.eta_s > 1) parts.push(`about ${long(job.eta_s)} left`);
  if (skippedOf(job)) parts.push(`${skippedOf(job)} skipped`);
  return parts.join(" · ");
}

const skippedOf = (job) => (Array.isArray(job.skipped) ? job.skipped.length : job.skipped) || 0;

function doneLine(job) {
  const skipped = skippedOf(job) ? `, ${skippedOf(job)} skipped` : "";
  return job.done ? `Indexed ${count(job.done, "video")}${skipped}` : `Nothing new to index${skipped}`;
}
