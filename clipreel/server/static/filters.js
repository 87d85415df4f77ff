// The filter bar: folders and tags with the numbers of the answer, duration, date, orientation, ranking.

import { at, h } from "./dom.js";
import { EMPTY_FILTERS, filtered } from "./query.js";

const LENGTHS = [["", "", "Any length"], ["", "10", "Under 10 s"], ["10", "60", "10 s to 1 min"], ["60", "600", "1 to 10 min"], ["600", "", "Over 10 min"]];
const WAYS = [["", "Any"], ["landscape", "Landscape"], ["portrait", "Portrait"], ["square", "Square"]];
const RANKS = [["", "Closest first"], ["bank", "Hold back all-rounders"]];

export class Filters {
  /** `changed()` is called for another filter or order; `second()` gives the rerankers that can be chosen. */
  constructor(changed, second) {
    this.changed = changed;
    this.second = second;
    this.root = at("filters");
    this.facets = { folders: [], tags: [] };
    this.state = null;
    document.addEventListener("pointerdown", (e) => closeMenus(e.target.closest("details.menu")));
    document.addEventListener("keydown", (e) => {
      const open = document.querySelector("details.menu[open]");
      if (e.key !== "Escape" || !open) return;
      open.open = false;
      open.querySelector("summary").focus();
      e.stopPropagation();
    }, true);
    // one menu at a time
    document.addEventListener("toggle", (e) => e.target.matches?.("details.menu[open]") && closeMenus(e.target), true);
  }

  /** Draw anew; a menu that is open stays open, with the focus where it was. */
  show(state, facets = this.facets) {
    this.state = state;
    this.facets = facets;
    const open = this.root.querySelector("details[open]")?.dataset.name;
    const focused = document.activeElement?.closest?.(".filters") ? document.activeElement.id : null;
    const f = state.filters;
    this.root.replaceChildren(
      this.#folders(f),
      this.#tags(f),
      this.#lengths(f),
      this.#dates(f),
      this.#ways(f),
      this.#clear(),
      h("span", { class: "room" }),
      this.#ranks(),
    );
    if (open) this.root.querySelector(`details[data-name="${open}"]`).open = true;
    if (focused) (at(focused) ?? this.root.querySelector("summary")).focus(); // Clear goes when it was pressed
  }

  #set(values) {
    Object.assign(this.state.filters, values);
    this.changed();
  }

  #folders(f) {
    const known = withChosen(this.facets.folders, f.folder ? [f.folder] : []);
    const rows = [{ name: "", label: "All folders" }, ...known].map((one, i) =>
      option("radio", `folder-${i}`, "folder", one.label ?? one.name, one.count, f.folder === one.name, () => this.#set({ folder: one.name })),
    );
    return menu("folder", f.folder || "Folder", Boolean(f.folder), rows);
  }

  #tags(f) {
    const known = withChosen(this.facets.tags, f.tags);
    const toggle = (name) => this.#set({ tags: f.tags.includes(name) ? f.tags.filter((t) => t !== name) : [...f.tags, name] });
    const rows = known.map((one, i) => option("checkbox", `tag-${i}`, "tag", one.name, one.count, f.tags.includes(one.name), () => toggle(one.name)));
    const none = h("p", { class: "hint" }, "No tags yet: ", h("code", {}, "clipreel tag"), " gives the videos some.");
    return menu("tag", f.tags.length ? f.tags.join(", ") : "Tags", f.tags.length > 0, rows.length ? rows : [none]);
  }

  #lengths(f) {
    const rows = LENGTHS.map(([min, max, label], i) => option("radio", `length-${i}`, "length", label, null, f.min === min && f.max === max, () => this.#set({ min, max })));
    const number = (key, label) =>
      h("label", {}, label, h("input", { id: `length-${key}`, type: "number", min: "0", step: "1", inputmode: "decimal", value: f[key], onchange: (e) => this.#set({ [key]: e.target.value }) }));
    const name = LENGTHS.find(([min, max]) => f.min === min && f.max === max)?.[2] ?? `${f.min || 0} to ${f.max || "…"} s`;
    const on = Boolean(f.min || f.max);
    return menu("length", on ? name : "Length", on, [...rows, h("div", { class: "pair" }, number("min", "From (s)"), number("max", "To (s)"))]);
  }

  #dates(f) {
    const date = (key, label) =>
      h("label", {}, label, h("input", { id: `date-${key}`, type: "date", value: f[key], onchange: (e) => this.#set({ [key]: e.target.value }) }));
    const on = Boolean(f.after || f.before);
    const name = on ? [f.after && `from ${f.after}`, f.before && `to ${f.before}`].filter(Boolean).join(" ") : "Date";
    return menu("date", name, on, [h("div", { class: "pair" }, date("after", "From"), date("before", "To"))]);
  }

  #ways(f) {
    const rows = WAYS.map(([value, label], i) => option("radio", `way-${i}`, "way", label, null, f.orientation === value, () => this.#set({ orientation: value })));
    const name = WAYS.find(([value]) => value === f.orientation)?.[1];
    return menu("way", f.orientation ? name : "Orientation", Boolean(f.orientation), rows);
  }

  #ranks() {
    const choose = (value) => {
      this.state.rank = value;
      this.changed();
    };
    const rows = RANKS.map(([value, label], i) => option("radio", `rank-${i}`, "rank", label, null, this.state.rank === value, () => choose(value)));
    const label = RANKS.find(([value]) => value === this.state.rank)?.[1] ?? RANKS[0][1];
    const hint = h("p", { class: "hint" }, "All-rounders come up whatever you ask: held back, a video counts by how much better it does here than with other questions. The words below a result always say that, so a weak match can stand before a strong one.");
    const { rerank } = this.state;
    return menu("rank", rerank ? `${label}, checked again` : label, Boolean(rerank), [...rows, hint, ...this.#seconds()], "end");
  }

  /** Who may look at the best hits again; nothing where the server has nobody. */
  #seconds() {
    const known = this.second();
    if (!known.length) return [];
    const choose = (name) => {
      this.state.rerank = name;
      this.changed();
    };
    const one = (name, label, i) => option("radio", `second-${i}`, "second", label, null, this.state.rerank === name, () => choose(name));
    const how = (r) => `The best ${r.candidates} ${r.kind === "head" ? "frame by frame" : "read once more"} (${r.name})`;
    return [h("h3", {}, "Check the best results again"), one("", "No", 0), ...known.map((r, i) => one(r.name, how(r), i + 1))];
  }

  #clear() {
    if (!filtered(this.state)) return "";
    return h("button", { type: "button", class: "text", id: "clear", onclick: () => this.#set(structuredClone(EMPTY_FILTERS)) }, "Clear");
  }
}

function withChosen(known, chosen) {
  const missing = chosen.filter((name) => !known.some((k) => k.name === name));
  return [...known, ...missing.map((name) => ({ name, count: 0 }))];
}

function menu(name, label, on, rows, side = "") {
  const panel = h("div", { class: `panel ${side}`, role: "group", "aria-label": label }, ...rows);
  return h("details", { class: on ? "menu on" : "menu", data: { name } }, h("summary", { id: `menu-${name}` }, h("span", { class: "label" }, label)), panel);
}

function option(type, id, name, label, count, checked, onchange) {
  const input = h("input", { type, id, name, checked, onchange });
  return h("label", { class: "option", for: id }, input, h("span", {}, label), count === null || count === undefined ? null : h("data", {}, count.toLocaleString("en")));
}

export function closeMenus(except = null) {
  for (const open of document.querySelectorAll("details.menu[open]")) if (open !== except) open.open = false;
}
