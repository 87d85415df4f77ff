"""Around the search: indexing as it happens, what was skipped, adapters, collections, phone, dark, readers of the page."""

from __future__ import annotations

import shutil

import pytest

from tests.browser.steps import CARDS, ask, names, until, wait_first
from tests.browser.test_search import RING

PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
PALE = "(e) => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).every((c) => c > 128)"


def test_indexing_is_told_as_it_happens(open_page, living, archive):
    page = open_page(served=living)
    page.locator(CARDS).first.wait_for()
    before = len(names(page))
    for film in archive.films[8:]:
        shutil.copy(film.path, living.folder / "garden")
    seen = []
    page.expose_function("told", seen.append)
    page.evaluate(
        """() => new MutationObserver(() => {
          const bar = document.querySelector("#progress");
          if (!bar.hidden) window.told(Number(bar.getAttribute("aria-valuenow")));
        }).observe(document.querySelector("#progress"), { attributes: true, subtree: true })"""
    )
    page.get_by_role("button", name="Archive").click()
    page.get_by_role("button", name="Index now").click()
    page.locator(".toast", has_text="Indexed").wait_for(timeout=90_000)
    assert seen == sorted(seen)
    assert seen
    page.keyboard.press("Escape")
    until(page, f"document.querySelectorAll('{CARDS}').length > {before}")
    ask(page, "a cyan square moves to the left above a white ring")
    wait_first(page, "night shift.mp4")


def test_what_was_skipped_and_why(open_page, picture):
    page = open_page()
    page.get_by_role("button", name="Archive").click()
    row = page.locator(".skipped li")
    row.wait_for()
    assert "broken reel.mp4" in row.inner_text()
    assert len(row.locator("span").inner_text()) > 3
    assert len(row.locator("small").first.inner_text()) > 3
    assert page.locator(".counts").inner_text().startswith("12")
    picture(page, "archive")


def test_collections_are_kept_and_exported(open_page, tmp_path):
    page = open_page()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    for i in range(2):
        page.locator(CARDS).nth(i).hover()
        page.locator(f"{CARDS} .collect").nth(i).click()
    page.reload()
    page.get_by_role("button", name="Collection: 2 moments").click()
    drawer = page.locator("#collection")
    assert drawer.locator(".kept li").count() == 2
    assert "“a purple cross goes left" in drawer.locator(".kept li").first.inner_text()
    for choice, end in (("csv", ".csv"), ("json", ".json"), ("edl", ".edl"), ("fcpxml", ".fcpxml"), ("mp4", ".zip")):
        drawer.locator("#format").select_option(choice)
        with page.expect_download() as download:
            drawer.locator("#export").click()
        assert download.value.suggested_filename.endswith(end)
        path = tmp_path / f"exported{end}"
        download.value.save_as(path)
        assert path.stat().st_size > 50
    assert "the long table.mp4" in (tmp_path / "exported.csv").read_text()
    drawer.get_by_role("button", name="New collection").click()
    drawer.get_by_label("Name of the new collection").fill("For the trailer")
    page.keyboard.press("Enter")
    assert drawer.locator(".empty").is_visible()
    drawer.locator("header select").select_option("My collection")
    drawer.get_by_role("button", name="Take out the long table.mp4").click()
    assert drawer.locator(".kept li").count() == 1
    page.get_by_role("button", name="Undo").click()
    assert drawer.locator(".kept li").count() == 2


def test_on_a_phone_nothing_is_wider_than_the_screen(open_page, picture):
    page = open_page(**PHONE)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    page.locator(CARDS).first.wait_for()
    until(page, fits)
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    until(page, fits)
    picture(page, "phone")
    page.locator("#menu-length").tap()
    sheet = page.locator("details[open] .panel").bounding_box()
    assert sheet["x"] == 0
    assert sheet["width"] == PHONE["width"]
    page.keyboard.press("Escape")
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
    nameless = """() => [...document.querySelectorAll("button, a, input, select, summary, dialog, video")].filter((e) => {
      if (!e.checkVisibility() || e.labels?.length) return false;
      const by = e.getAttribute("aria-labelledby");
      return !(e.getAttribute("aria-label") || (by && document.getElementById(by)) || e.textContent.trim());
    }).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    assert page.locator("h1").count() == 1
    assert page.locator("main").count() == page.locator("header.bar").count() == page.locator("[role=search]").count() == 1
    assert page.evaluate("[...document.images].every((i) => i.hasAttribute('alt'))")
    page.locator(f"{CARDS} .shot").first.click()
    page.locator("#player .mark").first.wait_for()
    assert page.evaluate(nameless.replace("document.querySelectorAll", "document.querySelector('#player').querySelectorAll")) == []
    track = page.get_by_role("slider", name="Position in the video")
    assert track.get_attribute("aria-valuemax") == "12.0"


def test_the_page_needs_nothing_from_outside(open_page, archive):
    context = open_page()
    asked = []
    context.on("request", lambda r: asked.append(r.url))
    context.reload()
    context.locator(CARDS).first.wait_for()
    assert [u for u in asked if not u.startswith((archive.address, "blob:", "data:"))] == []
