// What is said of answers: this is it, this is not it. The server keeps it; `clipreel tune` learns from it.

import { api } from "./api.js";
import { h, icon, iconButton, toast } from "./dom.js";
import { clock, count, span } from "./say.js";

const MOST = 1000; // marks of one request, the newest first
const SHOWN = 5;
const SAME = 0.5; // share of two moments that overlaps in one: ends differ with how they were refined
export const KINDS = [
  { kind: "hit", label: "This is it", icon: "up", key: "y" },
  { kind: "miss", label: "This is not it", icon: "down", key: "x" },
];
const COMMANDS = ["clipreel pairs write marked.jsonl", "clipreel tune marked.jsonl"];

/** The share of two moments that they have in common. */
function common(a, b) {
  const both = Math.min(a.end_s, b.end_s) - Math.max(a.start_s, b.start_s);
  return both > 0 ? both / (Math.max(a.end_s, b.end_s) - Math.min(a.start_s, b.start_s)) : 0;
}

export class Marks {
  /** `changed()` is called when marks came or went. */
  constructor(changed) {
    this.changed = changed;
    this.all = [];
    this.totals = { hits: 0, misses: 0, total: 0 };
    this.open = false;
    this.title = h("h3", {}, "Marked answers");
    this.list = h("ul", { class: "marked" });
    this.more = h("button", { type: "button", class: "text", id: "more-marked", onclick: () => this.#unfold() });
    const lines = h("code", { class: "commands" }, COMMANDS.join("\n"));
    const copy = iconButton("copy", "Copy the commands", () => this.#copy());
    this.next = h("div", { class: "next" }, h("p", { class: "hint" }, "They teach an adapter, wrong ones beside the right ones of the same query; it is proven before it answers:"), h("div", { class: "row" }, lines, copy));
    this.hint = h("p", { class: "hint" }, "Say “This is it” or “This is not it” of a result: such marks can teach an adapter what you mean.");
    this.section = h("section", {}, this.title, this.hint, this.list, this.more, this.next);
    this.#draw();
  }

  async read() {
    try {
      const told = await api.pairs(0, MOST);
      this.all = told.pairs;
      this.#counted(told);
    } catch {
      // the search says that the server is away
    }
  }

  /** The mark of a moment as an answer to a query, if it has one. */
  of(query, hit) {
    return this.all.find((m) => m.query === query && m.video === hit.video && common(m, hit) > SAME) ?? null;
  }

  /** Say what a moment is; the same once more takes it back. */
  async mark(kind, query, hit) {
    const before = this.of(query, hit);
    if (before?.judgement === kind) return this.#forget(before);
    try {
      if (before) await this.#gone(before);
      const { pair, ...told } = await api.mark({ query, video: hit.video, start_s: hit.start_s, end_s: hit.end_s, judgement: kind });
      this.all = [pair, ...this.all.filter((m) => m.id !== pair.id)];
      this.#counted(told);
      const { label } = KINDS.find((k) => k.kind === kind);
      this.#say(`${label}: ${pair.name} ${span(pair.start_s, pair.end_s)}`, () => this.#forget(pair));
    } catch (error) {
      this.#failed(error);
    }
  }

  async #forget(mark) {
    try {
      this.#counted(await this.#gone(mark));
      const { query, video, start_s, end_s, judgement } = mark;
      this.#say(`Taken back: ${mark.name} ${span(start_s, end_s)}`, () => this.mark(judgement, query, { video, start_s, end_s }));
    } catch (error) {
      this.#failed(error);
    }
  }

  async #gone(mark) {
    const told = await api.unmark(mark.id).catch((error) => {
      if (error.status !== 404) throw error; // taken back elsewhere
      return { ...this.totals };
    });
    this.all = this.all.filter((m) => m.id !== mark.id);
    return told;
  }

  /** One message at a time, however fast one marks. */
  #say(message, undo) {
    this.note?.remove();
    this.note = toast(message, ["Undo", undo]);
  }

  #failed(error) {
    toast(error.message, null, true);
    this.read();
  }

  #counted({ hits, misses, total }) {
    this.totals = { hits, misses, total };
    this.#draw();
    this.changed();
  }

  #draw() {
    const { hits, misses, total } = this.totals;
    this.title.textContent = total ? `Marked answers: ${hits.toLocaleString("en")} right, ${misses.toLocaleString("en")} wrong` : "Marked answers";
    this.hint.hidden = total > 0;
    this.next.hidden = hits === 0;
    const focused = [...this.list.children].findIndex((row) => row.contains(document.activeElement));
    this.list.replaceChildren(...this.all.slice(0, this.open ? MOST : SHOWN).map((m) => this.#row(m)));
    if (focused >= 0) (this.list.children[Math.min(focused, this.list.children.length - 1)]?.querySelector("button") ?? this.section.closest("dialog").querySelector("h2")).focus();
    this.more.hidden = this.open || this.all.length <= SHOWN;
    this.more.textContent = `Show all ${count(this.all.length, "mark")}`;
  }

  #row(mark) {
    const { label, icon: sign } = KINDS.find((k) => k.kind === mark.judgement);
    const moment = `${mark.name} ${span(mark.start_s, mark.end_s)}`;
    return h(
      "li",
      { class: mark.judgement },
      icon(sign),
      h("span", {}, h("span", { class: "unseen" }, `${label}: `), h("strong", {}, `“${mark.query}”`), h("small", {}, moment)),
      iconButton("close", `Take back: ${label}, ${moment}`, () => this.#forget(mark)),
    );
  }

  #unfold() {
    this.open = true;
    this.#draw();
    this.list.children[SHOWN]?.querySelector("button").focus();
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(`${COMMANDS.join("\n")}\n`);
      toast("Copied");
    } catch {
      toast("The browser does not allow copying here.", null, true);
    }
  }
}

/** The two buttons of a moment; `mark(kind)` is called by them. `words`: with their labels beside the icons. */
export function markButtons(hit, marked, mark, words = false) {
  const button = ({ kind, label, icon: sign, key }) => {
    const pressed = String(marked?.judgement === kind);
    const more = { "aria-pressed": pressed, title: `${label} (${key.toUpperCase()})`, data: { kind } };
    if (words) return h("button", { type: "button", class: "button", id: `mark-${kind}`, onclick: () => mark(kind), ...more }, icon(sign), label);
    return iconButton(sign, `${label}: ${hit.name} at ${clock(hit.start_s)}`, () => mark(kind), more);
  };
  return h("div", { class: words ? "row judge" : "judge", role: "group", "aria-label": "Is this it?" }, ...KINDS.map(button));
}
