// What the index left out and why, page by page.

import { api } from "./api.js";
import { h, toast } from "./dom.js";
import { capital, count } from "./say.js";

const PAGE = 50;
// the server's reasons (clipreel/video/packets.py) as people say them
const SAID = {
  missing: "The file is gone",
  "no-access": "The file may not be read",
  empty: "The file is empty",
  incomplete: "Incomplete: its end is missing",
  "not-video": "Not a video",
  "no-frames": "No picture in it",
  corrupt: "Damaged",
  timeout: "Took too long to read",
  crash: "Reading it ended the decoder",
};

export class Skipped {
  constructor() {
    this.title = h("h3", {}, "Skipped");
    this.list = h("ul", { class: "skipped" });
    this.hint = h("p", { class: "hint" }, "…");
    this.more = h("button", { type: "button", class: "button", id: "more-skipped", hidden: true, onclick: () => this.#next() });
    this.section = h("section", {}, this.title, this.hint, this.list, this.more);
    this.shown = 0;
  }

  /** The first page anew. */
  async read() {
    try {
      const told = await api.skipped(0, PAGE);
      this.list.replaceChildren();
      this.shown = 0;
      this.#add(told);
    } catch (error) {
      this.hint.textContent = capital(error.message);
      this.hint.hidden = false;
    }
  }

  async #next() {
    this.more.disabled = true;
    try {
      const first = this.shown;
      this.#add(await api.skipped(first, PAGE));
      this.list.children[first]?.focus();
    } catch (error) {
      toast(error.message, null, true);
    }
    this.more.disabled = false;
  }

  #add({ files, total }) {
    this.list.append(...files.map(row));
    this.shown += files.length;
    const left = files.length ? total - this.shown : 0;
    this.title.textContent = total ? `Skipped: ${count(total, "file")}` : "Skipped";
    this.hint.textContent = "Nothing: every video could be read.";
    this.hint.hidden = total > 0;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show more (${left.toLocaleString("en")} left)`;
  }
}

function row(file) {
  const [reason, ...detail] = (file.reason ?? "").split(" ");
  const why = SAID[reason] ? [SAID[reason], ...detail].join(" ") : capital(file.reason ?? "");
  const where = file.folder ? h("small", { class: "folder" }, file.folder) : null;
  return h("li", { tabindex: "-1" }, h("strong", {}, file.name), h("span", {}, why), file.next ? h("small", {}, capital(file.next)) : null, where);
}
