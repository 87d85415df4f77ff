// What is asked: typed words, images, moments, filters. As a request body, and as the address of the page.

export const EMPTY_FILTERS = { folder: "", tags: [], min: "", max: "", after: "", before: "", orientation: "" };

export function blank() {
  return { typed: "", images: [], like: [], filters: structuredClone(EMPTY_FILTERS), rank: "", rerank: "", adapters: [] };
}

/** Typed words apart: `dog -people -"two words"` takes away `people` and `two words`. */
export function parse(typed) {
  const minus = [];
  const text = typed.replace(/(^|\s)-(?:"([^"]*)"?|(\p{L}\S*))/gu, (_, space, quoted, word) => {
    const taken = (quoted ?? word).trim();
    if (taken) minus.push(taken);
    return space;
  });
  return { text: text.replace(/\s+/g, " ").trim(), minus };
}

/** Whether anything is asked; minus words alone ask nothing. */
export function asks(state) {
  return Boolean(parse(state.typed).text || state.images.length || state.like.length);
}

export function filtered(state) {
  const f = state.filters;
  return Boolean(f.folder || f.tags.length || f.min || f.max || f.after || f.before || f.orientation);
}

function filterBody(f) {
  const body = {};
  if (f.folder) body.folder = f.folder;
  if (f.tags.length) body.tags = f.tags;
  if (f.min !== "") body.min_duration_s = Number(f.min);
  if (f.max !== "") body.max_duration_s = Number(f.max);
  if (f.after) body.after = f.after;
  if (f.before) body.before = f.before;
  if (f.orientation) body.orientation = f.orientation;
  return body;
}

/** The body of POST /search. */
export function toBody(state, k, offset) {
  const { text, minus } = parse(state.typed);
  const body = { k, offset };
  if (text) body.text = text;
  if (minus.length) body.minus = minus;
  if (state.images.length) body.images = state.images.map((i) => i.id);
  if (state.like.length) {
    body.like = state.like.map(({ video, at_s }) => (at_s === null ? { video } : { video, at_s }));
  }
  if (filtered(state)) body.filters = filterBody(state.filters);
  if (state.adapters.length) body.adapters = state.adapters;
  if (state.rank) body.rank = state.rank;
  if (state.rerank) body.rerank = state.rerank;
  return body;
}

/** The address that holds the query; `open` is the moment in the player. */
export function toAddress(state, open = null) {
  const p = new URLSearchParams();
  const f = state.filters;
  if (state.typed.trim()) p.set("q", state.typed.trim());
  for (const image of state.images) p.append("image", image.id);
  for (const l of state.like) p.append("like", l.at_s === null ? l.video : `${l.video}@${l.at_s.toFixed(2)}`);
  for (const key of ["folder", "min", "max", "after", "before", "orientation"]) if (f[key]) p.set(key, f[key]);
  for (const tag of f.tags) p.append("tag", tag);
  if (state.rank) p.set("rank", state.rank);
  if (state.rerank) p.set("rerank", state.rerank);
  for (const name of state.adapters) p.append("adapter", name);
  if (open) {
    p.set("video", open.video);
    p.set("t", open.start_s.toFixed(2));
  }
  const text = p.toString();
  return text ? `/?${text}` : "/";
}

export function fromAddress(address) {
  const p = new URLSearchParams(address);
  const state = blank();
  state.typed = p.get("q") ?? "";
  state.images = p.getAll("image").map((id) => ({ id }));
  state.like = p.getAll("like").map((text) => {
    const cut = text.lastIndexOf("@");
    return cut < 0 ? { video: text, at_s: null } : { video: text.slice(0, cut), at_s: Number(text.slice(cut + 1)) };
  });
  for (const key of ["folder", "min", "max", "after", "before", "orientation"]) state.filters[key] = p.get(key) ?? "";
  state.filters.tags = p.getAll("tag");
  state.rank = p.get("rank") ?? "";
  state.rerank = p.get("rerank") ?? "";
  state.adapters = p.getAll("adapter");
  const open = p.has("video") ? { video: p.get("video"), start_s: Number(p.get("t")) || 0 } : null;
  return { state, open };
}
