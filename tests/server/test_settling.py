"""What stays in memory is out of the sight of Python's collector, and comes back into it when it is garbage."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from clipreel.server.settling import Settling
from tests.server.conftest import API, Serve, services


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


class Held:
    def __init__(self) -> None:
        self.itself = self


def seen(thing: object) -> bool:
    return any(o is thing for o in gc.get_objects())


def test_what_was_the_same_twice_settles_once() -> None:
    settling, first, second = Settling(), Held(), Held()
    assert [settling.look([first]) for _ in range(4)] == [False, True, False, False]
    assert not seen(first)
    assert [settling.look([first, second]) for _ in range(3)] == [False, True, False]
    assert not seen(second)
    assert [settling.look([n]) for n in (Held(), Held(), Held())] == [False] * 3


def test_what_settled_is_collected_when_it_is_garbage() -> None:
    settling, held = Settling(), Held()
    there = weakref.ref(held)
    assert [settling.look([held]) for _ in range(2)] == [False, True]
    del held
    other = Held()
    assert [settling.look([other]) for _ in range(2)] == [False, True]
    assert there() is None


def test_the_index_of_a_server_settles(
    serve: Serve, archive: tuple[object, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipreel.server.services.TICK_S", 0.05)
    client = serve(archive[1])
    assert client.get(f"{API}/search", params={"q": "red"}).status_code == 200
    (view,) = services(client).answering[0].asker.kept.values()
    end = time.monotonic() + 60
    while seen(view.catalog) or seen(services(client).archive.last):
        assert time.monotonic() < end
        time.sleep(0.1)
