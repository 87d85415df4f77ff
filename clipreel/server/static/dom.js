// Elements, icons and messages. Nothing is ever set through markup text, so names of files cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  plus: "M10 4v12M4 10h12",
  check: "m4 10.5 4 4 8-9",
  close: "m5 5 10 10M15 5 5 15",
  like: "M3 6.5h8v8H3zM8 6V3.5h9v9h-2.5",
  play: "M6 4v12l10-6z",
  pause: "M7 4v12M13 4v12",
  sound: "M3 8v4h3l4 3.5v-11L6 8zM13 7.5a3.5 3.5 0 0 1 0 5M15.3 5a7 7 0 0 1 0 10",
  silent: "M3 8v4h3l4 3.5v-11L6 8zM13 8l4 4M17 8l-4 4",
  full: "M3 7.5V3h4.5M12.5 3H17v4.5M17 12.5V17h-4.5M7.5 17H3v-4.5",
  before: "m12.5 4-6 6 6 6",
  after: "m7.5 4 6 6-6 6",
  reel: "M3 5h14v10H3zM3 8.3h3M3 11.6h3M14 8.3h3M14 11.6h3M6 5v10M14 5v10",
  up: "M3 9h3v8H3zM6 9.5l3.2-6.3c1.4-.3 2.3.6 2.1 2L10.8 8h4.4c1.2 0 2 1 1.7 2.1l-1.4 5.5c-.2.8-.9 1.4-1.8 1.4H6",
  down: "M17 11h-3V3h3zM14 10.5l-3.2 6.3c-1.4.3-2.3-.6-2.1-2l.5-2.8H4.8c-1.2 0-2-1-1.7-2.1l1.4-5.5C4.7 3.6 5.4 3 6.3 3H14",
  copy: "M7 7h9.5v9.5H7zM13 7V3.5H3.5V13H7",
  link: "M8.5 11.5l3-3M7 9 5 11a2.8 2.8 0 0 0 4 4l2-2M13 11l2-2a2.8 2.8 0 0 0-4-4L9 7",
  box: "M3 4.5h14V8H3zM4.3 8v7.5h11.4V8M8 11h4",
  image: "M2.5 4h15v12h-15zM3 14l4-3.5 3 2.5 3.2-3.5 4 4",
};

/** An element with properties, attributes, listeners (`onclick`) and children; null children are left out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value" || name === "checked" || name === "muted") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon and is called by its label. */
export function iconButton(name, label, onclick, more = {}) {
  return h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick, ...more }, icon(name));
}

export const at = (id) => document.getElementById(id);

/** Lengths along a time line; the content security policy allows them through the object model only. */
export function place(element, start, end) {
  element.style.left = `${100 * Math.min(Math.max(start, 0), 1)}%`;
  if (end !== undefined) element.style.width = `${100 * Math.max(Math.min(end, 1) - Math.max(start, 0), 0)}%`;
  return element;
}

/** Say something that is not worth a place on the page; `action` is [label, function]. */
export function toast(message, action = null, bad = false) {
  const note = h("div", { class: bad ? "toast bad" : "toast" }, h("span", {}, message));
  const timer = setTimeout(() => note.remove(), bad ? 9000 : 5000);
  if (action) {
    const press = () => (clearTimeout(timer), note.remove(), action[1]());
    note.append(h("button", { type: "button", class: "text", onclick: press }, action[0]));
  }
  reachable("toasts").append(note);
  return note;
}

/** Tell a screen reader. */
export function announce(message) {
  reachable("live").textContent = message;
}

/** A box of messages where it can be seen and heard: an open dialog covers and silences all that lies beside it. */
function reachable(id) {
  const host = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  const box = at(id);
  if (box.parentElement !== host) host.append(box);
  return box;
}

for (const moved of ["close", "toggle"]) addEventListener(moved, () => ["toasts", "live"].forEach(reachable), true);

/** A dialog closes where a click lands beside it. */
export function closeOutside(dialog) {
  dialog.addEventListener("click", (e) => {
    if (e.target === dialog) dialog.close();
  });
}
