"""Whether every text on the page can be read: its contrast with what it stands on."""

from __future__ import annotations

from playwright.sync_api import Page

from tests.browser.steps import until

# Every visible text with less contrast than WCAG 2.2 AA asks for: [ratio, text]. A ground that is not opaque is laid
# over what is behind it; a text over a picture is compared with black and with white behind its own ground.
FAINT = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return { c: [r, g, b], a: a / 255 };
  };
  const over = (top, below) => top.c.map((v, i) => v * top.a + below[i] * (1 - top.a));
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [dark, bright] = [light(a), light(b)].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
  };
  const grounds = (element) => {
    const layers = [];
    let below = null;
    for (let e = element; e && !below; e = e.parentElement) {
      const ground = rgba(getComputedStyle(e).backgroundColor);
      if (ground.a > 0) layers.push(ground);
      if (ground.a === 1) below = [ground.c];
      else if (e.matches(".shot, .stage")) below = [[0, 0, 0], [255, 255, 255]];
    }
    below ??= [rgba(getComputedStyle(document.body).backgroundColor).c];
    return below.map((c) => layers.reduceRight((under, layer) => over(layer, under), c));
  };
  const solid = (element) => {
    let opacity = 1;
    for (let e = element; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
    return opacity;
  };
  const found = [];
  const look = (element, text, style) => {
    const ink = rgba(style.color);
    ink.a *= solid(element);
    const large = parseFloat(style.fontSize) >= (Number(style.fontWeight) >= 700 ? 18.66 : 24);
    const worst = Math.min(...grounds(element).map((ground) => ratio(over(ink, ground), ground)));
    if (worst < (large ? 3 : 4.5)) found.push([Math.round(100 * worst) / 100, text.trim().slice(0, 60)]);
  };
  const host = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  const walk = document.createTreeWalker(host, NodeFilter.SHOW_TEXT);
  let texts = 0;
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("option, noscript, :disabled")) continue;
    texts += 1;
    look(element, node.data, getComputedStyle(element));
  }
  for (const input of host.querySelectorAll("input[placeholder]")) {
    if (input.checkVisibility()) look(input, input.placeholder, getComputedStyle(input, "::placeholder"));
  }
  return { texts, found };
}"""


def readable(page: Page) -> None:
    """No text of what is open is too faint."""
    until(page, "!document.body.classList.contains('waiting')")
    told = page.evaluate(FAINT)
    assert told["texts"] > 3
    assert told["found"] == []
