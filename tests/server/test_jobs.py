"""Index jobs, their events, and two servers on one index."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clipreel.cli import main
from clipreel.search.answer import Answer, Request
from clipreel.search.bank import Bank, absent
from clipreel.search.calibration import calibrate
from clipreel.search.index import Index
from clipreel.search.indexer import update
from clipreel.search.tags import Tag, store
from clipreel.server.archive import Archive
from clipreel.server.sole import claimed
from clipreel.server.together import Together
from tests.server.conftest import API, Serve, code, ids, model, services
from tests.video.make import write


def finished(client: TestClient, id: str) -> dict[str, Any]:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        job = next(j for j in client.get(f"{API}/jobs").json()["jobs"] if j["id"] == id)
        if job["state"] != "running":
            return job
        time.sleep(0.1)
    raise AssertionError("the job does not end")


def test_a_job_brings_the_index_up_to_date(serve: Serve, own_archive: tuple[Path, str]) -> None:
    videos, place = own_archive
    client = serve(place)
    before = ids(client)
    write(videos / "new.mp4", frames=12)
    (videos / "a.mp4").unlink()
    (videos / "b.mkv").rename(videos / "renamed.mkv")
    started = client.post(f"{API}/jobs", json={"kind": "index"})
    assert started.status_code == 202
    again = client.post(f"{API}/jobs", json={"kind": "index"}).json()
    assert again["id"] == started.json()["id"]  # one at a time
    job = finished(client, again["id"])
    assert (job["state"], job["done"], job["total"], job["skipped"]) == ("done", 1, 1, 1)
    assert job["counts"] == {"indexed": 1, "moved": 1, "forgotten": 1, "unchanged": 2}
    assert set(ids(client)) == {"c.avi", "new.mp4", "renamed.mkv"}  # at once: the page asks once, when it hears of it
    assert ids(client)["renamed.mkv"] == before["b.mkv"]
    hits = client.get(f"{API}/search", params={"q": "red"}).json()["hits"]
    assert {h["name"] for h in hits} == {"c.avi", "new.mp4", "renamed.mkv"}


def test_what_a_job_wrote_is_seen_however_soon_it_is_asked_for(own_archive: tuple[Path, str]) -> None:
    videos, place = own_archive
    archive, asker = Archive(Index(place)), Together(Index(place), model())

    def found() -> tuple[set[str], set[str]]:
        (answer,) = asker.answer_all([Request(text="red", k=9)])
        assert isinstance(answer, Answer)
        return {Path(f.path).name for f in archive.now().files.values()}, {h.name for h in answer.hits}

    archive.written()  # so that both have just looked
    asker.written()
    before = {"a.mp4", "b.mkv", "c.avi"}
    assert found() == (before, before)
    assert main(["forget", str(videos / "a.mp4"), "--index", place]) == 0
    archive.written()
    asker.written()
    assert found() == (before - {"a.mp4"}, before - {"a.mp4"})


@pytest.mark.parametrize("route", ["videos", "skipped", "tags", "status"])
def test_every_list_shows_what_a_job_wrote_at_once(
    serve: Serve, own_archive: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr("clipreel.server.services.TICK_S", 1000.0)  # nothing but the request itself looks at the index
    videos, place = own_archive
    client = serve(place)
    services(client).written()
    before = client.get(f"{API}/{route}").json()
    (videos / "a.mp4").write_bytes(b"not a film any more")
    update(Index(place), model(), [str(videos)], workers=1)
    store(Index(place), [Tag(str(videos / "b.mkv"), "video", 0.0, 1.0, "red", 0.9)])
    services(client).written()
    after = client.get(f"{API}/{route}").json()
    if route == "tags":
        assert (before["tags"], after["tags"]) == ([], [{"name": "red", "count": 1}])
    elif route == "skipped":
        assert after["total"] == before["total"] + 1
        assert "a.mp4" in {f["name"] for f in after["files"]} - {f["name"] for f in before["files"]}
    else:
        assert [v if route == "status" else len(v) for v in (before["videos"], after["videos"])] == [3, 2]


def test_events_tell_how_a_job_goes(
    serve: Serve, own_archive: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, place = own_archive
    bank = Bank("mine", tuple(f"a dog, seen {n} times" for n in range(40)), absent(20))
    calibrate(Index(place), model(), bank)
    (videos / "mine.txt").write_text("\n".join([*bank.texts[:39], *(f"!{t}" for t in bank.absent)]))
    Index(place).set_facts(bank=str(videos / "mine.txt"))
    names = {f"new-{n}.mp4" for n in range(3)}
    for n, name in enumerate(sorted(names)):
        write(videos / name, frames=12 + n)
    client = serve(place)
    told: list[dict[str, Any]] = []
    events = services(client).events
    send = events.send

    def noted(name: str, data: dict[str, Any]) -> None:
        told.append(dict(data))
        send(name, data)

    monkeypatch.setattr(events, "send", noted)
    job = client.post(f"{API}/jobs", json={"kind": "index"}).json()
    finished(client, job["id"])
    assert [t["state"] for t in told][:1] == ["running"]
    assert told[-1]["state"] == "done"
    assert {"id", "kind", "state", "done", "total", "eta_s", "current", "skipped"} <= set(told[0])
    # each file by its name, never by its path
    assert {t["current"] for t in told} == {None, *names}
    assert told[-1]["current"] is None
    assert (told[-1]["queries"], told[-1]["queries_total"]) == (59, 59)
    assert 32 in {t["queries"] for t in told}
    assert str(videos) not in json.dumps(told)


def test_a_job_can_be_stopped(serve: Serve, own_archive: tuple[Path, str]) -> None:
    client = serve(own_archive[1])
    job = client.post(f"{API}/jobs", json={"kind": "index"}).json()
    assert client.delete(f"{API}/jobs/{job['id']}").json()["state"] == "stopped"
    assert client.get(f"{API}/jobs").json()["jobs"][0]["ended"] is not None
    assert code(client.delete(f"{API}/jobs/none")) == (404, "no-such-job")
    assert code(client.post(f"{API}/jobs", json={"kind": "delete everything"})) == (422, "invalid")


def test_a_job_that_cannot_run_says_why(serve: Serve, own_archive: tuple[Path, str]) -> None:
    videos, place = own_archive
    client = serve(place)
    videos.rename(videos.with_name("away"))
    job = finished(client, client.post(f"{API}/jobs", json={"kind": "index"}).json()["id"])
    assert job["state"] == "failed"
    assert "mount" in job["message"]
    assert client.get(f"{API}/health").json()["videos"] == 3  # nothing is lost


def test_a_second_server_only_reads(serve: Serve, own_archive: tuple[Path, str]) -> None:
    place = own_archive[1]
    hold = "import sys; from clipreel.server.sole import claimed; from clipreel.search.index import Index; "
    hold += "print(repr(claimed(Index(sys.argv[1]))), flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", hold, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "''"
        reason = claimed(Index(place))
        assert f"pid {first.pid}" in reason
        client = serve(place, read_only=reason)
        assert code(client.post(f"{API}/jobs", json={"kind": "index"})) == (409, "read-only")
        assert client.get(f"{API}/status").json()["read_only"] == reason
        assert client.get(f"{API}/search", params={"q": "red"}).status_code == 200
    finally:
        first.communicate("")
    assert claimed(Index(place)) == ""


def test_a_newer_index_is_a_clear_message(own_archive: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    Index(own_archive[1]).set_facts(schema=99)
    assert main(["serve", "--index", own_archive[1], "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "schema 99" in said
    assert "update clipreel" in said
    assert len(said.strip().splitlines()) == 1


def test_serve_answers_and_ends(own_archive: tuple[Path, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipreel", "serve", "--index", own_archive[1], "--port", "0"]
    server = subprocess.Popen([*command, "--cache", str(tmp_path / "c")], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        address = next(word for word in said.split() if word.startswith("http://127.0.0.1:"))
        import httpx

        with httpx.Client(base_url=address, transport=httpx.HTTPTransport(retries=5)) as client:
            found = client.get(f"{API}/search", params={"q": "a red circle", "k": 1}, timeout=30).json()
        assert len(found["hits"]) == 1
        assert "token" not in said
    finally:
        server.terminate()
        assert server.wait(20) in (0, -15)


def test_serve_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--index", str(tmp_path / "none")]) == 2
    assert main(["serve", "--port", "70000"]) == 2
    said = capsys.readouterr().err
    assert "make one with" in said
    assert "70000" in said
    assert json.dumps(said)
