// The last things that were looked for, kept by the browser.

const KEPT = "clipreel.recent";
const MOST = 6;

export function recent() {
  try {
    const list = JSON.parse(localStorage.getItem(KEPT));
    return Array.isArray(list) ? list.filter((t) => typeof t === "string").slice(0, MOST) : [];
  } catch {
    return [];
  }
}

/** A question that was typed to its end: a longer one takes the place of its own beginning. */
export function remember(typed) {
  const text = typed.trim();
  if (text.length < 3) return;
  const others = recent().filter((t) => !text.startsWith(t) && t !== text);
  try {
    localStorage.setItem(KEPT, JSON.stringify([text, ...others].slice(0, MOST)));
  } catch {
    // a full store only forgets
  }
}
