// The page: one state, one running search, and the address that holds both.

import { Adapters } from "./adapters.js";
import { api } from "./api.js";
import { Archive } from "./archive.js";
import { browse, knowArchive } from "./browse.js";
import { Collection } from "./collection.js";
import { announce, at, h, iconButton } from "./dom.js";
import { Filters } from "./filters.js";
import { Grid, telling } from "./grid.js";
import * as keys from "./keys.js";
import { takePictures } from "./pictures.js";
import { Marks } from "./marks.js";
import { Models } from "./models.js";
import { Player } from "./player.js";
import { asks, blank, EMPTY_FILTERS, filtered, fromAddress, parse, toAddress, toBody } from "./query.js";
import { recent, remember } from "./recent.js";
import { capital, clock, count } from "./say.js";

const PAGE = 24; // hits of one request
const TYPING_MS = 70; // between two keys of one word
const RERANKED_MS = 400; // where the best hits are looked at again, which takes time
const SETTLED_MS = 1200; // an answer that stood this long is worth a step back
const LATE_MS = 180; // before this, no sign of waiting: it would only flicker
const AGAIN_MS = 3000;

let state = blank();
let running = null; // of the search under way
let timer = 0;
let later = 0;
let answeredAt = 0;
let answered = ""; // the text that the hits shown answer; empty where pictures or moments were asked too
let total = 0; // null where it is not known
let next = null; // where the next page begins
let elsewhere = false; // whether another model took the place of the one that answered, by nothing done here
let playing = -1; // place of the hit in the player
let returnTo = false; // whether closing the player goes back in history

const q = at("q");
// what was said of the answers to a text; a query of pictures or moments has none to learn from
const marking = {
  asked: (hit) => (hit.score === undefined ? "" : hit.query ?? answered),
  marked: (hit) => marks.of(marking.asked(hit), hit),
  mark: (kind, hit) => marking.asked(hit) && marks.mark(kind, marking.asked(hit), hit),
};
const grid = new Grid({
  open: (hit, index, second) => play(hit, index, second),
  like,
  collect,
  collected: (hit) => collection.has(hit),
  address: (hit) => toAddress(state, hit),
  ...marking,
  by: (hit) => (state.adapters.length > 1 ? adapters.called(hit.adapter) : null),
});
const marks = new Marks(() => (grid.mark(), player.isOpen && player.mark()));
const collection = new Collection({ open: (hit) => play(hit, -1), changed: () => grid.mark() });
const player = new Player({
  like: (hit) => (player.close(), like(hit)),
  collect,
  collected: (hit) => collection.has(hit),
  ...marking,
  closed,
  next: (by) => playNext(by),
  moved: (hit, second) => history.replaceState(history.state, "", toAddress(state, { ...hit, start_s: second })),
});
const filters = new Filters(() => search({ push: true }), () => adapters.second);
const adapters = new Adapters((names) => {
  state.adapters = names;
  if (!adapters.second.some((r) => r.name === state.rerank)) state.rerank = ""; // it cannot judge what these find
  search({ push: true });
});
const models = new Models(async () => {
  state.adapters = []; // they belong to the model before
  adapters.asked = [];
  await Promise.all([archive.read(), adapters.read()]);
  search({ quiet: true });
});
const archive = new Archive({ changed: () => search({ quiet: true, remember: false }), status: (facts) => described(facts), sections: [models, marks] });

// ---- searching

/** Ask what the state says. `push` makes a step that the back button undoes; `quiet` keeps what is shown meanwhile. */
async function search({ push = false, quiet = false, remember = true } = {}) {
  clearTimeout(timer);
  clearTimeout(later);
  running?.abort();
  const mine = (running = new AbortController());
  if (remember) keepAddress(push);
  showAsked();
  const late = setTimeout(() => waiting(quiet), LATE_MS);
  try {
    const text = state.images.length || state.like.length ? "" : parse(state.typed).text;
    const answer = await ask(0, mine.signal);
    if (running !== mine) return;
    answered = text;
    shown(answer);
    if (elsewhere) {
      elsewhere = false;
      models.switched();
    }
  } catch (error) {
    if (error.name !== "AbortError" && running === mine) failed(error);
  } finally {
    clearTimeout(late);
    if (running === mine) {
      running = null;
      document.body.classList.remove("waiting");
    }
  }
}

/** One page of hits; without a question, of all videos. */
async function ask(offset, signal) {
  if (!asks(state)) return browse(state.filters, PAGE, offset, signal);
  const answer = await api.search(toBody(state, PAGE, offset), signal);
  const end = offset + answer.hits.length;
  return { ...answer, next: answer.hits.length && end < answer.total ? end : null };
}

function shown(answer) {
  answeredAt = performance.now();
  ({ total, next } = answer);
  const nothing = answer.state === "nothing";
  filters.show(state, answer.facets ?? filters.facets);
  grid.show(nothing ? [] : answer.hits, answer.matching);
  at("notes").replaceChildren(...(answer.notes ?? []).map((n) => h("li", {}, capital(n))));
  at("notes").hidden = !answer.notes?.length;
  more();
  if (nothing && !(filtered(state) && !answer.hits.length)) return nothingMatches(answer);
  if (!answer.hits.length) return answer.browsing && !filtered(state) ? noVideos() : noneLeft();
  tell(null);
  at("summary").replaceChildren(...summary(answer));
  announce(spokenSummary(answer));
}

function summary(answer) {
  if (answer.browsing) return [h("strong", {}, total === null ? "Videos" : count(total, "video")), ...lately()];
  const took = answer.took_ms < 10 ? answer.took_ms.toFixed(1) : Math.round(answer.took_ms);
  const order = state.rerank ? "checked again" : state.rank ? "all-rounders held back" : "closest first";
  return [h("strong", {}, matched(answer)), h("span", {}, `${order} · ${took} ms`)];
}

/** How many match of how many are ranked, where that is known. */
function matched({ matching, hits }) {
  if (!matching || !hits.length) return count(total, "video");
  const words = Number.isFinite(hits[0].apart) ? ["stands out", "stand out"] : ["matches", "match"];
  return `${matching.toLocaleString("en")} of ${count(total, "video")} ${words[matching === 1 ? 0 : 1]}`;
}

/** What was looked for lately, to look again. */
function lately() {
  const again = (text) => {
    q.value = state.typed = text;
    search({ push: true });
    q.focus();
  };
  const list = recent();
  if (!list.length) return [h("span", {}, "Describe a moment to find it")];
  return [h("span", { class: "lately" }, "Lately: ", ...list.map((t) => h("button", { type: "button", class: "text", onclick: () => again(t) }, t)))];
}

function spokenSummary(answer) {
  if (answer.browsing) return count(answer.hits.length, "video");
  const [best] = answer.hits;
  return `${matched(answer)}. First: ${best.name} at ${clock(best.start_s)}`;
}

function more() {
  at("more").hidden = grid.hits.length === 0 || next === null;
  at("more").textContent = total === null ? "Show more" : `Show more (${(total - grid.hits.length).toLocaleString("en")} left)`;
}

async function nextPage() {
  const button = at("more");
  button.disabled = true;
  try {
    const first = grid.hits.length;
    const answer = await ask(next);
    next = answer.next;
    grid.add(answer.hits);
    if (document.activeElement === button || document.activeElement === document.body) grid.focus(first);
  } catch (error) {
    failed(error);
  }
  button.disabled = false;
  more();
}

// ---- states of the page

/** What stands in the place of results: title, lines and buttons; null takes it away. */
function tell(title, lines = [], buttons = [], kind = "") {
  const box = at("state");
  box.hidden = title === null;
  box.className = `state ${kind}`;
  if (title === null) return box.replaceChildren();
  at("summary").replaceChildren();
  const act = ([label, press, strong]) => h("button", { type: "button", class: strong ? "button strong" : "button", onclick: press }, label);
  box.replaceChildren(h("h2", {}, title), ...lines.map((l) => h("p", {}, ...[l].flat())), h("div", { class: "row" }, ...buttons.map(act)));
  announce([title, ...lines.map((l) => [l].flat().map((p) => p.textContent ?? p).join(""))].join(". "));
}

function waiting(quiet) {
  document.body.classList.add("waiting");
  if (quiet || grid.hits.length) return;
  tell(null);
  grid.skeleton();
}

function nothingMatches(answer) {
  const { text } = parse(state.typed);
  const closest = () => {
    tell(null);
    grid.show(answer.hits);
    more();
    at("summary").replaceChildren(h("strong", {}, "The closest, though nothing matches"));
    grid.focus(0);
  };
  const lines = [`${text ? `“${text}”` : "This query"} fits these videos no better than any other query would, so the closest of them would only be guesses.`];
  const buttons = answer.hits.length ? [["Show the closest all the same", closest]] : [];
  if (filtered(state)) buttons.unshift(["Without filters", clearFilters, true]);
  tell("Nothing here matches", lines, buttons);
}

function noneLeft() {
  tell("No video passes these filters", [], filtered(state) ? [["Without filters", clearFilters, true]] : [["All videos", home, true]]);
}

function noVideos() {
  const line = ["Give the index a folder in the terminal: ", h("code", {}, "clipreel index ~/Videos"), ". Videos appear here while it works."];
  tell("No videos yet", [line], [["What is indexed", () => archive.show()]]);
}

function failed(error) {
  document.body.classList.remove("waiting");
  const away = error.code === "offline" || error.status >= 500;
  if (error.code === "switching" || error.code === "no-model") {
    elsewhere = true;
    state.adapters = []; // they belong to the model before
  }
  grid.show([]);
  more();
  tell(away ? "No answer" : "This cannot be answered", [capital(error.message)], [["Try again", () => search({ remember: false }), true]], "bad");
  if (away) later = setTimeout(() => search({ quiet: true, remember: false }), AGAIN_MS);
}

async function described(facts) {
  if (facts.model.name === "shapes-tiny") q.placeholder = "Try: a red circle moves to the left";
  const { tags } = await api.tags();
  knowArchive(facts.folders, tags);
  filters.show(state, asks(state) ? filters.facets : { folders: facts.folders, tags });
}

// ---- the question

function typed() {
  state.typed = q.value;
  at("empty").hidden = !q.value;
  clearTimeout(timer);
  const wait = state.rerank ? RERANKED_MS : TYPING_MS;
  timer = setTimeout(() => search({ push: performance.now() - answeredAt > SETTLED_MS }), wait);
}

/** The parts of the question that are not typed, and what is taken away. */
function showAsked() {
  if (q.value.trim() !== state.typed.trim()) q.value = state.typed;
  at("empty").hidden = !q.value;
  const pill = (picture, label, drop) => h("li", { class: "pill" }, picture, h("span", {}, label), iconButton("close", `Leave out: ${label}`, drop));
  const without = (list, one) => () => {
    list.splice(list.indexOf(one), 1);
    search({ push: true });
    q.focus();
  };
  const images = state.images.map((i) => pill(i.address ? h("img", { src: i.address, alt: "" }) : null, i.name ?? "image", without(state.images, i)));
  const likes = state.like.map((l) => {
    const label = l.at_s === null ? "like this video" : `like ${clock(l.at_s)}`;
    return pill(h("img", { src: api.thumbnail(l.video, l.at_s ?? 0, 96), alt: "" }), label, without(state.like, l));
  });
  at("pills").replaceChildren(...images, ...likes);
  at("pills").hidden = !images.length && !likes.length;
  filters.show(state);
  const { text } = parse(state.typed);
  document.title = text ? `${text} · clipreel` : "clipreel";
}

/** Take out the last image or moment of the question. */
function dropLast() {
  const last = state.like.length ? state.like : state.images;
  if (last.pop()) search({ push: true });
}

function like(hit) {
  state.like = [{ video: hit.video, at_s: hit.at_s ?? telling(hit) }];
  state.images = [];
  state.typed = "";
  q.value = "";
  search({ push: true });
  scrollTo({ top: 0 });
}

function collect(hit) {
  collection.toggle(hit, parse(state.typed).text);
}

function clearFilters() {
  state.filters = structuredClone(EMPTY_FILTERS);
  search({ push: true });
  q.focus();
}

function home(e) {
  e?.preventDefault();
  const { adapters: asked, rank, rerank } = state;
  state = { ...blank(), adapters: asked, rank, rerank };
  q.value = "";
  search({ push: true });
  q.focus();
}

// ---- the player and the address

function keepAddress(push) {
  const address = toAddress(state);
  if (address === location.pathname + location.search) return;
  if (push) history.pushState({}, "", address);
  else history.replaceState(history.state, "", address);
}

function play(hit, index = -1, second = hit.start_s) {
  const address = toAddress(state, { ...hit, start_s: second });
  if (player.isOpen) history.replaceState(history.state, "", address);
  else {
    history.pushState({ player: true }, "", address);
    returnTo = true;
  }
  playing = index;
  remember(state.typed);
  player.open(hit, second);
}

function playNext(by) {
  const there = playing + by;
  if (playing >= 0 && there >= 0 && there < grid.hits.length) play(grid.hits[there], there);
}

function closed() {
  if (new URLSearchParams(location.search).has("video")) {
    if (returnTo) history.back();
    else history.replaceState({}, "", toAddress(state));
  }
  returnTo = false;
  if (playing >= 0) grid.focus(playing);
}

/** Make the page what the address says. */
async function follow() {
  const told = fromAddress(location.search);
  const same = JSON.stringify(toBody(state, 0, 0)) === JSON.stringify(toBody(told.state, 0, 0));
  for (const image of told.state.images) Object.assign(image, state.images.find((i) => i.id === image.id));
  state = told.state;
  adapters.show(state.adapters);
  if (!same || !answeredAt) await search({ remember: false });
  if (told.open) {
    playing = grid.hits.findIndex((hit) => hit.video === told.open.video);
    const hit = grid.hits[playing] ?? told.open;
    player.open(hit, told.open.start_s);
  } else player.close();
}

q.addEventListener("input", typed);
at("ask").addEventListener("submit", (e) => {
  e.preventDefault();
  state.typed = q.value;
  remember(state.typed);
  search({ push: true }).then(() => grid.hits.length && grid.focus(0));
});
at("empty").addEventListener("click", () => {
  q.value = "";
  typed();
  q.focus();
});
at("more").addEventListener("click", nextPage);
document.querySelector(".home").addEventListener("click", home);
addEventListener("popstate", follow);
keys.listen(grid, { changed: typed, drop: dropLast });
takePictures((image) => {
  state.images.push(image);
  search({ push: true });
});
if (matchMedia("(hover: hover)").matches) q.focus(); // on a phone the keyboard would cover the videos
await Promise.allSettled([follow(), adapters.read().then(() => filters.show(state)), archive.start(), marks.read()]);
