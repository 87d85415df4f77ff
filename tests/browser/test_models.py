"""A migration in the archive: both models, how saved queries moved, and the switch, which is asked for twice."""

from __future__ import annotations

import json
import re

import pytest

from clipreel.search import migrate
from tests.browser.contrast import readable
from tests.browser.steps import CARDS, RING, ask, until, wait_first

NEW = "shapes-tiny + my footage"
FOLLOWED_MS = 60_000  # a model that could not be loaded is tried again now and then


def test_another_model_is_switched_to_and_back(open_page, moving, picture):
    page = open_page(served=moving)
    page.locator("#open-archive").click()
    section = page.locator("#archive .models")
    section.get_by_role("heading", name="Moving to another model").wait_for()
    rows = section.get_by_role("row").all_inner_texts()
    told = [re.split(r"\s*[\t\n]\s*", row) for row in rows]
    assert [(row[0], row[-1]) for row in told] == [("shapes-tiny", "Answers now"), (NEW, "Next")]
    assert all("4 videos" in row for row in rows)
    line = section.locator(".hint").first.inner_text()
    assert re.match(r"Of 2 saved queries, [012] keeps? .* best answer; \d+ % of all remembered answers", line)
    section.get_by_role("button", name=f"Switch to {NEW}").press("Enter")
    sure = section.get_by_role("group", name=re.compile("Switch to .* It answers from then on"))
    sure.wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Keep the present one"  # the harmless one first
    picture(page, "models")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'switch'")
    assert section.locator(".active th").evaluate("(th) => th.firstChild.textContent") == "shapes-tiny"
    page.keyboard.press("Enter")
    section.get_by_role("button", name="Switch now").click()
    page.locator(".toast", has_text=f"{NEW} answers now").wait_for()
    until(page, f"document.querySelector('.models .active th').firstChild.textContent === {NEW!r}")
    section.get_by_role("heading", name="Moved to another model").wait_for()
    page.keyboard.press("Escape")
    until(page, "document.querySelector('#adapters .label').textContent === 'my footage'")
    with page.expect_response(lambda r: r.url.endswith("/search")) as answer:
        ask(page, RING)
    assert {hit["adapter"] for hit in answer.value.json()["hits"]} == {"my footage"}
    wait_first(page, "the long table.mp4")
    page.locator("#open-archive").click()
    section.get_by_role("button", name="Switch back to shapes-tiny").click()
    section.get_by_role("button", name="Switch now").click()
    until(page, "document.querySelector('.models .active th').firstChild.textContent === 'shapes-tiny'")


def test_a_switch_made_elsewhere_is_told_and_followed(open_page, moving, adapter):
    page = open_page(served=moving)
    ask(page, RING)
    label = page.locator("#adapters .label")
    assert label.inner_text() == "shapes-tiny"
    away = adapter.rename(adapter.with_name("away"))
    try:
        migrate.switch(str(moving.index))
        ask(page, "a little yellow bar")
        page.locator("#state", has_text="comes back with: clipreel migrate --undo").wait_for(timeout=FOLLOWED_MS)
        away.rename(adapter)
        page.locator(CARDS).first.wait_for(timeout=FOLLOWED_MS)  # nothing was pressed
        page.locator("#adapters .label", has_text="my footage").wait_for()
        migrate.undo(str(moving.index))
        ask(page, RING)
        wait_first(page, "the long table.mp4")
    finally:
        if away.is_dir():
            away.rename(adapter)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_queries_that_moved_are_listed_first(open_page, scheme):
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.locator(CARDS).first.wait_for()
    both = [
        {"name": "small", "role": "current", "active": True, "ready": True, "videos": 12, "bytes": 1e6, "age_s": 90000},
        {"name": "large", "role": "next", "active": False, "ready": True, "videos": 12, "bytes": 2e6, "age_s": 60},
    ]
    moved = [{"query": f"query {n}", "overlap": n / 10, "first": n or None, "warns": n != 1} for n in range(9)]
    told = {"version": 1, "models": both, "canary": {"at": "", "warnings": 8, "queries": moved}}
    page.route("**/api/v1/models", lambda route: route.fulfill(json=told))
    page.locator("#open-archive").click()
    lines = page.locator(".moved li")
    lines.first.wait_for()
    assert lines.nth(0).inner_text() == "“query 0”\n0 % the same, the former best is not among the first 10"
    assert lines.nth(1).inner_text() == "“query 2”\n20 % the same, the former best is now 2nd"
    assert lines.last.inner_text() == "and 3 more: clipreel migrate prints all"
    assert "Of 9 saved queries, 1 keeps its best answer; 40 %" in page.locator(".models .hint").inner_text()
    page.locator("#switch").click()
    readable(page)


def test_a_switch_that_cannot_be_is_explained(open_page):
    page = open_page()
    page.locator(CARDS).first.wait_for()

    def told(route):
        if route.request.method == "POST":
            error = {"code": "busy", "message": "an index job runs; stop it or wait for it"}
            return route.fulfill(status=409, json={"version": 1, "error": error})
        one = {"videos": 12, "bytes": 1, "age_s": 1}
        models = [
            {**one, "name": "small", "role": "current", "active": True, "ready": True},
            {**one, "name": "a/large", "role": "next", "active": False, "ready": ready},
        ]
        return route.fulfill(body=json.dumps({"version": 1, "models": models, "canary": None}))

    ready = False
    page.route("**/api/v1/models", told)
    page.route("**/api/v1/models/a%2Flarge/activate", told)
    page.locator("#open-archive").click()
    page.get_by_text("a/large has not seen every video yet").wait_for()
    assert page.locator("#switch").count() == 0
    page.keyboard.press("Escape")
    ready = True
    page.locator("#open-archive").click()
    page.locator("#switch").click()
    page.get_by_text("No query is saved, so nothing was compared").wait_for()
    page.get_by_role("button", name="Switch now").click()
    page.locator(".toast.bad", has_text="An index job runs").wait_for()
    until(page, "document.activeElement.id === 'switch'")
