"""What is searched for can become the archive's own bank of queries: kept here, bounded, forgotten on demand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from clipreel.cli import main
from clipreel.errors import ClipreelError
from clipreel.search.bank import OFFERED, bank_of, remember, remembered
from clipreel.search.index import Index
from clipreel.server import asked
from clipreel.server.asked import Asked
from clipreel.server.messages import Like, Search
from tests.server.conftest import API, Serve, ids, services


def kept(client: TestClient, place: str) -> list[str]:
    assert client.portal is not None
    client.portal.call(services(client).asked.keep, 0.0)
    return remembered(Index(place))


def test_texts_are_kept_and_forgotten(serve: Serve, own_archive: tuple[Path, str]) -> None:
    place = own_archive[1]
    client = serve(place, remember=True)
    for text in ("a r", "a red", "a red circle -blue", "A star", "  "):
        client.get(f"{API}/search", params={"q": text, "offset": 0})
    client.get(f"{API}/search", params={"q": "next page", "offset": 24})
    client.get(f"{API}/similar", params={"video": ids(client)["a.mp4"]})
    client.post(f"{API}/search", json={"text": "wrong", "adapters": ["none"]})
    assert client.get(f"{API}/queries").json() == {"version": 1, "remembers": True, "total": 0}  # none has stood yet
    assert kept(client, place) == ["a red circle", "A star"]  # what was typed on the way is not
    assert client.get(f"{API}/queries").json()["total"] == 2
    assert client.delete(f"{API}/queries").json() == {"version": 1, "remembers": True, "total": 0}
    assert not Path(place).with_name("index.queries.jsonl").exists()


def test_nothing_is_kept_unless_the_server_was_told(serve: Serve, own_archive: tuple[Path, str]) -> None:
    for settings in ({}, {"remember": True, "read_only": "another server does"}):
        client = serve(own_archive[1], **settings)
        client.get(f"{API}/search", params={"q": "a red circle"})
        assert kept(client, own_archive[1]) == []
        assert client.get(f"{API}/queries").json()["remembers"] is False


def test_what_waits_is_bounded_and_images_are_never_kept(own_archive: tuple[Path, str]) -> None:
    index = Index(own_archive[1])
    taken = Asked(index, True)
    taken.note(Search(text="like this", images=["x"]))
    taken.note(Search(text="like that", like=[Like(video="x")]))
    taken.note(Search(text="x" * (asked.MOST_CHARS + 1)))
    for n in range(asked.WAITING + 50):
        taken.note(Search(text=f"{n:03d} dogs"))
    asyncio.run(taken.keep())
    assert remembered(index) == []
    asyncio.run(taken.keep(0.0))
    assert remembered(index) == [f"{n:03d} dogs" for n in range(50, asked.WAITING + 50)]


def test_indexing_offers_the_bank_and_takes_it(
    own_archive: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = own_archive[1]
    remember(Index(place), [f"a dog, seen {n} times" for n in range(OFFERED)])
    assert main(["index", "--index", place, "--workers", "1"]) == 1
    assert f"{OFFERED} asked queries are kept; --bank past" in capsys.readouterr().err
    assert main(["index", "--index", place, "--bank", "past", "--workers", "1"]) == 1
    assert "--bank past" not in capsys.readouterr().err
    index = Index(place)
    assert index.facts["calibration"]["bank"] == "past"
    assert index.facts["calibration"]["fingerprint"] == bank_of(index, "past").fingerprint


def test_a_disk_that_is_gone_costs_the_texts_and_nothing_else(own_archive: tuple[Path, str]) -> None:
    index = Index(own_archive[1])
    Path(own_archive[1]).rename(own_archive[1] + "-away")
    with pytest.raises(ClipreelError, match="mount its disk"):
        remember(index, ["a red circle"])
    taken = Asked(index, True)
    taken.note(Search(text="a red circle"))
    asyncio.run(taken.keep(0.0))
    asyncio.run(taken.keep(0.0))
