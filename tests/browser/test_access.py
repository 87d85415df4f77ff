"""For everybody: contrast of every text in both themes, the order of the focus and where it stays, still pictures."""

from __future__ import annotations

import pytest

from tests.browser.steps import CARDS, RING, ask, until, wait_first
from tests.browser.test_looks import PHONE

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
FOCUSED = """() => {
  const e = document.activeElement;
  return e.id || e.getAttribute("aria-label") || e.className || e.tagName;
}"""


def readable(page) -> None:
    """No text of what is open is too faint."""
    until(page, "!document.body.classList.contains('waiting')")
    told = page.evaluate(FAINT)
    assert told["texts"] > 3
    assert told["found"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(open_page, scheme):
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.locator(CARDS).first.wait_for()
    readable(page)  # all videos, and the empty field
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator(CARDS).nth(1).hover()
    readable(page)
    for menu in ("folder", "length", "rank"):
        page.locator(f"#menu-{menu}").click()
        page.locator(f"details[data-name={menu}] .panel .option").first.hover()
        readable(page)
    page.locator("#adapters summary").click()
    page.locator("#adapters .adapter").nth(1).wait_for()
    readable(page)
    page.keyboard.press("Escape")
    page.locator("#open-archive").click()
    page.locator(".skipped li").wait_for()
    page.locator("#archive .facts dd").first.wait_for()
    readable(page)
    page.keyboard.press("Escape")
    page.locator("#open-collection").click()
    readable(page)
    page.keyboard.press("Escape")
    page.locator(f"{CARDS} .shot").first.click()
    page.locator(".side dt", has_text="Size").wait_for()
    readable(page)
    page.keyboard.press("c")
    page.get_by_role("button", name="Collected").wait_for()
    readable(page)
    page.keyboard.press("Escape")
    page.locator("#open-collection").click()
    page.locator(".kept .moment").hover()
    readable(page)
    page.get_by_role("button", name="Take out the long table.mp4").click()
    page.locator(".toast").wait_for()
    readable(page)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.locator("#q").fill("long " * 1000)
    page.get_by_role("heading", name="This cannot be answered").wait_for()
    readable(page)


def test_the_focus_goes_through_the_page_in_the_order_of_reading(open_page):
    page = open_page()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.evaluate("document.activeElement.blur()")
    page.evaluate("getSelection().removeAllRanges()")
    page.locator(".skip").focus()
    seen = []
    while len(seen) < 40 and seen[-1:] != ["Collect the long table.mp4 at 0:06"]:
        seen.append(page.evaluate(FOCUSED))
        page.keyboard.press("Tab")
    first = ["skip", "clipreel: all videos", "q", "empty", "pick", "SUMMARY", "open-collection", "open-archive"]
    filters = [f"menu-{name}" for name in ("folder", "tag", "length", "date", "way", "rank")]
    assert seen[: len(first)] == first
    assert [name for name in seen if name in filters] == filters
    assert "shot" in " ".join(seen) or any(name.startswith("Strong match") for name in seen)
    assert "BODY" not in seen
    # one card is one stop with its buttons: after it, the page ends
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) in ("more", "BODY", "skip")


def test_the_focus_stays_where_one_was(open_page):
    page = open_page("/?folder=garden")
    page.locator(CARDS).first.wait_for()
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.card:not(.ghost)').length === 12")
    assert page.evaluate(FOCUSED) == "menu-folder"  # its button went
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator(f"{CARDS} .shot").first.click()
    page.locator(".side dt", has_text="Size").wait_for()
    page.locator("#collect").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Collected").wait_for()
    assert page.evaluate(FOCUSED) == "collect"
    track = page.get_by_role("slider", name="Position in the video")
    track.focus()
    page.keyboard.press("Home")
    until(page, "document.querySelector('video').currentTime < 3")
    page.keyboard.press("ArrowUp")  # on a slider it moves along; elsewhere it goes to the result before
    until(page, "document.querySelector('video').currentTime >= 5")
    assert page.locator("#player-name").inner_text() == "the long table.mp4"
    page.keyboard.press("Escape")
    page.locator("#open-collection").click()
    page.get_by_role("button", name="Take out the long table.mp4").press("Enter")
    until(page, "document.querySelector('#collection .empty')")
    assert page.evaluate("document.querySelector('#collection').contains(document.activeElement)")


def test_the_search_is_emptied_with_a_finger_too(open_page):
    page = open_page(**PHONE)
    page.locator(CARDS).first.wait_for()
    empty = page.get_by_role("button", name="Clear the search")
    assert not empty.is_visible()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    empty.tap()
    until(page, "document.querySelector('#summary').textContent.startsWith('12 videos')")
    assert page.evaluate(FOCUSED) == "q"
    assert not empty.is_visible()


def test_nothing_moves_for_who_asked_for_that(open_page):
    page = open_page(reduced_motion="reduce")
    page.locator(CARDS).first.wait_for()
    page.route("**/api/v1/search", lambda route: None)  # never answered: the page shows that it waits
    page.locator("#q").fill("a green")
    until(page, "document.body.classList.contains('waiting')")
    assert page.evaluate("document.getAnimations().length") == 0
    page.locator("#open-archive").click()
    assert page.evaluate("document.getAnimations().length") == 0
    moving = open_page(reduced_motion="no-preference")
    moving.locator(CARDS).first.wait_for()
    moving.route("**/api/v1/search", lambda route: None)
    moving.locator("#q").fill("a green")
    until(moving, "document.getAnimations().length > 0")
