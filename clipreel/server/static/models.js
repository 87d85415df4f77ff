// A migration: the model that answers and the one it moves to, how saved queries moved, and the switch.

import { api } from "./api.js";
import { h, toast } from "./dom.js";
import { ago, bytes, capital, count } from "./say.js";

const ROLES = { current: "Answers now", next: "Next", before: "Before" };
const SHOWN = 5; // of the queries whose answers moved
const NTH = new Intl.PluralRules("en", { type: "ordinal" });
const ENDINGS = { one: "st", two: "nd", few: "rd", other: "th" };

export class Models {
  /** `switched()` is called when another model answers. */
  constructor(switched) {
    this.switched = switched;
    this.section = h("section", { class: "models", hidden: true });
  }

  async read() {
    try {
      const found = await api.models();
      if (!this.section.querySelector(".sure")) this.#draw(found); // who is asked whether it is meant may answer first
    } catch {
      this.section.hidden = true; // a server without models, or none: the search says so
    }
  }

  #draw({ models, canary }) {
    this.section.hidden = models.length < 2;
    if (this.section.hidden) return this.section.replaceChildren();
    const next = models.find((m) => m.role === "next");
    const before = models.find((m) => m.role === "before");
    const title = next ? "Moving to another model" : "Moved to another model";
    const rows = models.map((m) => h("tr", { class: m.active ? "active" : "" }, h("th", { scope: "row" }, m.name, h("small", {}, facts(m))), h("td", {}, ROLES[m.role])));
    const table = h("table", {}, h("caption", { class: "unseen" }, "Models of this archive"), h("tbody", {}, ...rows));
    this.act = h("div", { class: "act" });
    this.section.replaceChildren(h("h3", {}, title), table, ...(next ? report(next, canary) : []), this.act);
    if (next?.ready) this.#offer(`Switch to ${next.name}`, next, "It answers from then on, for everybody who searches here. The present one is kept, so you can switch back.");
    else if (!next && before) this.#offer(`Switch back to ${before.name}`, before, "It answers again from then on, for everybody who searches here. The present one is kept.");
  }

  /** A button, and after it was pressed the question whether that is meant. */
  #offer(label, model, consequence) {
    const ask = () => {
      const go = h("button", { type: "button", class: "button strong", onclick: () => this.#switch(model, go) }, "Switch now");
      const stay = h("button", { type: "button", class: "button", onclick: () => (offer(), this.act.querySelector("button").focus()) }, "Keep the present one");
      const question = h("p", { id: "switch-what" }, h("strong", {}, `${label}?`), " ", consequence);
      this.act.replaceChildren(h("div", { class: "sure", role: "group", "aria-labelledby": "switch-what" }, question, h("div", { class: "row" }, go, stay)));
      stay.focus();
    };
    const offer = () => this.act.replaceChildren(h("button", { type: "button", class: "button", id: "switch", onclick: ask }, label));
    offer();
  }

  async #switch(model, button) {
    button.disabled = true;
    button.textContent = "Switching…";
    try {
      this.#draw(await api.switchTo(model.name));
      toast(`${model.name} answers now`);
      this.switched();
    } catch (error) {
      toast(capital(error.message), null, true);
      this.act.replaceChildren();
      await this.read();
    }
    (this.act?.querySelector("button") ?? this.section.closest("dialog").querySelector("h2")).focus();
  }
}

const facts = (m) => [count(m.videos, "video"), m.bytes ? bytes(m.bytes) : "", m.age_s ? `${ago(m.age_s)} old` : ""].filter(Boolean).join(" · ");

const nth = (n) => `${n}${ENDINGS[NTH.select(n)] ?? "th"}`;

/** What became of the saved queries, those first that somebody should look at. */
function report(next, canary) {
  if (!next.ready) return [h("p", { class: "hint" }, `${next.name} has not seen every video yet; `, h("code", {}, "clipreel migrate --to"), " goes on with it.")];
  if (!canary?.queries.length) return [h("p", { class: "hint" }, "No query is saved, so nothing was compared: ", h("code", {}, "clipreel canary add"), " saves some.")];
  const all = canary.queries;
  const same = all.filter((q) => q.first === 1).length;
  const overlap = Math.round((100 * all.reduce((sum, q) => sum + q.overlap, 0)) / all.length);
  const line = `Of ${count(all.length, "saved query", "saved queries")}, ${same} ${same === 1 ? "keeps its" : "keep their"} best answer; ${overlap} % of all remembered answers are still there.`;
  const moved = all.filter((q) => q.warns).sort((a, b) => a.overlap - b.overlap);
  const row = (q) => h("li", {}, h("span", {}, `“${q.query}”`), h("small", {}, `${Math.round(100 * q.overlap)} % the same, ${place(q)}`));
  const rest = moved.length - SHOWN;
  const list = moved.length ? h("ul", { class: "moved" }, ...moved.slice(0, SHOWN).map(row), rest > 0 ? h("li", {}, h("small", {}, `and ${rest} more: clipreel migrate prints all`)) : null) : null;
  return [h("p", { class: "hint" }, line), ...(list ? [list] : [])];
}

/** Where the former best answer of a query is now. */
function place(q) {
  if (q.first === 1) return "the best one is still first";
  return q.first ? `the former best is now ${nth(q.first)}` : "the former best is not among the first 10";
}
