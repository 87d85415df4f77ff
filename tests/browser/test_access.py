"""For everybody: contrast of every text in both themes, the order of the focus and where it stays, still pictures."""

from __future__ import annotations

import pytest

from tests.browser.contrast import readable
from tests.browser.steps import CARDS, RING, ask, until, wait_first
from tests.browser.test_looks import PHONE

FOCUSED = """() => {
  const e = document.activeElement;
  return e.id || e.getAttribute("aria-label") || e.className || e.tagName;
}"""


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
    page.locator(f"{CARDS} .shot").first.focus()
    page.keyboard.press("y")
    page.locator(".toast", has_text="This is it").wait_for()
    readable(page)
    page.locator("#open-archive").click()
    page.locator(".skipped li").wait_for()
    page.locator(".marked li").first.wait_for()
    page.locator("#archive .facts dd").first.wait_for()
    readable(page)
    page.keyboard.press("Escape")
    page.locator("#open-collection").click()
    readable(page)
    page.keyboard.press("Escape")
    page.locator(f"{CARDS} .shot").first.click()
    page.locator(".side dt", has_text="Size").wait_for()
    page.keyboard.press("Space")
    page.locator("#mark-hit[aria-pressed=true]").wait_for()
    readable(page)
    page.locator("#mark-hit").click()
    page.locator("#mark-hit[aria-pressed=false]").wait_for()
    page.keyboard.press("c")
    page.get_by_role("button", name="Collected").wait_for()
    readable(page)
    page.keyboard.press("Escape")
    page.locator("#open-collection").click()
    page.locator(".kept .moment").hover()
    readable(page)
    page.get_by_role("button", name="Take out the long table.mp4").click()
    page.locator(".toast", has_text="Taken out").wait_for()
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
