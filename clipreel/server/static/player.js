// The player: opens at the moment, with the film as its time line and the other hits marked on it.

import { api } from "./api.js";
import { announce, at, closeOutside, h, icon, iconButton, place, toast } from "./dom.js";
import { Feed } from "./feed.js";
import { aspect, others, telling, words } from "./grid.js";
import { KINDS, markButtons } from "./marks.js";
import { bytes, capital, clock, count, day, span } from "./say.js";

const STEP_S = 5;
const SPEEDS = [1, 1.5, 2, 0.25, 0.5];

/** The frames of a hit that matched most, in order of time. */
const seen = (hit) => [...(hit.matched ?? [])].sort((a, b) => a.at_s - b.at_s);

export class Player {
  /** `acts`: like(hit), collect(hit), collected(hit), asked(hit), marked(hit), mark(kind, hit), closed(), next(by), moved(hit). */
  constructor(acts) {
    this.acts = acts;
    this.dialog = at("player");
    this.hit = null;
    this.facts = null;
    this.#build();
    this.feed = new Feed(this.video, (message) => this.#say(message, false), (message) => this.#say(capital(message)));
    closeOutside(this.dialog);
    this.dialog.addEventListener("close", () => this.#closed());
    this.dialog.addEventListener("keydown", (e) => this.#key(e));
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Open a hit at a second, by default its start; `hit` needs video and start_s, what else is missing is read. */
  async open(hit, second = hit.start_s) {
    const same = this.hit?.video === hit.video && this.dialog.open;
    this.hit = hit;
    if (!same) {
      this.facts = null;
      this.#say("");
      this.video.poster = api.thumbnail(hit.video, second, 960);
      this.feed.open(hit.video);
      this.stage.style.setProperty("--aspect", String(aspect(hit)));
    }
    if (!this.dialog.open) this.dialog.showModal();
    this.#describe();
    this.seek(second, true);
    this.dialog.querySelector(".stage").focus();
    announce(`Playing ${hit.name ?? "the video"} at ${clock(second)}`);
    if (!same) await this.#read(hit);
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  seek(s, play = false) {
    this.feed.seek(s, play);
  }

  get duration() {
    const known = this.hit?.duration_s ?? this.facts?.duration_s;
    return known || (Number.isFinite(this.video.duration) ? this.video.duration : 0);
  }

  async #read(hit) {
    try {
      const facts = await api.video(hit.video);
      if (this.hit?.video !== hit.video) return;
      this.facts = facts;
      this.hit = { ...facts, video: hit.video, ...this.hit, end_s: this.hit.end_s ?? facts.duration_s };
      if (facts.state === "missing") this.#say("This file is gone since it was indexed. “Index now” takes it out; if it was moved, the new place is found.");
      else if (facts.playable === "no") this.#say(facts.why ?? "This file cannot be played here.");
      else if (facts.state === "changed") this.#say("This file has changed since it was indexed; the moment may have moved. “Index now” reads it again.", false);
      this.#describe();
      await this.feed.know(facts.playable === "no" ? { ...facts, ready: true } : facts);
    } catch (error) {
      this.#say(error.message);
    }
  }

  #build() {
    this.video = h("video", { playsinline: true, preload: "auto", "aria-label": "The video" });
    this.said = h("p", { class: "said", role: "alert", hidden: true });
    this.stage = h("div", { class: "stage", tabindex: "-1" }, this.video, this.said);
    this.name = h("h2", { id: "player-name" });
    this.where = h("p", { class: "where" });
    this.side = h("div", { class: "side" });
    this.toggle = iconButton("play", "Play", () => this.#playPause());
    this.time = h("span", { class: "time" });
    this.mute = iconButton("sound", "Mute", () => (this.video.muted = !this.video.muted));
    this.speed = h("button", { type: "button", class: "text", "aria-label": "Speed", onclick: () => this.#faster() }, "1×");
    this.track = h("div", { class: "track", role: "slider", tabindex: "0", "aria-label": "Position in the video", "aria-valuemin": "0" });
    const controls = h(
      "div",
      { class: "controls" },
      this.toggle,
      this.time,
      h("span", { class: "room" }),
      this.speed,
      this.mute,
      iconButton("full", "Full screen", () => (document.fullscreenElement ? document.exitFullscreen() : this.stage.requestFullscreen())),
    );
    const head = h(
      "header",
      {},
      h("div", { class: "title" }, this.name, this.where),
      iconButton("before", "Previous result", () => this.acts.next(-1)),
      iconButton("after", "Next result", () => this.acts.next(1)),
      iconButton("close", "Close", () => this.dialog.close()),
    );
    this.dialog.append(h("div", { class: "sheet" }, head, h("div", { class: "body" }, h("div", { class: "show" }, this.stage, this.track, controls), this.side)));
    this.#listen();
  }

  #listen() {
    const v = this.video;
    v.addEventListener("click", () => this.#playPause());
    v.addEventListener("timeupdate", () => this.#tick());
    v.addEventListener("seeked", () => this.#tick());
    for (const name of ["play", "pause"]) v.addEventListener(name, () => this.#playing());
    v.addEventListener("waiting", () => this.stage.classList.add("waiting"));
    for (const name of ["playing", "canplay", "error"]) v.addEventListener(name, () => this.stage.classList.remove("waiting"));
    v.addEventListener("volumechange", () => {
      this.mute.replaceChildren(icon(v.muted ? "silent" : "sound"));
      this.mute.setAttribute("aria-label", v.muted ? "Sound on" : "Mute");
    });
    v.addEventListener("error", () => {
      if (!v.getAttribute("src") || this.feed.waits()) return;
      if (this.said.hidden || this.said.classList.contains("beside")) this.#say(this.facts?.why ?? "This video cannot be played: the browser cannot read what the server sends.");
    });
    let held = false;
    const go = (e) => {
      const box = this.track.getBoundingClientRect();
      this.seek(Math.min(Math.max((e.clientX - box.left) / box.width, 0), 1) * this.duration);
    };
    this.track.addEventListener("pointerdown", (e) => {
      if (e.target.closest("button")) return;
      held = true;
      this.track.setPointerCapture(e.pointerId);
      go(e);
    });
    this.track.addEventListener("pointermove", (e) => held && go(e));
    this.track.addEventListener("pointerup", () => (held = false));
    this.track.addEventListener("pointercancel", () => (held = false));
  }

  #say(message, stops = true) {
    this.said.textContent = message;
    this.said.hidden = !message;
    this.said.classList.toggle("beside", !stops);
  }

  /** Everything that depends on the hit: names, the film with its marks, the moments, the facts. */
  #describe() {
    const hit = this.hit;
    this.name.textContent = hit.name ?? "";
    this.where.textContent = [hit.folder, day(hit.date)].filter(Boolean).join(" · ");
    this.stage.style.setProperty("--aspect", String(aspect(hit)));
    const duration = this.duration;
    const moments = this.#moments();
    this.track.replaceChildren();
    if (duration) {
      const room = this.track.clientWidth / Math.max(this.track.clientHeight, 1) || 12;
      const frames = Math.min(Math.max(Math.round(room / aspect(hit)), 3), 24);
      this.track.style.setProperty("--frames", String(frames));
      this.track.append(h("img", { src: api.strip(hit.video, frames, 0, duration, 120), alt: "", draggable: "false" }));
      for (const m of moments) this.track.append(this.#mark(m, duration));
      for (const m of seen(hit)) this.track.append(place(h("i", { class: "tick", "aria-hidden": "true" }), m.at_s / duration));
      this.track.setAttribute("aria-valuemax", duration.toFixed(1));
    }
    this.needle = this.track.appendChild(h("b", { class: "needle" }));
    const focused = this.side.contains(document.activeElement) ? document.activeElement.id : "";
    this.judge = h("section", { class: "judging", hidden: true });
    this.side.replaceChildren(this.#actions(), this.judge, this.#list(moments), this.#facts());
    this.judged = null;
    if (focused) at(focused)?.focus();
    this.#tick();
  }

  #moments() {
    const { hit } = this;
    if (hit.score === undefined) return [];
    const first = { start_s: hit.start_s, end_s: hit.end_s, score: hit.score, best: true };
    return [first, ...others(hit)];
  }

  #mark(m, duration) {
    const label = `${m.best ? "The moment" : "Another hit"}, ${clock(m.start_s)} to ${clock(m.end_s)}`;
    const go = () => this.#goTo(m);
    const mark = h("button", { type: "button", class: m.best ? "mark best" : "mark", "aria-label": label, title: label, tabindex: "-1", onclick: go });
    return place(mark, m.start_s / duration, m.end_s / duration);
  }

  /** The moment that plays now, else the best one. */
  #now() {
    const now = this.feed.second;
    const moments = this.#moments();
    const playing = moments.find((m) => m.start_s <= now && now < m.end_s) ?? moments[0];
    return playing && { ...this.hit, start_s: playing.start_s, end_s: playing.end_s };
  }

  /** Ask whether the moment that plays answers the query; drawn anew where another moment or another mark is. */
  mark() {
    const text = this.hit && this.acts.asked(this.hit);
    const hit = text ? this.#now() : null;
    this.judge.hidden = !hit;
    if (!hit) return;
    const marked = this.acts.marked(hit);
    const shown = [hit.start_s, hit.end_s, marked?.id, marked?.judgement].join();
    if (shown === this.judged) return;
    this.judged = shown;
    const focused = this.judge.contains(document.activeElement) ? document.activeElement.id : "";
    const title = h("h3", {}, `Is ${span(hit.start_s, hit.end_s)} `, h("q", {}, text), "?");
    this.judge.replaceChildren(title, markButtons(hit, marked, (kind) => this.acts.mark(kind, hit), true));
    if (focused) at(focused).focus();
  }

  #goTo(m) {
    this.seek(m.start_s, true);
    this.acts.moved(this.hit, m.start_s);
  }

  #actions() {
    const { hit } = this;
    const kept = this.acts.collected(hit);
    const collect = h("button", { type: "button", id: "collect", class: kept ? "button kept" : "button", "aria-pressed": String(kept), onclick: () => (this.acts.collect(hit), this.#describe()) }, icon(kept ? "check" : "plus"), kept ? "Collected" : "Collect");
    const like = h("button", { type: "button", class: "button", onclick: () => this.acts.like({ ...hit, matched: null, at_s: this.feed.second }) }, icon("like"), "More like this");
    const link = iconButton("link", "Copy a link to this second", () => this.#copy());
    return h("div", { class: "actions" }, collect, like, link);
  }

  async #copy() {
    const address = new URL(location.href);
    address.searchParams.set("t", this.feed.second.toFixed(2));
    try {
      await navigator.clipboard.writeText(address.href);
      toast(`Copied: the link opens at ${clock(this.feed.second)}`);
    } catch {
      toast("The browser does not allow copying here; the address bar holds the link.", null, true);
    }
  }

  #list(moments) {
    if (!moments.length) return "";
    const { hit } = this;
    const row = (m) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", class: "moment", onclick: () => this.#goTo(m) },
          h("img", { src: api.thumbnail(hit.video, m.best ? telling(hit) : (m.start_s + m.end_s) / 2, 240), alt: "", loading: "lazy" }),
          h("span", {}, h("strong", {}, span(m.start_s, m.end_s)), words(m.best ? hit : m)),
        ),
        m.best ? this.#seen() : null,
      );
    const title = moments.length === 1 ? "One moment" : `${count(moments.length, "moment")} in this video`;
    return h("section", {}, h("h3", {}, title), h("ol", { class: "moments" }, ...moments.map(row)));
  }

  /** The frames that matched most, where the index keeps frames; each is a button that goes there. */
  #seen() {
    const frames = seen(this.hit);
    if (!frames.length) return null;
    const go = (m) => {
      const at = clock(m.at_s, true);
      return h("button", { type: "button", class: "text", title: `cosine ${m.score.toFixed(3)}`, onclick: () => this.#goTo({ start_s: m.at_s }) }, at);
    };
    return h("p", { class: "seen" }, "Matches most at ", ...frames.map(go));
  }

  #facts() {
    const all = { ...this.hit, ...this.facts };
    const rows = [
      ["Length", all.duration_s ? clock(all.duration_s, true) : ""],
      ["Picture", all.width ? `${all.width} × ${all.height}` : ""],
      ["Size", all.bytes ? bytes(all.bytes) : ""],
      ["Tags", (all.tags ?? []).map((t) => t.name ?? t).join(", ")],
      ["Plays", all.playable === "remux" || all.playable === "transcode" ? `${capital(all.playable)}d for the browser` : ""],
    ];
    const told = rows.filter(([, v]) => v).flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]);
    return h("dl", { class: "facts" }, ...told);
  }

  #tick() {
    const now = this.feed.second;
    const { duration } = this;
    this.time.textContent = `${clock(now, true)} / ${clock(duration)}`;
    if (!this.needle || !duration) return;
    place(this.needle, now / duration);
    this.track.setAttribute("aria-valuenow", now.toFixed(1));
    this.mark();
    this.track.setAttribute("aria-valuetext", `${clock(now)} of ${clock(duration)}`);
  }

  #playPause() {
    if (this.video.paused) this.video.play().catch(() => {});
    else this.video.pause();
  }

  #playing() {
    const { paused } = this.video;
    this.toggle.replaceChildren(icon(paused ? "play" : "pause"));
    this.toggle.setAttribute("aria-label", paused ? "Play" : "Pause");
    this.toggle.title = paused ? "Play" : "Pause";
  }

  #faster() {
    const next = SPEEDS[(SPEEDS.indexOf(this.video.playbackRate) + 1) % SPEEDS.length];
    this.video.playbackRate = next;
    this.speed.textContent = `${next}×`;
  }

  #key(e) {
    if (e.altKey || e.ctrlKey || e.metaKey) return;
    const pressed = e.target.closest("button");
    const sliding = e.target === this.track; // where up and down move along, as in every slider
    const said = KINDS.find((k) => k.key === e.key);
    const moments = this.#moments().map((m) => m.start_s).sort((a, b) => a - b);
    const now = this.feed.second;
    if (e.key === " " || e.key === "k") {
      if (e.key === " " && pressed) return;
      this.#playPause();
    } else if (e.key === "ArrowLeft" || (sliding && e.key === "ArrowDown")) this.seek(now - STEP_S);
    else if (e.key === "ArrowRight" || (sliding && e.key === "ArrowUp")) this.seek(Math.min(now + STEP_S, this.duration));
    else if (e.key === "ArrowUp") this.acts.next(-1);
    else if (e.key === "ArrowDown") this.acts.next(1);
    else if (e.key === "Home") this.seek(0);
    else if (e.key === "End") this.seek(this.duration);
    else if (e.key === ",") this.seek(now - 0.04);
    else if (e.key === ".") this.seek(now + 0.04);
    else if (e.key === "n") this.seek(moments.find((s) => s > now + 0.2) ?? moments[0] ?? 0);
    else if (e.key === "p") this.seek(moments.findLast((s) => s < now - 0.5) ?? moments.at(-1) ?? 0);
    else if (said && this.acts.asked(this.hit)) this.acts.mark(said.kind, this.#now());
    else if (e.key === "c") (this.acts.collect(this.hit), this.#describe());
    else if (e.key === "m") this.acts.like({ ...this.hit, matched: null, at_s: now });
    else return;
    e.preventDefault();
  }

  #closed() {
    this.video.pause();
    this.feed.close();
    this.stage.classList.remove("waiting");
    this.hit = this.facts = null;
    this.acts.closed();
  }
}
