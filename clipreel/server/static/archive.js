// The archive: what is indexed, indexing as it happens, what was skipped and why.

import { api } from "./api.js";
import { at, closeOutside, h, icon, iconButton, toast } from "./dom.js";
import { ago, bytes, capital, count, long } from "./say.js";

const MOVING = ["running"];

export class Archive {
  /** `changed()` is called when the index has changed, `status(facts)` when its facts are known. */
  constructor({ changed, status }) {
    this.changed = changed;
    this.told = status;
    this.dialog = at("archive");
    this.sheet = this.dialog.appendChild(h("div", { class: "sheet" }));
    this.button = at("open-archive");
    this.bar = at("progress");
    this.jobs = new Map();
    this.facts = null;
    this.skipped = null;
    closeOutside(this.dialog);
    this.button.addEventListener("click", () => this.show());
    this.#label();
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
      this.#label();
    } catch {
      // the search says that the server is away
    }
  }

  async show() {
    this.#draw();
    this.dialog.showModal();
    await this.read();
    try {
      this.skipped = (await api.skipped()).files;
    } catch (error) {
      toast(error.message, null, true);
    }
    if (this.dialog.open) this.#draw();
  }

  #moved(job) {
    const before = this.jobs.get(job.id);
    this.jobs.set(job.id, job);
    const ended = !MOVING.includes(job.state);
    if (ended && MOVING.includes(before?.state)) {
      if (job.state === "failed") toast(`Indexing failed: ${job.message}`, null, true);
      else toast(job.message || doneLine(job));
      this.skipped = null;
      this.read();
      this.changed();
      if (this.dialog.open) api.skipped().then((told) => ((this.skipped = told.files), this.#draw()), () => {});
    }
    this.#label();
    if (this.dialog.open) this.#draw();
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
    const text = job ? (job.total ? `Indexing ${job.done}/${job.total}` : "Indexing") : "Archive";
    this.button.replaceChildren(h("span", { class: job ? "dot busy" : "dot" }), h("span", {}, text));
    this.button.title = job ? progressLine(job) : "What is indexed, and what was skipped";
  }

  #draw() {
    const job = this.running;
    const head = h("header", {}, h("h2", { id: "archive-name", tabindex: "-1", autofocus: true }, "Archive"), h("span", { class: "room" }), iconButton("close", "Close", () => this.dialog.close()));
    const scroll = this.dialog.querySelector(".scroll")?.scrollTop ?? 0;
    const body = h("div", { class: "scroll" }, this.#counts(), job ? this.#job(job) : this.#start(), this.#skipped(), this.#facts());
    const focused = document.activeElement?.id;
    this.sheet.replaceChildren(head, body);
    body.scrollTop = scroll;
    if (focused && this.dialog.contains(at(focused))) at(focused).focus();
  }

  #counts() {
    const f = this.facts;
    if (!f) return "";
    const one = (value, label) => h("div", {}, h("b", {}, value), h("span", {}, label));
    return h("div", { class: "counts" }, one(f.videos.toLocaleString("en"), "videos"), one(long(f.duration_s), "of film"), one(f.vectors.toLocaleString("en"), "vectors"));
  }

  #start() {
    const index = async () => {
      try {
        this.#moved(await api.index());
      } catch (error) {
        toast(error.message, null, true);
      }
    };
    const folders = this.facts?.folders ?? [];
    const text = folders.length ? `Looks again through ${folders.map((f) => f.name).join(", ")}: new and changed videos are read, the others stay.` : "Looks through the folders of the index again.";
    return h("section", { class: "job" }, h("button", { type: "button", class: "button", id: "index-now", onclick: index }, "Index now"), h("p", { class: "hint" }, text));
  }

  #job(job) {
    const cancel = async () => {
      try {
        await api.cancel(job.id);
      } catch (error) {
        toast(error.message, null, true);
      }
    };
    const meter = h("progress", { ...(job.total ? { max: String(job.total) } : {}), "aria-label": "Indexing" });
    if (job.total) meter.value = job.done;
    return h(
      "section",
      { class: "job" },
      h("p", {}, h("strong", {}, progressLine(job))),
      meter,
      h("p", { class: "hint current" }, job.current ? baseName(job.current) : "Looking for videos…"),
      h("button", { type: "button", class: "button", id: "cancel", onclick: cancel }, "Stop"),
    );
  }

  #skipped() {
    const files = this.skipped;
    if (files === null) return h("section", {}, h("h3", {}, "Skipped"), h("p", { class: "hint" }, "…"));
    if (!files.length) return h("section", {}, h("h3", {}, "Skipped"), h("p", { class: "hint" }, "Nothing: every video could be read."));
    const row = (f) => h("li", {}, h("strong", {}, f.name), h("span", {}, capital(f.reason ?? "")), f.next ? h("small", {}, f.next) : null, f.folder ? h("small", { class: "folder" }, f.folder) : null);
    return h("section", {}, h("h3", {}, `Skipped: ${count(files.length, "file")}`), h("ul", { class: "skipped" }, ...files.map(row)));
  }

  #facts() {
    const f = this.facts;
    if (!f) return "";
    const rows = ["model", "adapter", "index"].flatMap((key) => {
      const one = f[key];
      if (!one) return [];
      const facts = [one.name, one.bytes ? bytes(one.bytes) : "", one.age_s ? `${ago(one.age_s)} old` : ""];
      return [h("dt", {}, capital(key)), h("dd", {}, facts.filter(Boolean).join(" · "))];
    });
    if (f.licences) for (const [what, licence] of Object.entries(f.licences)) rows.push(h("dt", {}, `Licence: ${what}`), h("dd", {}, String(licence ?? "unknown")));
    return h("section", {}, h("h3", {}, "Made with"), h("dl", { class: "facts" }, ...rows));
  }
}

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
