"""Saying of an answer that this is it, or not: on a card, in the player, by keyboard, and taking it back."""

from __future__ import annotations

import json
import re
from urllib.request import Request, urlopen

import pytest

from tests.browser.steps import CARDS, RING, ask, until, wait_first


def marks(served) -> list[dict]:
    with urlopen(f"{served.address}/api/v1/pairs") as told:
        return json.load(told)["pairs"]


@pytest.fixture(autouse=True)
def unmarked(archive):
    """Nothing is marked before a test."""
    for mark in marks(archive):
        urlopen(Request(f"{archive.address}/api/v1/pairs/{mark['id']}", method="DELETE")).close()


def asked(open_page, **more):
    page = open_page(**more)
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    return page


def pressed(page, name: str) -> bool:
    return page.get_by_role("button", name=name).first.get_attribute("aria-pressed") == "true"


def test_an_answer_is_marked_on_its_card(open_page, archive, picture):
    page = asked(open_page)
    page.locator(CARDS).first.hover()
    page.get_by_role("button", name="This is it: the long table.mp4 at 0:06").click()
    page.locator(".toast", has_text="This is it: the long table.mp4 0:06–0:09").wait_for()
    assert pressed(page, "This is it: the long table.mp4")
    page.locator(CARDS).nth(1).hover()
    page.locator(CARDS).nth(1).get_by_role("button", name="This is not it").click()
    page.locator(".toast", has_text="This is not it").wait_for()
    assert page.locator(".toast").count() == 1
    miss, hit = marks(archive)
    assert (hit["query"], hit["name"], hit["judgement"]) == (RING, "the long table.mp4", "hit")
    assert (hit["start_s"], hit["end_s"]) == pytest.approx((6, 9), abs=0.3)
    assert (miss["query"], miss["judgement"]) == (RING, "miss")
    picture(page, "marks")
    page.get_by_role("button", name="Undo").click()
    page.locator(".toast", has_text="Taken back").wait_for()
    assert [m["judgement"] for m in marks(archive)] == ["hit"]
    # a mark belongs to its query, and is there again with it
    ask(page, "a little yellow bar leaves a big green star")
    until(page, "!document.querySelector('.card [aria-pressed=true]')")
    page.reload()
    ask(page, RING)
    until(page, "document.querySelector('.card:first-child').dataset.said === 'hit'")
    page.locator(CARDS).first.hover()
    page.get_by_role("button", name="This is not it: the long table.mp4").click()
    until(page, "document.querySelector('.card:first-child').dataset.said === 'miss'")
    assert [m["judgement"] for m in marks(archive)] == ["miss"]  # the last word counts


def test_the_player_asks_about_the_moment_that_plays(open_page, archive):
    page = open_page()

    def two_moments(route):
        answer = route.fetch().json()
        best = answer["hits"][0]
        best["moments"] = [{**best, "start_s": 0.0, "end_s": 3.0, "score": best["score"] * 0.95}]
        route.fulfill(json=answer)

    page.route("**/api/v1/search", two_moments)
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    page.locator(f"{CARDS} .shot").first.click()
    judging = page.locator(".judging")
    judging.get_by_text(re.compile("Is 0:06–0:09")).wait_for()
    assert RING in judging.inner_text()
    page.keyboard.press("Space")  # it stands still
    judging.get_by_role("button", name="This is it").focus()
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#mark-hit').getAttribute('aria-pressed') === 'true'")
    assert page.evaluate("document.activeElement.id") == "mark-hit"
    spoken = page.locator("#player [role=status]", has_text="This is it: the long table.mp4")
    assert spoken.count() == 1  # inside the dialog, where it can be heard
    page.keyboard.press("p")
    judging.get_by_text(re.compile("Is 0:00–0:03")).wait_for()
    page.keyboard.press("x")
    until(page, "document.querySelector('#mark-miss').getAttribute('aria-pressed') === 'true'")
    assert [(m["judgement"], round(m["start_s"])) for m in marks(archive)] == [("miss", 0), ("hit", 6)]
    page.keyboard.press("x")
    until(page, "document.querySelector('#mark-miss').getAttribute('aria-pressed') === 'false'")
    assert [m["judgement"] for m in marks(archive)] == ["hit"]


def test_marks_are_made_without_a_mouse_and_counted_in_the_archive(open_page, archive):
    page = asked(open_page)
    page.locator(f"{CARDS} .shot").first.focus()
    page.keyboard.press("y")
    until(page, "document.querySelector('.card:first-child').dataset.said === 'hit'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("This is it: ")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.card:nth-child(2)').dataset.said === 'miss'")
    page.locator("#open-archive").click()
    section = page.locator("#archive section", has_text="Marked answers")
    section.get_by_role("heading", name="Marked answers: 1 right, 1 wrong").wait_for()
    assert section.locator(".commands").inner_text().splitlines() == [
        "clipreel pairs write marked.jsonl",
        "clipreel tune marked.jsonl",
    ]
    section.get_by_role("button", name="Take back: This is it, the long table.mp4 0:06–0:09").press("Enter")
    section.get_by_role("heading", name="Marked answers: 0 right, 1 wrong").wait_for()
    assert page.evaluate("document.activeElement.closest('.marked') !== null")
    assert not section.locator(".commands").is_visible()  # wrong answers alone teach nothing
    assert [m["judgement"] for m in marks(archive)] == ["miss"]


def test_only_answers_to_words_are_marked(open_page):
    page = open_page()
    page.locator(CARDS).first.wait_for()
    assert page.locator(".judge").count() == 0  # nothing is asked
    ask(page, RING)
    wait_first(page, "the long table.mp4")
    assert page.locator(".judge").count() == 12
    page.locator(CARDS).first.hover()
    page.get_by_role("button", name="More like the long table.mp4").click()
    page.locator(".pill").wait_for()
    until(page, "document.querySelectorAll('.card:not(.ghost)').length > 3 && !document.querySelector('.judge')")


def test_a_server_that_only_reads_says_so(open_page):
    page = asked(open_page)
    line = "another server writes this index"
    refused = {"version": 1, "error": {"code": "read-only", "message": line}}
    page.route("**/api/v1/pairs", lambda route: route.fulfill(status=409, json=refused))
    page.locator(f"{CARDS} .shot").first.focus()
    page.keyboard.press("y")
    page.locator(".toast.bad", has_text=line).wait_for()
    assert page.locator(CARDS).first.get_attribute("data-said") == ""
