"""What tests of the page do again and again."""

from __future__ import annotations

from playwright.sync_api import Page

RING = "a purple cross goes left behind a white ring"  # in "the long table", from second 6
CARDS = ".card:not(.ghost)"


def until(page: Page, condition: str) -> None:
    """Wait until a condition holds in the page (a function, because its policy forbids to evaluate text)."""
    page.wait_for_function(f"() => {condition}")


def names(page: Page) -> list[str]:
    return page.locator(f"{CARDS} .name").all_text_contents()


def ask(page: Page, text: str) -> None:
    """Type a question and wait for its answer."""
    with page.expect_response(lambda r: r.url.endswith("/search")):
        page.locator("#q").fill(text)
    until(page, "!document.body.classList.contains('waiting')")


def wait_first(page: Page, name: str) -> None:
    until(page, f"document.querySelector('{CARDS} .name')?.textContent === {name!r}")
