// The model and its adapters: which one answers, what each won on held-out videos, and its report.

import { api } from "./api.js";
import { at, h, toast } from "./dom.js";
import { bytes } from "./say.js";

const BASE = { true: "Helps", false: "Does not help", null: "Not shown to help" };

export class Adapters {
  /** `changed(names)` is called when other adapters answer; an empty list leaves it to the active one. */
  constructor(changed) {
    this.changed = changed;
    this.menu = at("adapters");
    this.panel = this.menu.querySelector(".panel");
    this.label = this.menu.querySelector(".label");
    this.list = [];
    this.model = null;
    this.asked = [];
    this.menu.addEventListener("toggle", () => this.menu.open && this.read());
  }

  async read() {
    try {
      const [told, status] = await Promise.all([api.adapters(), api.status()]);
      this.list = told.adapters;
      this.model = status.model;
    } catch (error) {
      this.panel.replaceChildren(h("p", { class: "hint" }, error.message));
      return;
    }
    this.show();
  }

  show(asked = this.asked) {
    this.asked = asked;
    const active = this.list.find((a) => a.active);
    const model = nameOf(this.model);
    const names = asked.length ? asked : active && !active.base ? [active.name] : [];
    this.label.textContent = names.length > 1 ? `${names.length} adapters` : names[0] ?? model ?? "Model";
    this.menu.title = names.length ? `${model ?? "The model"} with ${names.join(", ")}` : `${model ?? "The model"} alone`;
    const rows = this.list.map((a) => this.#row(a));
    const none = h("p", { class: "hint" }, "No adapters yet. ", h("code", {}, "clipreel tune"), " makes one from your own videos and proves whether it helps.");
    this.panel.replaceChildren(this.#head(), ...(rows.length ? rows : [none]), this.#together());
  }

  #head() {
    const m = typeof this.model === "object" && this.model ? this.model : {};
    const facts = [m.bytes ? bytes(m.bytes) : "", m.licence ?? ""].filter(Boolean).join(" · ");
    return h("header", {}, h("strong", {}, nameOf(this.model) ?? "Model"), facts ? h("small", {}, facts) : null);
  }

  #row(a) {
    const chosen = a.active && !this.asked.length;
    const radio = h("input", { type: "radio", name: "adapter", id: `adapter-${a.name}`, checked: chosen, onchange: () => this.#activate(a) });
    const helped = a.base ? null : h("span", { class: `badge ${a.helped === true ? "yes" : a.helped === false ? "no" : ""}` }, BASE[a.helped ?? null]);
    const facts = [a.size ? (typeof a.size === "number" ? bytes(a.size) : a.size) : "", a.licence ?? ""].filter(Boolean).join(" · ");
    const report = a.report ? h("a", { href: api.report(a.name), target: "_blank", rel: "noopener" }, "Report") : null;
    return h(
      "div",
      { class: chosen ? "adapter active" : "adapter" },
      h("label", { for: radio.id }, radio, h("span", { class: "name" }, a.base ? "The model alone" : a.name), helped),
      gains(a),
      facts || report ? h("p", { class: "small" }, facts, report && facts ? " · " : "", report) : null,
    );
  }

  #together() {
    const several = this.list.filter((a) => !a.base);
    if (several.length < 2) return "";
    const all = several.map((a) => a.name);
    const on = this.asked.length > 1;
    const input = h("input", { type: "checkbox", id: "together", checked: on, onchange: () => this.#ask(on ? [] : all) });
    return h("label", { class: "option together", for: "together" }, input, h("span", {}, "Ask all adapters at once", h("small", {}, "Each hit says which one found it.")));
  }

  #ask(names) {
    this.show(names);
    this.changed(names);
  }

  async #activate(a) {
    try {
      await api.activate(a.name);
      for (const other of this.list) other.active = other === a;
      toast(a.base ? `${nameOf(this.model) ?? "The model"} answers without an adapter` : `${a.name} answers now`);
      this.#ask([]);
      at(`adapter-${a.name}`)?.focus();
    } catch (error) {
      toast(error.message, null, true);
      this.show();
    }
  }
}

const nameOf = (model) => (model && typeof model === "object" ? model.name : model) ?? null;

/** R@1 before and after in both directions, as numbers and bars. */
function gains(a) {
  const ways = [["Text to video", a.before?.t2v, a.after?.t2v], ["Video to text", a.before?.v2t, a.after?.v2t]];
  const known = ways.filter(([, before, after]) => Number.isFinite(before) && Number.isFinite(after));
  if (!known.length) return "";
  const rows = known.map(([way, before, after]) => {
    const bar = h("span", { class: "gain", "aria-hidden": "true" }, h("i"), h("u"));
    bar.firstChild.style.width = `${after}%`;
    bar.lastChild.style.left = `${before}%`;
    const change = after - before;
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, way),
      h("td", {}, bar),
      h("td", {}, `${before.toFixed(1)} → ${after.toFixed(1)}`),
      h("td", { class: change > 0 ? "up" : "" }, `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(1)}`),
    );
  });
  return h("table", { class: "gains" }, h("caption", {}, "Right video first (R@1), before → after"), h("tbody", {}, ...rows));
}
