// The result grid: cards with film strips, scrubbing with the pointer, moving with the arrow keys.

import { api } from "./api.js";
import { at, h, icon, iconButton, place } from "./dom.js";
import { KINDS, markButtons } from "./marks.js";
import { clock, fits, level, long, meaning, rated, span } from "./say.js";

const NEAR = 0.7; // another moment is a hit when it scores this share of the best one
const FILM = 41.6; // height of a film strip
const SEEN = 0.6; // a picture of which less would be seen is shown whole
const SHAPES = [["tall", 0.95], ["square", 1.25], ["wide", Infinity]];
const RATIOS = { tall: 3 / 4, square: 1, wide: 16 / 9 }; // as in style.css

export const keyOf = (hit) => `${hit.video}@${hit.start_s.toFixed(2)}`;

/** The second that stands for a hit: the frame that matched most, else its middle. */
export const telling = (hit) => hit.matched?.[0]?.at_s ?? (hit.start_s + hit.end_s) / 2;

/** The other moments of the video that answer the query too. */
export const others = (hit) => (hit.moments ?? []).filter((m) => m.score >= NEAR * hit.score && Math.abs(m.start_s - hit.start_s) > 0.05);

export const aspect = (hit) => (hit.width && hit.height ? hit.width / hit.height : 16 / 9);

export class Grid {
  /** `acts`: open(hit, index, second), like(hit), collect(hit), collected(hit), address(hit), by(hit): what found it, where
   *  several were asked, asked(hit): the text that it answers, marked(hit), mark(kind, hit). */
  constructor(acts) {
    this.list = at("hits");
    this.acts = acts;
    this.hits = [];
    this.cards = [];
    this.matching = null;
    this.current = 0;
    this.list.addEventListener("keydown", (e) => this.#key(e));
    this.list.addEventListener("focusin", (e) => this.#reached(e.target.closest(".card")));
  }

  /** `matching`: how many videos match, here and on further pages, null where that is not known. */
  show(hits, matching = null) {
    const kept = this.list.contains(document.activeElement) ? this.hits[this.current] : null;
    this.hits = hits;
    this.matching = matching;
    this.current = 0;
    this.list.dataset.shape = shapeOf(hits);
    this.width = parseFloat(getComputedStyle(this.list).gridTemplateColumns) || 288;
    this.cards = hits.map((hit, i) => this.#card(hit, i));
    this.list.replaceChildren(...this.cards);
    this.#divide();
    this.#rove();
    const again = kept ? hits.findIndex((hit) => keyOf(hit) === keyOf(kept)) : -1;
    if (again >= 0) this.focus(again);
  }

  add(hits) {
    const first = this.hits.length;
    this.hits.push(...hits);
    const cards = hits.map((hit, i) => this.#card(hit, first + i));
    this.cards.push(...cards);
    this.list.append(...cards);
    this.#divide();
    this.#rove();
  }

  /** A line after the last video that matches, once all that do are here: above it the words may go up and down. */
  #divide() {
    this.list.querySelector(".divider")?.remove();
    const last = this.hits.findLastIndex(fits);
    if (last < 0 || last === this.hits.length - 1 || this.hits.filter(fits).length !== this.matching) return;
    const said = level(this.hits[last]) === null ? "no nearer than many others" : "probably no match";
    this.cards[last].after(h("li", { class: "divider" }, `From here on: ${said}`));
  }

  /** Grey cards while the first answer is on its way. */
  skeleton(n = 12) {
    this.hits = this.cards = [];
    const ghost = () => h("li", { class: "card ghost", "aria-hidden": "true" }, h("div", { class: "shot" }), h("div", { class: "film" }), h("div", { class: "told" }));
    this.list.replaceChildren(...Array.from({ length: n }, ghost));
  }

  focus(index = this.current) {
    const target = this.cards[Math.min(Math.max(index, 0), this.hits.length - 1)]?.querySelector(".shot");
    target?.focus();
    target?.closest(".card").scrollIntoView({ block: "nearest" });
  }

  /** Show which hits are collected, and what is said of them. */
  mark() {
    this.hits.forEach((hit, i) => {
      const card = this.cards[i];
      const button = card.querySelector(".collect");
      this.#judged(card, hit);
      const has = this.acts.collected(hit);
      button.setAttribute("aria-pressed", String(has));
      button.replaceChildren(icon(has ? "check" : "plus"));
      card.classList.toggle("kept", has);
    });
  }

  #card(hit, index) {
    const still = h("img", { class: "still", src: api.thumbnail(hit.video, telling(hit), 480), loading: "lazy", decoding: "async", alt: "" });
    still.classList.toggle("whole", seen(aspect(hit), RATIOS[this.list.dataset.shape]) < SEEN);
    still.addEventListener("error", () => shot.classList.add("lost"));
    const shot = h(
      "a",
      { class: "shot", href: this.acts.address(hit), "aria-label": spoken(hit) },
      still,
      h("span", { class: "when" }, hit.score === undefined ? clock(hit.duration_s) : span(hit.start_s, hit.end_s)),
      this.acts.by(hit) ? h("span", { class: "by" }, this.acts.by(hit)) : null,
      timeline(hit),
    );
    shot.addEventListener("click", (e) => {
      if (e.metaKey || e.ctrlKey || e.shiftKey) return;
      e.preventDefault();
      this.current = index;
      this.acts.open(hit, index);
    });
    const frames = Math.min(Math.max(Math.round(this.width / FILM / aspect(hit)), 2), 14);
    const film = h("div", { class: "film" });
    const strip = h("img", {
      src: api.strip(hit.video, frames, hit.start_s, hit.end_s, 160), loading: "lazy", decoding: "async", alt: "",
    });
    strip.addEventListener("error", () => film.classList.add("lost"));
    film.append(strip);
    film.style.setProperty("--frames", String(frames));
    const judge = this.acts.asked(hit) ? markButtons(hit, null, (kind) => this.acts.mark(kind, hit)) : null;
    const card = h("li", { class: level(hit) === 0 ? "card unlikely" : "card" }, shot, judge, film, this.#told(hit));
    this.#judged(card, hit);
    scrub({ shot, film, hit, frames }, (s) => this.acts.open(hit, index, s));
    return card;
  }

  #told(hit) {
    const kept = this.acts.collected(hit);
    const collect = iconButton(kept ? "check" : "plus", `Collect ${hit.name} at ${clock(hit.start_s)}`, () => this.acts.collect(hit), { "aria-pressed": String(kept) });
    collect.classList.add("collect");
    const like = iconButton("like", `More like ${hit.name} at ${clock(hit.start_s)}`, () => this.acts.like(hit));
    like.classList.add("like");
    return h(
      "div",
      { class: "told" },
      h("p", { class: "name", title: hit.name }, hit.name),
      h("p", { class: "facts" }, words(hit), h("span", { class: "folder" }, hit.folder || "")),
      h("div", { class: "acts" }, like, collect),
    );
  }

  #judged(card, hit) {
    const said = this.acts.marked(hit)?.judgement ?? "";
    card.dataset.said = said;
    for (const button of card.querySelectorAll(".judge button")) button.setAttribute("aria-pressed", String(button.dataset.kind === said));
  }

  #reached(card) {
    const index = this.cards.indexOf(card);
    if (index < 0 || index === this.current) return;
    this.current = index;
    this.#rove();
  }

  /** One tab stop for the grid: the current card and its buttons. */
  #rove() {
    this.cards.forEach((card, i) => {
      for (const stop of card.querySelectorAll("a, button")) stop.tabIndex = i === this.current ? 0 : -1;
    });
  }

  /** The card in the row below (1) or above (-1) that lies nearest, -1 or the number of cards where there is no row. */
  #beside(way) {
    const box = (i) => this.cards[i].getBoundingClientRect();
    const from = box(this.current);
    let next = this.current + way;
    while (this.cards[next] && Math.abs(box(next).top - from.top) < 2) next += way;
    if (!this.cards[next]) return next;
    const { top } = box(next);
    const apart = (i) => Math.abs(box(i).left - from.left);
    while (this.cards[next + way] && Math.abs(box(next + way).top - top) < 2 && apart(next + way) < apart(next)) next += way;
    return next;
  }

  #key(e) {
    if (e.altKey || e.ctrlKey || e.metaKey || !this.hits.length) return;
    const hit = this.hits[this.current];
    const said = KINDS.find((k) => k.key === e.key);
    const way = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[e.key];
    if (way) {
      const next = e.key === "ArrowDown" || e.key === "ArrowUp" ? this.#beside(way) : this.current + way;
      if (next < 0 && e.key === "ArrowUp") at("q").focus();
      else if (next >= 0 && next < this.hits.length) this.focus(next);
      else if (e.key === "ArrowDown" && !at("more").hidden) at("more").focus();
    } else if (e.key === "Home") this.focus(0);
    else if (e.key === "End") this.focus(this.hits.length - 1);
    else if (e.key === " " && e.target.classList.contains("shot")) this.acts.open(hit, this.current);
    else if (said) this.acts.mark(said.kind, hit);
    else if (e.key === "c") this.acts.collect(hit);
    else if (e.key === "m") this.acts.like(hit);
    else return;
    e.preventDefault();
  }
}

/** The score in words with its bars; nothing for a video that answers no query. */
export function words(hit) {
  if (hit.score === undefined) return h("span", { class: "words plain" }, long(hit.duration_s));
  const known = level(hit);
  const bars = known !== null ? h("span", { class: "bars", "aria-hidden": "true" }, h("i"), h("i"), h("i")) : null;
  return h("span", { class: hit.words === "one of many" ? "words plain" : "words", data: { level: known }, title: meaning(hit) }, bars, rated(hit));
}

function spoken(hit) {
  const where = hit.folder ? `, in ${hit.folder}` : "";
  if (hit.score === undefined) return `${hit.name}, ${long(hit.duration_s)}${where}`;
  return `${rated(hit)}: ${hit.name}, ${clock(hit.start_s)} to ${clock(hit.end_s)}${where}`;
}

/** Where in the video the moment lies, and its other moments. */
function timeline(hit) {
  if (hit.score === undefined || !(hit.duration_s > 0)) return null;
  const line = h("span", { class: "line", "aria-hidden": "true" });
  for (const m of others(hit)) line.append(place(h("i", { class: "other" }), m.start_s / hit.duration_s, m.end_s / hit.duration_s));
  line.append(place(h("i"), hit.start_s / hit.duration_s, hit.end_s / hit.duration_s));
  return line;
}

/** The share of a picture of one aspect that fills a card of another. */
const seen = (a, b) => Math.min(a / b, b / a);

function shapeOf(hits) {
  const sorted = hits.map(aspect).sort((a, b) => a - b);
  const middle = sorted[Math.floor(sorted.length / 2)] ?? 16 / 9;
  return SHAPES.find(([, most]) => middle < most)[0];
}

/** The pointer over the film strip shows its frame large; a click there opens the player at that second. */
function scrub({ shot, film, hit, frames }, open) {
  let shown = null;
  let needle = null;
  const second = (e) => {
    const box = film.getBoundingClientRect();
    const share = Math.min(Math.max((e.clientX - box.left) / box.width, 0), 0.999);
    return hit.start_s + share * (hit.end_s - hit.start_s);
  };
  film.addEventListener("pointermove", (e) => {
    if (e.pointerType === "touch") return;
    needle ??= film.appendChild(h("b"));
    const box = film.getBoundingClientRect();
    const share = (e.clientX - box.left) / box.width;
    place(needle, share);
    shown ??= shot.appendChild(h("span", { class: "sprite", "aria-hidden": "true" }, h("img", { src: film.querySelector("img").src, alt: "" })));
    frame(shown, Math.min(Math.max(Math.floor(share * frames), 0), frames - 1), frames, aspect(hit));
  });
  film.addEventListener("pointerleave", () => {
    shown?.remove();
    needle?.remove();
    shown = needle = null;
  });
  film.addEventListener("click", (e) => open(second(e)));
}

/** Show frame i of a strip of n so that it covers the picture. */
function frame(box, i, n, shape) {
  const room = box.clientWidth / box.clientHeight;
  const wide = Math.max(shape / room, 1);
  const { style } = box.firstChild;
  style.width = `${100 * n * wide}%`;
  style.height = `${100 * Math.max(room / shape, 1)}%`;
  style.transform = `translateX(${(-100 * (i * wide + (wide - 1) / 2)) / (n * wide)}%)`;
}
