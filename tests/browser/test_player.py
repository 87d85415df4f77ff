"""The player: the moment, the other hits, the keys, files that browsers do not play, files that are gone."""

from __future__ import annotations

import re

from tests.browser.steps import CARDS, RING, ask, until, wait_first

NOW = "document.querySelector('video').currentTime"
SHOWN = "Number(document.querySelector('.track').getAttribute('aria-valuenow'))"  # the second of the film


def open_first(page) -> None:
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator(f"{CARDS} .shot").first.click()


def test_it_plays_at_the_moment(open_page, picture):
    page = open_page()
    open_first(page)
    until(page, f"{NOW} > 6.2 && !document.querySelector('video').paused")
    assert page.evaluate(NOW) < 9
    assert "t=6.00" in page.url
    assert page.get_by_role("dialog").get_by_role("heading", name="the long table.mp4").is_visible()
    page.keyboard.press("Space")
    until(page, "document.querySelector('video').paused")
    picture(page, "player")
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#player').open")
    until(page, "!location.search.includes('video=')")  # the dialog tells that it closed a moment later
    assert page.locator(f"{CARDS} .shot").first.evaluate("(e) => e === document.activeElement")


def test_films_of_every_shape_are_seen_whole(open_page, archive):
    inside = """() => {
      const [a, b] = ["video", ".stage"].map((s) => document.querySelector(s).getBoundingClientRect());
      return [a.top - b.top, b.bottom - a.bottom, a.left - b.left, b.right - a.right];
    }"""
    shapes = set()
    for film in archive.films:
        page = open_page()
        page.locator(CARDS, has_text=film.path.name).locator(".shot").click()
        until(page, "document.querySelector('video').videoWidth > 0")
        shape = page.evaluate(
            "(({ videoWidth: w, videoHeight: h }) => Math.sign(w - h))(document.querySelector('video'))"
        )
        if shape in shapes:
            continue
        shapes.add(shape)
        for width, height in ((1280, 800), (1000, 700), (390, 844), (1600, 1000)):
            page.set_viewport_size({"width": width, "height": height})
            assert min(page.evaluate(inside)) > -1, (film.path.name, width, height)
    assert len(shapes) > 1


def test_back_closes_it_and_a_link_opens_it(open_page):
    page = open_page()
    open_first(page)
    until(page, f"{NOW} >= 6")
    link = page.url.partition("/?")[2]
    page.go_back()
    until(page, "!document.querySelector('#player').open")
    other = open_page(f"/?{link}")
    until(other, f"document.querySelector('#player').open && {NOW} >= 6")
    other.keyboard.press("Escape")
    until(other, "!document.querySelector('#player').open")
    until(other, "!location.search.includes('video=')")


def test_the_other_hits_are_marked_on_the_time_line(open_page):
    page = open_page()

    def with_moments(route):  # so that the test does not depend on where the cut-off of moments lies
        answer = route.fetch().json()
        told = {"unusual": 0.96, "words": "weak match", "apart": None}
        answer["hits"][0]["moments"] = [{"start_s": 0.0, "end_s": 3.0, "score": 0.6, **told}]
        route.fulfill(json=answer)

    page.route("**/api/v1/search", with_moments)
    open_first(page)
    page.locator(".side dt", has_text="Size").wait_for()  # facts came, and the time line is drawn for the last time
    assert page.locator(".track .mark").count() == 2
    box, track = page.locator(".mark.best").bounding_box(), page.locator(".track").bounding_box()
    assert abs((box["x"] - track["x"]) / track["width"] - 0.5) < 0.02  # second 6 of 12
    assert page.locator(".moments .words").all_inner_texts()[1] == "Weak match"
    page.get_by_title("Another hit, 0:00 to 0:03").click()
    until(page, f"{NOW} < 3")
    page.keyboard.press("n")
    until(page, f"{NOW} >= 6")
    page.locator(".track").click(position={"x": track["width"] * 0.9, "y": 20})
    until(page, f"{NOW} > 10")


def test_the_frames_that_matched_most_are_marked_and_gone_to(open_page, framed):
    page = open_page(served=framed)
    with page.expect_response(lambda r: r.url.endswith("/search")) as answer:
        page.locator("#q").fill(RING)
    wait_first(page, "the long table.mp4")
    matched = sorted(m["at_s"] for m in answer.value.json()["hits"][0]["matched"])
    page.locator(f"{CARDS} .shot").first.click()
    page.locator(".side dt", has_text="Size").wait_for()
    seen = page.locator(".side .seen button")
    assert seen.all_inner_texts() == [f"0:{s:04.1f}" for s in matched]
    assert page.locator(".side .seen").inner_text().startswith("Matches most at")
    track = page.locator(".track").bounding_box()
    for tick, second in zip(page.locator(".track .tick").all(), matched, strict=True):
        box = tick.bounding_box()
        assert abs((box["x"] + box["width"] / 2 - track["x"]) / track["width"] - second / 12) < 0.01
    seen.last.focus()
    page.keyboard.press("Enter")
    until(page, f"{NOW} >= {matched[-1]}")
    assert f"t={matched[-1]:.2f}" in page.url


def test_a_frame_of_the_film_strip_opens_there(open_page):
    page = open_page()
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    film = page.locator(".card .film").first
    box = film.bounding_box()
    film.hover(position={"x": box["width"] * 0.8, "y": 10})
    assert page.locator(".card .sprite img").count() == 1
    film.click(position={"x": box["width"] * 0.8, "y": 10})
    until(page, f"{NOW} > 8")


def test_a_film_that_cannot_be_remade_says_why(open_page, living):
    page = open_page(served=living)
    error = {"code": "disk-full", "message": "the disk of the cache is full; make room"}
    page.route(re.compile("/media"), lambda route: route.fulfill(status=507, json={"version": 1, "error": error}))
    page.locator(CARDS, has_text="old camera.avi").locator(".shot").click()
    page.locator(".said:not(.beside)", has_text="The disk of the cache is full; make room").wait_for()


TOP = "getBoundingClientRect().top"


def test_by_keyboard_alone(open_page):
    page = open_page()
    page.locator(CARDS).first.wait_for()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type(RING, delay=10)
    wait_first(page, "the long table.mp4")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.matches('.card:first-child .shot')")
    page.keyboard.press("ArrowRight")
    until(page, "document.activeElement.matches('.card:nth-child(2) .shot')")
    page.keyboard.press("ArrowDown")
    # to the row below, where a card may not stand in every column
    until(page, "document.activeElement.matches('.card .shot')")
    until(page, f"document.activeElement.{TOP} > document.querySelector('.card:nth-child(2)').{TOP} + 100")
    page.keyboard.press("Home")
    page.keyboard.press("c")
    until(page, "document.querySelector('.card .collect').getAttribute('aria-pressed') === 'true'")
    page.keyboard.press("Enter")
    until(page, f"document.querySelector('#player').open && {NOW} > 6 && !document.querySelector('video').paused")
    page.keyboard.press("Space")
    until(page, "document.querySelector('video').paused")
    page.keyboard.press("ArrowRight")
    until(page, f"{NOW} > 10")
    page.keyboard.press("ArrowDown")
    until(page, "document.querySelector('#player-name').textContent !== 'the long table.mp4'")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.matches('.card:nth-child(2) .shot')")
    page.keyboard.press("?")
    until(page, "document.querySelector('#keys').open")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.id === 'q'")


def test_what_the_browser_does_not_play_is_remade(open_page, living):
    page = open_page(served=living)
    card = page.locator(CARDS, has_text="old camera.avi").locator(".shot")
    card.click()
    until(page, "document.querySelector('video').readyState >= 2")
    page.get_by_text("Transcoded for the browser").wait_for()
    until(page, "document.querySelector('.said').hidden")
    page.locator(".track").click(position={"x": 400, "y": 20})
    until(page, f"{SHOWN} > 3")


def test_a_moment_plays_while_the_rest_is_still_remade(open_page, living):
    page = open_page(served=living)
    card = page.locator(CARDS, has_text="old camera.avi")
    card.wait_for()
    ready = False

    def facts(route):
        route.fulfill(json={**route.fetch().json(), "ready": ready})

    page.route(re.compile(r"/videos/[^/?]+$"), facts)
    page.route(re.compile(r"/media$"), lambda route: route.continue_() if ready else None)  # the whole is not there
    sent = []
    page.on("request", lambda r: sent.append(r.url.partition("/media")[2]) if "/media" in r.url else None)
    film = card.locator(".film")
    film.click(position={"x": film.bounding_box()["width"] * 0.75, "y": 10})
    until(page, f"{SHOWN} > 9.2 && {NOW} < 3 && document.querySelector('.said').hidden")
    assert sent[0] == ""  # which has the server make the whole
    assert 8.8 <= float(sent[-1].removeprefix("?from=")) <= 9.1
    page.keyboard.press("Space")
    before = page.evaluate(SHOWN)
    page.keyboard.press("ArrowLeft")
    until(page, f"Math.abs({SHOWN} - {before - 5}) < 0.3 && document.querySelector('video').readyState >= 2")
    assert float(sent[-1].removeprefix("?from=")) < 6
    ready = True
    page.wait_for_timeout(1500)  # the page asks each second
    page.keyboard.press("Home")
    until(page, f"{SHOWN} < 2 && document.querySelector('video').readyState >= 2")
    assert sent[-1] == ""
    page.keyboard.press("End")
    until(page, f"{NOW} > 11")


def test_on_a_low_screen_the_controls_can_be_reached(open_page):
    page = open_page(width=844, height=390)
    open_first(page)
    until(page, f"{NOW} >= 6")
    box = page.locator(".controls").bounding_box()
    assert box["y"] + box["height"] <= 390


def test_a_file_that_is_gone_is_said_to_be(open_page, living):
    film = living.film("kites")
    moved = film.path.with_name("elsewhere.tmp")
    film.path.rename(moved)
    try:
        page = open_page(served=living)
        page.locator(CARDS, has_text="kites.mp4").locator(".shot").click()
        page.locator(".said", has_text="gone since it was indexed").wait_for()
    finally:
        moved.rename(film.path)
