"""Around the search: indexing as it happens, what was skipped, adapters, collections."""

from __future__ import annotations

import json
import re
import shutil
from urllib.parse import parse_qs, urlsplit

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


def test_another_adapter_answers_and_its_numbers_are_shown(open_page, picture):
    page = open_page()
    ask(page, RING)
    menu = page.locator("#adapters")
    menu.locator("summary").click()
    row = menu.locator(".adapter", has_text="my footage")
    row.wait_for()
    assert row.locator(".small").inner_text().startswith("lora on captioned")  # what the adapter file says of itself
    assert row.locator(".badge").inner_text() in ("Helps", "Does not help", "Not shown to help")
    numbers = row.locator(".gains tr").all_inner_texts()
    assert len(numbers) == 2
    assert all(re.search(r"\d+\.\d → \d+\.\d", line) for line in numbers)
    try:
        with page.expect_response(lambda r: r.url.endswith("/search")) as answer:
            row.get_by_role("radio").check()
        assert {hit["adapter"] for hit in answer.value.json()["hits"]} == {"my footage"}
        until(page, "document.querySelector('#adapters .label').textContent === 'my footage'")
        picture(page, "adapters")
        with page.expect_popup() as report:
            row.get_by_role("link", name="Report").click()
        assert "before" in report.value.locator("body").inner_text()
    finally:
        page.reload()
        menu.locator("summary").click()
        menu.get_by_label("The model alone").check()
        page.locator(".toast", has_text="answers without an adapter").wait_for()


def test_several_adapters_answer_at_once(open_page):
    page = open_page()

    def two(route):
        one = {"active": False, "helped": True, "method": "lora", "licence": {}, "bytes": 1, "report": False}
        more = [{**one, "name": name, "before": None, "after": None} for name in ("garden", "harbour")]
        told = route.fetch().json()
        route.fulfill(json={**told, "adapters": told["adapters"][:1] + more})

    def found(route):
        body = route.request.post_data_json
        asked = body.pop("adapters", [])
        answer = route.fetch(post_data=json.dumps(body)).json()
        for i, hit in enumerate(answer["hits"]):
            hit["adapter"] = asked[i % len(asked)] if asked else "base"
        route.fulfill(json=answer)

    page.route("**/api/v1/adapters", two)
    page.route("**/api/v1/search", found)
    ask(page, RING)
    page.locator("#adapters summary").click()
    page.locator("#adapters .adapter", has_text="harbour").wait_for()  # the menu reads them anew when it opens
    page.get_by_label("Ask all at once").check()
    until(page, "document.querySelectorAll('.card .by').length === 12")
    assert page.locator(".card .by").all_text_contents()[:3] == ["model alone", "garden", "harbour"]
    assert page.url.endswith("adapter=base&adapter=garden&adapter=harbour")
    assert page.locator("#adapters .label").inner_text() == "3 at once"
    page.get_by_label("Ask all at once").uncheck()
    until(page, "document.querySelectorAll('.card .by').length === 0")


def test_the_model_alone_and_an_adapter_answer_together(open_page):
    page = open_page()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator("#adapters summary").click()
    with page.expect_response(lambda r: r.url.endswith("/search")) as answer:
        page.get_by_label("Ask all at once").check()
    assert answer.value.request.post_data_json["adapters"] == ["base", "my footage"]
    assert answer.value.ok
    until(page, "document.querySelectorAll('.card .by').length === 12")
    assert set(page.locator(".card .by").all_text_contents()) <= {"model alone", "my footage"}


def test_a_reranker_is_offered_where_the_server_has_one(open_page, archive, framed):
    page = open_page()
    page.locator("#menu-rank").click()
    assert page.get_by_role("radio", name=re.compile("The best")).count() == 0
    page = open_page(served=framed)
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator("#menu-rank").click()
    with page.expect_response(lambda r: r.url.endswith("/search")) as answer:
        page.get_by_role("radio", name=re.compile(r"The best \d+ frame by frame \(mean\)")).check()
    assert answer.value.request.post_data_json["rerank"] == "mean"
    assert answer.value.ok
    until(page, "document.querySelector('#menu-rank').textContent === 'Closest first, checked again'")
    assert page.url.endswith("rerank=mean")
    assert page.evaluate("document.activeElement.id") == "second-1"
    page.reload()
    until(page, "document.querySelector('#menu-rank').textContent === 'Closest first, checked again'")
    page.locator("#menu-rank").click()
    with page.expect_response(lambda r: r.url.endswith("/search")) as answer:
        page.get_by_role("radio", name="No", exact=True).check()
    assert "rerank" not in answer.value.request.post_data_json


def test_the_file_under_way_is_told(open_page, living):
    page = open_page(served=living)
    page.locator(CARDS).first.wait_for()
    folder = living.folder / "garden"
    for n in range(3):
        shutil.copy(folder / "kites.mp4", folder / f"again {n}.mp4")
    page.locator("#open-archive").click()
    told = []
    page.expose_function("told", lambda line: told.append(line))
    page.evaluate(
        """() => new MutationObserver(() => {
          const line = document.querySelector(".job .current");
          if (line) window.told(line.textContent);
        }).observe(document.querySelector(".job"), { childList: true, subtree: true, characterData: true })"""
    )
    page.locator("#index-now").focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'cancel'")  # the focus is not lost with the button
    page.locator(".toast", has_text="Indexed").wait_for(timeout=90_000)
    until(page, "document.activeElement.id === 'index-now'")
    assert any(line.startswith("again ") for line in told)
    for n in range(3):
        (folder / f"again {n}.mp4").unlink()


def test_skipped_files_come_page_by_page(open_page):
    page = open_page()
    names = [f"reel {n}.mp4" for n in range(120)]

    def paged(route):
        given = parse_qs(urlsplit(route.request.url).query)
        first, limit = int(given["offset"][0]), int(given["limit"][0])
        row = {"folder": "garden", "reason": "corrupt", "next": "copy it again"}
        files = [{**row, "name": name} for name in names[first : first + limit]]
        route.fulfill(json={"version": 1, "total": len(names), "offset": first, "files": files})

    page.route("**/api/v1/skipped?*", paged)
    page.locator("#open-archive").click()
    page.get_by_role("heading", name="Skipped: 120 files").wait_for()
    assert page.locator(".skipped li").count() == 50
    page.get_by_role("button", name="Show more (70 left)").press("Enter")
    until(page, "document.querySelectorAll('.skipped li').length === 100")
    assert page.evaluate("document.activeElement.textContent").startswith("reel 50.mp4Damaged")
    page.get_by_role("button", name="Show more (20 left)").press("Enter")
    until(page, "document.querySelectorAll('.skipped li').length === 120")
    assert not page.locator("#more-skipped").is_visible()


def test_kept_searches_are_told_and_forgotten(open_page):
    page = open_page()
    forgotten = []

    def told(route):
        if route.request.method == "DELETE":
            forgotten.append(True)
        route.fulfill(json={"version": 1, "remembers": True, "total": 0 if forgotten else 14})

    page.route("**/api/v1/queries", told)
    page.locator("#open-archive").click()
    section = page.locator("#archive section", has_text="Kept searches")
    section.get_by_text("14 texts").wait_for()
    section.get_by_role("button", name="Forget them").press("Enter")
    section.get_by_text("None yet").wait_for()
    assert forgotten == [True]
    assert page.evaluate("document.querySelector('#archive').contains(document.activeElement)")


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
