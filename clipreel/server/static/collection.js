// Collections of hits, kept by the browser, and their export.

import { api } from "./api.js";
import { announce, at, closeOutside, h, icon, iconButton, toast } from "./dom.js";
import { keyOf, telling } from "./grid.js";
import { count, span } from "./say.js";

const KEPT = "clipreel.collections";
const FIRST = "My collection";
const FORMATS = [["mp4", "Cut videos (MP4, zipped)"], ["edl", "Edit list (EDL)"], ["fcpxml", "Final Cut (FCPXML)"], ["csv", "Table (CSV)"], ["json", "JSON"]];

export class Collection {
  /** `acts`: open(hit), changed(). */
  constructor(acts) {
    this.acts = acts;
    this.dialog = at("collection");
    this.sheet = this.dialog.appendChild(h("div", { class: "sheet" }));
    this.button = at("open-collection");
    Object.assign(this, load());
    closeOutside(this.dialog);
    this.button.addEventListener("click", () => this.show());
    // another tab may collect too
    addEventListener("storage", (e) => {
      if (e.key !== KEPT) return;
      Object.assign(this, load());
      this.#changed(false);
    });
    this.#label();
  }

  get hits() {
    return this.all[this.current];
  }

  has(hit) {
    return this.hits.some((h) => keyOf(h) === keyOf(hit));
  }

  toggle(hit, query = "") {
    const i = this.hits.findIndex((h) => keyOf(h) === keyOf(hit));
    if (i >= 0) this.#remove(i);
    else {
      const { video, name, folder, start_s, end_s, width, height, duration_s, score, words } = hit;
      this.hits.push({ video, name, folder, start_s, end_s, at_s: telling(hit), width, height, duration_s, score, words, query });
      this.#changed();
      announce(`Collected: ${name} at ${span(start_s, end_s)}`);
    }
  }

  #remove(i) {
    const [gone] = this.hits.splice(i, 1);
    this.#changed();
    this.#refocus(i);
    const undo = () => {
      this.hits.splice(i, 0, gone);
      this.#changed();
    };
    toast(`Taken out: ${gone.name} ${span(gone.start_s, gone.end_s)}`, ["Undo", undo]);
  }

  /** After a row of the drawer went: the focus goes to the one in its place. */
  #refocus(i) {
    if (!this.dialog.open) return;
    const rows = this.dialog.querySelectorAll(".kept .quiet");
    (rows[Math.min(i, rows.length - 1)] ?? this.dialog.querySelector("h2")).focus();
  }

  #changed(keep = true) {
    if (keep) {
      try {
        localStorage.setItem(KEPT, JSON.stringify({ version: 1, current: this.current, all: this.all }));
      } catch {
        toast("The browser keeps no more: export this collection, then take something out.", null, true);
      }
    }
    this.#label();
    if (this.dialog.open) this.#draw();
    this.acts.changed();
  }

  #label() {
    const n = this.hits.length;
    this.button.setAttribute("aria-label", `Collection: ${count(n, "moment")}`);
    this.button.title = "Collection";
    this.button.replaceChildren(icon("reel"), h("span", { class: "wide-only" }, "Collection"), n ? h("b", { class: "number" }, String(n)) : "");
  }

  show() {
    this.#draw();
    this.dialog.showModal();
  }

  #draw() {
    const names = Object.keys(this.all);
    const choose = h("select", { "aria-label": "Collection", onchange: (e) => this.#choose(e.target.value) }, ...names.map((n) => h("option", { value: n }, n)));
    choose.value = this.current;
    const head = h("header", {}, h("h2", { id: "collection-name", tabindex: "-1", autofocus: true }, "Collection"), choose, iconButton("plus", "New collection", () => this.#name("")), iconButton("close", "Close", () => this.dialog.close()));
    const empty = h("div", { class: "empty" }, h("p", {}, "Nothing collected yet."), h("p", { class: "hint" }, "Press + on a result, or the key C, to keep its moment here. Collected moments can be exported as videos, edit lists and tables."));
    const list = h("ol", { class: "kept" }, ...this.hits.map((hit, i) => this.#row(hit, i)));
    this.sheet.replaceChildren(head, this.hits.length ? list : empty, this.#foot());
  }

  #row(hit, i) {
    const open = h(
      "button",
      { type: "button", class: "moment", onclick: () => (this.dialog.close(), this.acts.open(hit)) },
      h("img", { src: api.thumbnail(hit.video, hit.at_s, 240), alt: "", loading: "lazy" }),
      h("span", {}, h("strong", {}, hit.name), h("small", {}, span(hit.start_s, hit.end_s)), hit.query ? h("small", { class: "asked" }, `“${hit.query}”`) : null),
    );
    return h("li", {}, open, iconButton("close", `Take out ${hit.name}`, () => this.#remove(i)));
  }

  #foot() {
    const format = h("select", { "aria-label": "Format", id: "format" }, ...FORMATS.map(([v, label]) => h("option", { value: v }, label)));
    const go = h("button", { type: "button", class: "button strong", id: "export", onclick: () => this.#export(format.value, go) }, "Export");
    const several = Object.keys(this.all).length > 1;
    const drop = h("button", { type: "button", class: "text", onclick: () => this.#drop() }, several ? "Delete collection" : "Empty");
    const rename = h("button", { type: "button", class: "text", onclick: () => this.#name(this.current) }, "Rename");
    const row = h("div", { class: "row" }, rename, several || this.hits.length ? drop : null);
    return this.hits.length ? h("footer", {}, h("div", { class: "row" }, format, go), row) : h("footer", {}, row);
  }

  async #export(format, button) {
    button.disabled = true;
    button.textContent = "Exporting…";
    try {
      const hits = this.hits.map(({ video, start_s, end_s }) => ({ video, start_s, end_s }));
      const { blob, name } = await api.export(format, hits);
      const address = URL.createObjectURL(blob);
      h("a", { href: address, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
      toast(`Exported ${count(hits.length, "moment")} as ${name}`);
    } catch (error) {
      toast(error.message, null, true);
    }
    button.disabled = false;
    button.textContent = "Export";
  }

  #choose(name) {
    this.current = name;
    this.#changed();
  }

  /** A line to type a name into: of a new collection, or another one for `old`. */
  #name(old) {
    const input = h("input", { type: "text", value: old, maxlength: "60", "aria-label": old ? "New name" : "Name of the new collection", placeholder: "Name" });
    const done = (e) => {
      e.preventDefault();
      const name = input.value.trim();
      if (!name || (name !== old && name in this.all)) return input.focus();
      if (old) this.all = Object.fromEntries(Object.entries(this.all).map(([k, v]) => [k === old ? name : k, v]));
      else this.all[name] = [];
      this.current = name;
      this.#changed();
    };
    const form = h("form", { class: "naming", onsubmit: done }, input, h("button", { class: "button" }, old ? "Rename" : "Create"));
    this.dialog.querySelector("header").after(form);
    input.focus();
    input.select();
  }

  #drop() {
    const kept = { all: structuredClone(this.all), current: this.current };
    delete this.all[this.current];
    if (!Object.keys(this.all).length) this.all[FIRST] = [];
    this.current = Object.keys(this.all)[0];
    this.#changed();
    toast(`Deleted “${kept.current}”`, ["Undo", () => (Object.assign(this, kept), this.#changed())]);
  }
}

function load() {
  try {
    const { all, current } = JSON.parse(localStorage.getItem(KEPT));
    if (Array.isArray(all[current])) return { all, current };
  } catch {
    // nothing kept yet, or by hand and damaged
  }
  return { all: { [FIRST]: [] }, current: FIRST };
}
