"""How the page looks and reads: phone width, dark, names for a screen reader, nothing from outside."""

from __future__ import annotations

import pytest

from tests.browser.steps import CARDS, RING, ask, until, wait_first

PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
PALE = "(e) => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).every((c) => c > 128)"
NAMELESS = """(inside) => {
  const controls = "button, a, input, select, summary, dialog, video";
  return [...document.querySelector(inside).querySelectorAll(controls)].filter((e) => {
    if (!e.checkVisibility() || e.labels?.length) return false;
    const by = e.getAttribute("aria-labelledby");
    return !(e.getAttribute("aria-label") || (by && document.getElementById(by)) || e.textContent.trim());
  }).map((e) => e.outerHTML);
}"""


def test_on_a_phone_nothing_is_wider_than_the_screen(open_page, picture):
    page = open_page(**PHONE)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    page.locator(CARDS).first.wait_for()
    until(page, fits)
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    until(page, fits)
    picture(page, "phone")
    card = "document.querySelector('.card').getBoundingClientRect()"
    below = f"{card}.bottom - document.querySelector('.card .facts').getBoundingClientRect().bottom"
    assert page.evaluate(below) < 8  # no row of a card for buttons alone
    fade = "(place) => getComputedStyle(document.querySelector('.filters'), place).backgroundImage"
    assert all("gradient" in page.evaluate(fade, place) for place in ("::before", "::after"))
    page.locator("#menu-length").tap()
    sheet = page.locator("details[open] .panel").bounding_box()
    assert sheet["x"] == 0
    assert sheet["width"] == PHONE["width"]
    page.keyboard.press("Escape")
    page.locator("#adapters summary").tap()
    page.locator("#adapters .adapter").first.wait_for()
    sheet = page.locator("#adapters .panel").bounding_box()
    assert sheet["y"] >= 0
    assert sheet["y"] + sheet["height"] == PHONE["height"]
    page.touchscreen.tap(195, 20)  # beside the sheet
    until(page, "!document.querySelector('details[open]')")
    page.locator(f"{CARDS} .shot").first.tap()
    until(page, "document.querySelector('video').currentTime >= 6")
    until(page, fits)
    assert page.locator("#player").bounding_box()["width"] == PHONE["width"]
    page.get_by_role("dialog").get_by_role("button", name="Close").tap()
    until(page, "!document.querySelector('#player').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(open_page, picture, scheme):
    page = open_page(f"/?q={RING.replace(' ', '+')}", color_scheme=scheme)
    wait_first(page, "the long table.mp4")
    assert page.locator("body").evaluate(PALE) == (scheme == "light")
    assert page.locator(".ask").evaluate(PALE) == (scheme == "light")
    if scheme == "dark":
        picture(page, "dark")


def test_everything_has_a_name(open_page):
    """What a screen reader needs: names of controls, one main heading, landmarks, texts of pictures."""
    page = open_page()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    assert page.evaluate(NAMELESS, "body") == []
    assert page.locator("h1").count() == 1
    assert page.evaluate("[...document.images].every((i) => i.hasAttribute('alt'))")
    page.locator("#open-archive").click()
    page.locator("#archive .skipped li").wait_for()
    assert page.evaluate(NAMELESS, "#archive") == []
    page.keyboard.press("Escape")
    page.locator(f"{CARDS} .shot").first.click()
    page.locator("#player .mark").first.wait_for()
    assert page.evaluate(NAMELESS, "#player") == []
    track = page.get_by_role("slider", name="Position in the video")
    assert track.get_attribute("aria-valuemax") == "12.0"


def test_the_page_needs_nothing_from_outside(open_page, archive):
    context = open_page()
    asked = []
    context.on("request", lambda r: asked.append(r.url))
    context.reload()
    context.locator(CARDS).first.wait_for()
    assert [u for u in asked if not u.startswith((archive.address, "blob:", "data:"))] == []
