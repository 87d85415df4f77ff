// The keys of the page, and the list of them.

import { at, closeOutside, h, iconButton } from "./dom.js";

const KEYS = [
  ["/", "Search"],
  ["↑ ↓ ← →", "Move through the results"],
  ["Enter, Space", "Play at the moment"],
  ["C", "Collect the moment"],
  ["M", "More like this"],
  ["Y, X", "This is it, this is not it"],
  ["Esc", "Close, or clear the search"],
  ["In the player", ""],
  ["Space", "Play and pause"],
  ["← →", "5 seconds back and on"],
  [", .", "One frame back and on"],
  ["N P", "Next and previous hit in this video"],
  ["↑ ↓", "Previous and next result"],
];

function show() {
  const rows = KEYS.flatMap(([key, what]) => (what ? [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)] : [h("dt", { class: "title" }, key)]));
  const head = h("header", {}, h("h2", { id: "keys-name", tabindex: "-1", autofocus: true }, "Keys"), h("span", { class: "room" }), iconButton("close", "Close", () => at("keys").close()));
  at("keys").replaceChildren(h("div", { class: "sheet" }, head, h("dl", {}, ...rows)));
  at("keys").showModal();
}

/** `acts`: changed() after the field was emptied, drop() of the last part of the question that is not typed. */
export function listen(grid, acts) {
  const q = at("q");
  closeOutside(at("keys"));
  at("show-keys").addEventListener("click", show);
  document.addEventListener("keydown", (e) => {
    if (e.altKey || e.ctrlKey || e.metaKey || document.querySelector("dialog[open]")) return;
    const typing = e.target.matches("input, select, textarea");
    if (e.key === "/" && !typing) {
      q.focus();
      q.select();
    } else if (e.key === "?" && !typing) show();
    else if (e.key === "ArrowDown" && e.target === q && grid.hits.length) grid.focus(0);
    else if (e.key === "Escape" && e.target === q && q.value) {
      q.value = "";
      acts.changed();
    } else if (e.key === "Escape" && e.target.closest(".hits")) q.focus();
    else if (e.key === "Backspace" && e.target === q && q.selectionEnd === 0) return acts.drop();
    else return;
    e.preventDefault();
  });
}
