// The model and its adapters: which one answers, what each won on held-out videos, and its report.

import { api } from "./api.js";
import { at, h, toast } from "./dom.js";
import { bytes } from "./say.js";

const SAID = { true: "Helps", false: "Does not help", null: "Not shown to help" };

export class Adapters {
  /** `changed(names)` is called when other adapters answer; an empty list leaves it to the active one. */
  constructor(changed) {
    this.changed = changed;
    this.menu = at("adapters");
    this.panel = this.menu.querySelector(".panel");
    this.label = this.menu.querySelector(".label");
    this.list = [];
    this.model = null;
    this.rerankers = [];
    this.asked = [];
    this.menu.addEventListener("toggle", () => this.menu.open && this.read());
  }

  async read() {
    try {
      const [told, status] = await Promise.all([api.adapters(), api.status()]);
      this.list = told.adapters.map((a) => ({ ...a, base: a.method === null }));
      this.model = status.model;
      this.rerankers = status.rerankers ?? [];
    } catch (error) {
      this.panel.replaceChildren(h("p", { class: "hint" }, error.message));
      return;
    }
    this.show();
  }

  /** What people call one of them. */
  called(name) {
    const one = this.list.find((a) => a.name === name);
    return one?.base || !name || name === "base" ? "model alone" : one?.title ?? name;
  }

  /** The rerankers that can judge what is asked now: a head reads what one index stored, others take all. */
  get second() {
    const names = this.asked.length ? this.asked : this.list.filter((a) => a.active).map((a) => a.name);
    return this.rerankers.filter((r) => (r.kind !== "head" || names.length === 1) && names.every((n) => r.adapters.includes(n)));
  }

  show(asked = this.asked) {
    this.asked = asked;
    if (!this.model) return;
    const active = this.list.find((a) => a.active);
    const model = this.model.name;
    const names = asked.length ? asked : active ? [active.name] : [];
    const said = names.map((name) => (this.list.find((a) => a.name === name)?.base ? `${model} alone` : `${model} with ${this.called(name)}`));
    const [one] = names.filter((name) => !this.list.find((a) => a.name === name)?.base);
    this.label.textContent = names.length > 1 ? `${names.length} at once` : one ? this.called(one) : model;
    this.menu.title = said.join(", ") || model;
    const rows = this.list.map((a) => this.#row(a));
    const none = h("p", { class: "hint" }, h("code", {}, "clipreel tune"), " makes an adapter from your own videos and shows whether it helps; ", h("code", {}, "clipreel serve --other"), " lets it answer here.");
    this.panel.replaceChildren(this.#head(), ...rows, this.list.length > 1 ? this.#together() : none);
  }

  #head() {
    const facts = this.model.bytes ? bytes(this.model.bytes) : "";
    return h("header", {}, h("strong", {}, this.model.name), facts ? h("small", {}, facts) : null);
  }

  #row(a) {
    const chosen = a.active && !this.asked.length;
    const radio = h("input", { type: "radio", name: "adapter", id: `adapter-${a.name}`, checked: chosen, onchange: () => this.#activate(a) });
    const helped = a.base ? null : h("span", { class: `badge ${a.helped === true ? "yes" : a.helped === false ? "no" : ""}` }, SAID[a.helped]);
    const how = a.base || a.title !== a.name ? "" : [a.method, a.data].filter(Boolean).join(" on ");
    const facts = [how, a.bytes ? bytes(a.bytes) : "", ...licences(a.licence)].filter(Boolean).join(" · ");
    const report = a.report ? h("a", { href: api.report(a.name), target: "_blank", rel: "noopener" }, "Report") : null;
    return h(
      "div",
      { class: chosen ? "adapter active" : "adapter" },
      h("label", { for: radio.id }, radio, h("span", { class: "name" }, a.name === "base" ? "The model alone" : a.title ?? a.name), helped),
      gains(a),
      facts || report ? h("p", { class: "small" }, facts, report && facts ? " · " : "", report) : null,
    );
  }

  #together() {
    const all = this.list.map((a) => a.name);
    const on = this.asked.length > 1;
    const input = h("input", { type: "checkbox", id: "together", checked: on, onchange: () => this.#ask(on ? [] : all) });
    return h("label", { class: "option together", for: "together" }, input, h("span", {}, "Ask all at once", h("small", {}, "Each result says which one found it.")));
  }

  #ask(names) {
    this.show(names);
    this.changed(names);
  }

  async #activate(a) {
    try {
      await api.activate(a.name);
      for (const other of this.list) other.active = other === a;
      toast(a.base ? `${this.model.name} answers without an adapter` : `${a.title ?? a.name} answers now`);
      this.#ask([]);
      at(`adapter-${a.name}`)?.focus();
    } catch (error) {
      toast(error.message, null, true);
      this.show();
    }
  }
}

/** What an adapter states of its base and data; of a path, the name at its end. */
const licences = (stated) => Object.entries(stated ?? {}).map(([what, name]) => `${what}: ${name.split("/").pop()}`);

const signed = (change) => `${change < 0 ? "−" : change > 0 ? "+" : "±"}${Math.abs(change).toFixed(1)}`;

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
      h("td", { class: change > 0 ? "up" : "" }, signed(change)),
    );
  });
  return h("table", { class: "gains" }, h("caption", {}, "Right video first (R@1), before → after"), h("tbody", {}, ...rows));
}
