// The HTTP API, version 1. Every failure is a Refused with one line to show.

const BASE = "/api/v1";

export class Refused extends Error {
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

async function send(path, { method = "GET", json, form, signal } = {}) {
  const options = { method, signal };
  if (json !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(json);
  } else if (form) options.body = form;
  let response;
  try {
    response = await fetch(BASE + path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("offline", "The server does not answer. Is “clipreel serve” still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  throw new Refused(told?.error?.code ?? "failed", message, response.status);
}

async function read(path, options) {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
}

function query(values) {
  const given = Object.entries(values).filter(([, v]) => v !== null && v !== undefined && v !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

const one = (id) => `/videos/${encodeURIComponent(id)}`;
const seconds = (s) => Math.max(s, 0).toFixed(2);

export const api = {
  search: (body, signal) => read("/search", { method: "POST", json: body, signal }),
  videos: (values, signal) => read(`/videos${query(values)}`, { signal }),
  video: (id, signal) => read(one(id), { signal }),
  status: () => read("/status"),
  skipped: (offset, limit) => read(`/skipped${query({ offset, limit })}`),
  queries: () => read("/queries"),
  forget: () => read("/queries", { method: "DELETE" }),
  models: () => read("/models"),
  switchTo: (name) => read(`/models/${encodeURIComponent(name)}/activate`, { method: "POST", json: {} }),
  pairs: (offset, limit) => read(`/pairs${query({ offset, limit })}`),
  mark: (pair) => read("/pairs", { method: "POST", json: pair }),
  unmark: (id) => read(`/pairs/${encodeURIComponent(id)}`, { method: "DELETE" }),
  tags: () => read("/tags"),
  adapters: () => read("/adapters"),
  activate: (name) => read(`/adapters/${encodeURIComponent(name)}/activate`, { method: "POST", json: {} }),
  jobs: () => read("/jobs"),
  index: () => read("/jobs", { method: "POST", json: { kind: "index" } }),
  cancel: (id) => read(`/jobs/${encodeURIComponent(id)}`, { method: "DELETE" }),

  upload(file) {
    const form = new FormData();
    form.append("file", file);
    return read("/uploads", { method: "POST", form });
  },

  /** The exported file and the name that the server gives it. */
  async export(format, hits) {
    const response = await send("/export", { method: "POST", json: { format, hits } });
    const said = /filename="?([^";]+)/.exec(response.headers.get("Content-Disposition") ?? "");
    return { blob: await response.blob(), name: said?.[1] ?? `clipreel.${format === "mp4" ? "zip" : format}` };
  },

  /** Calls `told` with every job as it moves; the browser connects again by itself. */
  events(told, open) {
    const source = new EventSource(`${BASE}/events`);
    source.addEventListener("job", (e) => told(JSON.parse(e.data)));
    source.addEventListener("open", open);
    return source;
  },

  /** Why a film is not sent, null where it is. */
  async refusal(id, from) {
    const asked = new AbortController();
    try {
      await send(api.media(id, from).slice(BASE.length), { signal: asked.signal });
      return null;
    } catch (error) {
      return error instanceof Refused ? error : null;
    } finally {
      asked.abort(); // what it says is enough
    }
  },

  /** `from`: the second at which a video begins that is being remade; its own seconds are counted from there. */
  media: (id, from = 0) => `${BASE}${one(id)}/media${from ? `?from=${from.toFixed(1)}` : ""}`,
  report: (name) => `${BASE}/adapters/${encodeURIComponent(name)}/report`,
  thumbnail: (id, s, width) => `${BASE}${one(id)}/thumbnail?at_s=${seconds(s)}&width=${width}`,
  strip: (id, n, start, end, width) =>
    `${BASE}${one(id)}/strip?n=${n}&start_s=${seconds(start)}&end_s=${seconds(end)}&width=${width}`,
};
