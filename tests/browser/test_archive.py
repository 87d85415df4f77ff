"""Around the search: indexing as it happens, what was skipped, adapters, collections."""

from __future__ import annotations

import shutil

from tests.browser.steps import CARDS, RING, ask, names, until, wait_first


def test_indexing_is_told_as_it_happens(open_page, living, archive):
    page = open_page(served=living)
    page.locator(CARDS).first.wait_for()
    before = len(names(page))
    for film in archive.films[8:]:
        shutil.copy(film.path, living.folder / "garden")
    seen = []
    page.expose_function("told", lambda share: seen.append(share))
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
