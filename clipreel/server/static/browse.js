// All videos, where nothing is asked: page by page, in order of place, as far as the filters let them through.

import { api } from "./api.js";

const READ = 200; // videos of one request where filters are to be looked at here
const MOST_READ = 25; // requests before the rest waits for "Show more"

let facets = { folders: [], tags: [] };

/** Folders and tags of the whole archive. */
export function knowArchive(folders, tags) {
  facets = { folders, tags };
}

function way(v) {
  if (v.width === v.height) return "square";
  return v.width > v.height ? "landscape" : "portrait";
}

function passes(v, f) {
  const date = (v.date ?? "").slice(0, 10);
  if (f.tags.some((t) => !v.tags?.includes(t))) return false;
  if (f.min !== "" && v.duration_s < Number(f.min)) return false;
  if (f.max !== "" && v.duration_s > Number(f.max)) return false;
  if ((f.after && date < f.after) || (f.before && date > f.before)) return false;
  return !f.orientation || way(v) === f.orientation;
}

const asHit = (v) => ({ ...v, video: v.id, start_s: 0, end_s: v.duration_s, matched: [{ at_s: v.duration_s / 2 }] });

/** From place `offset` on: an answer as of a search, with `next`, the place to go on from (null at the end). */
export async function browse(filters, k, offset, signal) {
  const { folder, ...rest } = filters;
  const plain = !Object.values(rest).some((v) => v.length);
  const found = [];
  let next = offset;
  for (let read = 0; next !== null && found.length < k && read < MOST_READ; read += 1) {
    const told = await api.videos({ offset: next, k: plain ? k : READ, folder }, signal);
    found.push(...told.videos.filter((v) => passes(v, rest)));
    next = next + told.videos.length < told.total && told.videos.length ? next + told.videos.length : null;
    if (plain) return { browsing: true, hits: found.map(asHit), total: told.total, next, facets, notes: [] };
  }
  return { browsing: true, hits: found.map(asHit), total: next === null && offset === 0 ? found.length : null, next, facets, notes: [] };
}
