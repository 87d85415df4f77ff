"""Searching in the page: as one types, with images, filters, states and the address."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from tests.browser import world
from tests.browser.steps import CARDS, RING, ask, names, until, wait_first


def test_without_a_question_all_videos_are_shown(open_page, archive):
    page = open_page()
    page.locator(CARDS).first.wait_for()
    assert sorted(names(page)) == sorted(f.path.name for f in archive.films)
    assert page.locator("#summary").inner_text().startswith("12 videos")


def test_results_follow_as_one_types(open_page, picture):
    page = open_page()
    page.locator("#q").press_sequentially(RING, delay=15)
    wait_first(page, "the long table.mp4")
    first = page.locator(".card").first
    assert first.locator(".when").inner_text() == "0:06–0:09"
    assert re.match(r"(Strong|Good|Weak) match|Unlikely|Score \d", first.locator(".words").inner_text())
    assert first.locator(".film img").evaluate("(i) => i.complete && i.naturalWidth > 0 || i.decode().then(() => true)")
    until(page, "document.querySelector('#live').textContent.includes('the long table.mp4 at 0:06')")
    assert page.title().startswith("a purple cross")
    picture(page, "search")


def judged(words: list[str], matching: int | None, apart: float | None = None):
    """Answers the search with these words for its hits, which the server ranks."""

    def answered(route):
        answer = route.fetch().json()
        for hit, said in zip(answer["hits"], words, strict=True):
            hit |= {"words": said, "unusual": None if apart else 0.9, "apart": apart}
        route.fulfill(json={**answer, "state": "ok", "matching": matching})

    return answered


def test_how_many_match_is_told_and_a_line_stands_after_the_last_of_them(open_page):
    words = ["strong match", "unlikely", "weak match", "good match", "weak match", *["unlikely"] * 7]
    page = open_page()
    page.route("**/api/v1/search", judged(words, 2))
    ask(page, RING)
    assert page.locator("#summary strong").inner_text() == "2 of 12 videos match"
    divider = page.locator(".hits > .divider")
    assert divider.inner_text() == "From here on: probably no match"
    assert page.locator(".hits > .divider ~ .card").count() == 8  # the words above it go up and down
    page.locator(f"{CARDS} .shot").nth(1).focus()
    page.keyboard.press("ArrowDown")  # over the line to the next row, as it is seen
    until(
        page,
        "document.activeElement.closest('.card')?.previousElementSibling?.previousElementSibling?.matches('.divider')",
    )
    page.keyboard.press("ArrowUp")
    until(page, "document.activeElement.closest('.card') === document.querySelectorAll('.card')[1]")


@pytest.mark.parametrize(("matching", "told"), [(3, "3 of 12 videos match"), (None, "12 videos"), (0, "12 videos")])
def test_there_is_no_line_before_all_that_match_are_here(open_page, matching, told):
    page = open_page()
    page.route("**/api/v1/search", judged(["good match", *["unlikely"] * 11], matching))
    ask(page, RING)
    assert page.locator("#summary strong").inner_text() == told
    assert page.locator(".divider").count() == 0


def test_words_of_a_picture_are_its_own(open_page):
    page = open_page()
    page.route("**/api/v1/search", judged(["stands out", *["one of many"] * 11], 1, 4.2))
    ask(page, RING)
    assert page.locator("#summary strong").inner_text() == "1 of 12 videos stands out"
    assert page.locator(".divider").inner_text() == "From here on: no nearer than many others"
    words = page.locator(".card .words")
    assert words.all_inner_texts() == ["Stands out", *["One of many"] * 11]
    assert page.locator(".card .bars").count() == 0
    assert "no cut-off was measured" in words.first.get_attribute("title")


def test_an_answer_that_comes_late_is_not_shown(open_page):
    page = open_page()
    page.locator(CARDS).first.wait_for()
    aborted = []
    page.on("requestfailed", lambda r: aborted.append(r.post_data) if r.url.endswith("/search") else None)
    page.route(
        "**/api/v1/search",
        lambda route: None if '"a green' in (route.request.post_data or "") else route.continue_(),  # never answered
    )
    with page.expect_request(lambda r: r.url.endswith("/search")):
        page.locator("#q").fill("a green")
    page.locator("#q").fill(RING)
    wait_first(page, "the long table.mp4")
    assert aborted
    assert '"a green"' in aborted[0]


def test_the_address_holds_the_question_and_back_undoes_it(open_page):
    page = open_page(f"/?q={RING.replace(' ', '+')}&folder=garden")
    wait_first(page, "the long table.mp4")
    assert page.locator("#q").input_value() == RING
    page.wait_for_timeout(1300)  # a step back is worth it after an answer stood for a while
    ask(page, "a little yellow bar leaves a big green star")
    assert "q=a+little+yellow" in page.url
    page.go_back()
    wait_first(page, "the long table.mp4")
    assert page.locator("#q").input_value() == RING


def test_filters_and_facets(open_page):
    page = open_page()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator("#menu-folder").click()
    assert page.locator("label[for=folder-1] data").inner_text() == "4"
    page.get_by_role("radio", name="harbour").check()
    until(page, "[...document.querySelectorAll('.card .folder')].every((f) => f.textContent === 'harbour')")
    assert len(names(page)) == 4
    assert "folder=harbour" in page.url
    page.keyboard.press("Escape")
    page.locator("#menu-way").click()
    page.get_by_role("radio", name="Portrait").check()
    until(page, "document.querySelectorAll('.card').length === 1")
    assert names(page) == ["lanterns.mp4"]
    page.locator("#menu-length").click()
    page.get_by_role("radio", name="Under 10 s").check()
    page.get_by_role("heading", name="No video passes these filters").wait_for()
    page.get_by_role("button", name="Without filters").click()
    wait_first(page, "the long table.mp4")
    assert len(names(page)) == 12


def test_filters_hold_without_a_question(open_page):
    page = open_page("/?orientation=square")
    page.locator(CARDS).first.wait_for()
    assert sorted(names(page)) == ["clockwork.mp4", "rain on the roof.mp4"]


def drop(page, pixels) -> None:
    """Drop an image on the page, as from a file manager."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    page.evaluate(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], "still.png", { type: "image/png" }));
          const send = (name) => document.body.dispatchEvent(
            new DragEvent(name, { dataTransfer, bubbles: true, cancelable: true }));
          send("dragenter");
          window.shown = !document.querySelector("#drop").hidden;
          send("drop");
        }""",
        base64.b64encode(data.getvalue()).decode(),
    )


def test_an_image_dropped_on_the_page_finds_its_film(open_page):
    page = open_page()
    page.locator(CARDS).first.wait_for()
    item = next(i for i in world.ShapesWorld().videos("test") if RING in i.captions)
    drop(page, world.scene_pixels(item, *world.SIZES["landscape"])[18])
    page.locator(".pill").wait_for()
    assert page.evaluate("window.shown")
    wait_first(page, "the long table.mp4")
    assert page.locator(".card .when").first.inner_text() == "0:06–0:09"
    assert page.locator("#notes").inner_text().startswith("No words: a query that is no text")  # of twelve videos
    page.get_by_role("button", name="Leave out: still.png").click()
    until(page, "document.querySelector('#summary').textContent.startsWith('12 videos')")
    assert "image=" not in page.url


def test_a_dropped_file_that_is_no_image_is_refused(open_page):
    page = open_page()
    page.evaluate(
        """() => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File(["text"], "broken.png", { type: "image/png" }));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }"""
    )
    page.locator(".toast.bad", has_text="broken.png").wait_for()
    assert page.locator(".pill").count() == 0


def test_more_like_this(open_page):
    page = open_page()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator(".card").first.hover()
    page.get_by_role("button", name="More like the long table.mp4").click()
    page.locator(".pill", has_text="like 0:0").wait_for()
    until(page, "document.querySelectorAll('.card:not(.ghost)').length > 3")
    assert "like=" in page.url
    assert page.locator("#q").input_value() == ""


def test_words_with_a_minus_are_taken_away(open_page):
    page = open_page()
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.url.endswith("/search") else None)
    ask(page, 'a ring -purple -"white moon"')
    assert sent[-1]["text"] == "a ring"
    assert sent[-1]["minus"] == ["purple", "white moon"]


@pytest.mark.parametrize("hits", [True, False])
def test_nothing_here_matches(open_page, hits):
    page = open_page()

    def nothing(route):
        answer = route.fetch().json()
        route.fulfill(json={**answer, "state": "nothing", "hits": answer["hits"] if hits else []})

    page.route("**/api/v1/search", nothing)
    page.locator("#q").fill("a black hole")
    page.get_by_role("heading", name="Nothing here matches").wait_for()
    assert page.locator(CARDS).count() == 0
    closest = page.get_by_role("button", name="Show the closest all the same")
    if hits:
        closest.click()
        assert page.locator(".card").count() == 12
    else:
        assert closest.count() == 0


def test_an_error_is_one_line_and_a_server_that_comes_back_is_found(open_page):
    page = open_page()
    page.route("**/api/v1/search", lambda route: route.abort("connectionrefused"))
    page.locator("#q").fill(RING)
    page.get_by_role("heading", name="No answer").wait_for()
    assert "clipreel serve" in page.locator("#state").inner_text()
    page.unroute("**/api/v1/search")
    wait_first(page, "the long table.mp4")  # it asks again by itself
    page.locator("#q").fill("long " * 1000)
    page.get_by_role("heading", name="This cannot be answered").wait_for()


def test_waiting_is_shown_and_more_results_come_on_request(open_page):
    page = open_page()
    page.locator(CARDS).first.wait_for()

    def few(route):
        body = route.request.post_data_json
        answer = route.fetch().json()
        first = body["offset"]
        route.fulfill(json={**answer, "total": 12, "hits": answer["hits"][:5] if first == 0 else answer["hits"]})

    page.route("**/api/v1/search", few)
    page.locator("#q").fill(RING)
    more = page.get_by_role("button", name=re.compile("Show more"))
    more.wait_for()
    assert len(names(page)) == 5
    more.click()
    until(page, "document.querySelectorAll('.card').length > 5")
