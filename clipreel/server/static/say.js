// Numbers as people say them.

/** 75.25 as 1:15, with tenths on request; an hour has three parts. */
export function clock(s, tenths = false) {
  const units = tenths ? Math.round(s * 10) : Math.floor(s + 1e-6) * 10;
  const whole = Math.floor(units / 10);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  const text = parts[0] ? `${parts[0]}:${two(parts[1])}:${two(parts[2])}` : `${parts[1]}:${two(parts[2])}`;
  return tenths ? `${text}.${units % 10}` : text;
}

/** From one second to another, with tenths where whole seconds would be equal. */
export function span(start, end) {
  const last = Math.max(end, start);
  const tenths = clock(start) === clock(last);
  return `${clock(start, tenths)}–${clock(last, tenths)}`;
}

/** A duration for reading aloud or in a sentence: 8 s, 3 min, 2.5 h. */
export function long(s) {
  if (s < 59.5) return `${Math.round(s)} s`;
  if (s < 3570) return `${Math.round(s / 60)} min`;
  return `${(s / 3600).toFixed(s < 36000 ? 1 : 0)} h`;
}

/** An age in whole units: 40 minutes, 3 days. */
export function ago(s) {
  const [unit, word] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([u]) => s >= u) ?? [1, "second"];
  return count(Math.floor(s / unit), word);
}

export function count(n, word, many = `${word}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? word : many}`;
}

export function bytes(n) {
  if (n < 1e6) return `${Math.max(Math.round(n / 1e3), 1)} kB`;
  return n < 1e9 ? `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} MB` : `${(n / 1e9).toFixed(1)} GB`;
}

export function day(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  return date.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const LEVELS = { "strong match": 3, "good match": 2, "weak match": 1, unlikely: 0 };

/** How many of three bars a match gets, null where no bank compares its score: the words are the server's. */
export const level = (hit) => LEVELS[hit.words] ?? null;

/** Whether it lies above the cut-off, or stands out, which is said of pictures. */
export const fits = (hit) => level(hit) >= 2 || hit.words === "stands out";

/** The words of the server, or the bare score where there is nothing to compare it with. */
export const rated = (hit) => (hit.words === "unrated" ? `Score ${hit.score.toFixed(2)}` : capital(hit.words));

/** What a score means for this video, in one sentence. */
export function meaning(hit) {
  const cosine = `cosine ${hit.score.toFixed(3)}`;
  if (Number.isFinite(hit.apart)) {
    const side = hit.apart < 0 ? "below" : "above";
    return `${Math.abs(hit.apart).toFixed(1)} deviations ${side} the middle of other videos; no cut-off was measured for pictures (${cosine})`;
  }
  if (hit.unusual === null || hit.unusual === undefined) return cosine;
  const share = Math.floor(hit.unusual * 1000) / 10;
  return `Higher than ${share} % of the bank's queries reach on this video (${cosine})`;
}
