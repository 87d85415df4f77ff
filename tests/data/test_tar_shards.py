"""Shards: made, found again, made anew where they changed; cut, damaged and foreign ones lose nothing in silence."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from clipreel.cli import main
from clipreel.data import tar_shards
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shard_files import check_shards, make_shards
from clipreel.data.tar_shards import Damaged, open_shards, parse
from clipreel.errors import ClipreelError


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return ShapesWorld().write_videos(tmp_path_factory.mktemp("films"), "val", count=7)


@pytest.fixture
def made(films: list[Sample], tmp_path: Path) -> Path:
    make_shards(films, tmp_path / "s", per_shard=3, generated={s.id: f"still of {s.id}" for s in films})
    return tmp_path / "s"


def test_every_sample_comes_back(films: list[Sample], made: Path) -> None:
    shards = open_shards(made)
    assert (shards.counts, shards.problems) == ([3, 3, 1], [])
    assert shards.ids() == [s.id for s in films]
    found = [data for i, n in enumerate(shards.counts) for data in shards.read(i, range(n))]
    for data, sample in zip(found, films, strict=True):
        film = parse(data, "")
        assert (film.id, film.captions, film.generated) == (sample.id, sample.captions, f"still of {sample.id}")
        assert film.video == sample.video.read_bytes()
        assert film.suffix == ".mp4"
    with tarfile.open(made / "shard-000001.tar") as tar:  # any reader of WebDataset
        assert [m.name for m in tar][:3] == ["000000.json", "000000.mp4", "000001.json"]
    alone = open_shards(made).read(0, [0, 2])
    assert [parse(d, "").id for d in alone] == [films[0].id, films[2].id]


def test_a_second_run_keeps_what_did_not_change(films: list[Sample], made: Path) -> None:
    said = {s.id: f"still of {s.id}" for s in films}
    before = {p.name: p.read_bytes() for p in made.iterdir()}
    again = make_shards(films, made, per_shard=3, generated=said)
    assert (again.made, again.kept, again.samples) == (0, 3, 7)
    (made / "shard-000002.tar").unlink()
    changed = [*films[:4], replace(films[4], captions=("another",)), *films[5:]]
    again = make_shards(changed, made, per_shard=3, generated=said)
    assert (again.made, again.kept) == (2, 1)
    assert (made / "shard-000002.tar").read_bytes() == before["shard-000002.tar"]
    assert (made / "shard-000001.tar").read_bytes() != before["shard-000001.tar"]
    assert check_shards(str(made)).problems == []
    with pytest.raises(ClipreelError, match="which is none of these shards"):
        make_shards(films[:3], made, per_shard=3)
    with pytest.raises(ClipreelError, match=f"none for 1 of 7 samples .the first: '{films[0].id}'"):
        make_shards(films, made, generated={s.id: "x" for s in films[1:]})


def test_parts_and_files_that_are_not_there(films: list[Sample], tmp_path: Path) -> None:
    part = replace(films[0], id="part", start_s=0.5, end_s=1.0)
    gone = replace(films[1], video=tmp_path / "gone.mp4")
    found = make_shards([part, gone, films[2]], tmp_path / "s")
    assert found.skipped == [(str(tmp_path / "gone.mp4"), "missing")]
    shards = open_shards(tmp_path / "s")
    film = parse(shards.read(0, [0])[0], "")
    assert (film.start_s, film.end_s, film.generated) == (0.5, 1.0, None)
    assert shards.ids() == ["part", films[2].id]


def test_a_cut_shard_loses_what_it_loses_and_says_so(made: Path, films: list[Sample]) -> None:
    shard = made / "shard-000001.tar"
    whole = shard.read_bytes()
    ends = [end for _, end in open_shards(made).contents(1).spans]
    shard.write_bytes(whole[: ends[0] + 100])
    shards = open_shards(made)
    assert shards.counts == [3, 1, 1]
    [(place, said)] = shards.problems
    assert place.endswith("shard-000001.tar")
    assert f"cut to {ends[0] + 100} of {len(whole)} bytes: 2 of 3 samples lost, the first: {films[4].id!r}" in said
    checked = check_shards(str(made))
    assert (checked.samples, checked.lost) == (5, 2)
    assert any("2 of 3 samples lost" in p for _, p in checked.problems)
    shard.write_bytes(whole)
    assert check_shards(str(made)).problems == []
    shard.write_bytes(whole[:10_000] + b"?" + whole[10_001:])  # inside a video
    [(_, said)] = check_shards(str(made)).problems
    assert said == "has other bytes than when it was indexed"
    shard.unlink()
    with pytest.raises(ClipreelError, match=r"1 of 3 shards of .* are not there"):
        open_shards(made)
    assert check_shards(str(made)).lost == 3


def foreign(path: Path, samples: list[dict[str, bytes]]) -> bytes:
    """A shard as other tools write it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                info = tarfile.TarInfo(f"part/{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    path.write_bytes(out.getvalue())
    return out.getvalue()


def test_foreign_shards_are_indexed(films: list[Sample], tmp_path: Path) -> None:
    video = films[0].video.read_bytes()
    samples = [
        {"mp4": video, "txt": b"a dog"},
        {"mp4": video, "json": b'{"caption": "a cat", "id": "cat"}'},
        {"json": b'{"caption": "nothing to see"}'},
        {"mp4": video},
        {"mp4": video, "json": b"{"},
        {"mp4": video, "json": b'{"caption": " "}'},
        {"mp4": b"no video at all", "txt": b"broken"},
    ]
    data = foreign(tmp_path / "a-000.tar", samples)
    foreign(tmp_path / "a-001.tar", samples[:2])
    with pytest.raises(ClipreelError, match=r"no shards.jsonl.*clipreel shards"):
        open_shards(tmp_path)
    found = check_shards(str(tmp_path), decode=True)
    assert (found.shards, found.samples, found.lost, found.indexed) == (2, 4, 5, True)
    assert "4 samples are left out: 'part/0002' (no video), 'part/0003' (no text)" in found.problems[0][1]
    assert found.problems[1] == (f"{tmp_path}/a-000.tar/part/0006", "not-video")
    shards = open_shards(tmp_path)
    assert shards.ids() == ["part/0000", "cat", "part/0000", "cat"]  # no run meets part/0006 again
    assert [p for _, p in shards.problems][1:] == ["1 samples are left out, whose videos give no frame"]
    again = check_shards(str(tmp_path), decode=True)
    assert (again.samples, again.lost, again.problems) == (4, 5, shards.problems)
    assert [parse(d, "x").captions for d in shards.read(0, [0, 1])] == [("a dog",), ("a cat",)]
    # cut in the middle of a video, and exactly between two samples
    for end, samples_left, said in (
        (shards.contents(0).spans[1][1] - 3000, 1, "'part/0001' (cut 1976 bytes"),
        (shards.contents(0).spans[0][1], 1, "its end mark is missing"),
    ):
        (tmp_path / "a-000.tar").write_bytes(data[:end])
        again = check_shards(str(tmp_path), renew=True)
        assert again.samples == samples_left + 2
        assert any(said in p for _, p in again.problems), again.problems
    pattern = check_shards(f"{tmp_path}/a-{{000..001}}.tar", index=tmp_path / "index")
    assert (pattern.shards, pattern.indexed) == (2, True)
    assert len(open_shards(tmp_path / "index").ids()) == 3


def test_shards_anywhere_fsspec_reaches(made: Path, films: list[Sample]) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for path in made.iterdir():
        fs.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    shards = open_shards("memory://bucket")
    assert shards.ids() == [s.id for s in films]
    assert parse(shards.read(2, [0])[0], "").video == films[6].video.read_bytes()
    assert check_shards("memory://bucket").samples == 7
    found = check_shards("memory://bucket", index=made / "index")
    assert (found.samples, found.indexed) == (7, True)
    again = open_shards(made / "index")
    assert again.url(0).startswith("memory://")
    assert parse(again.read(0, [1])[0], "").id == films[1].id
    with pytest.raises(ClipreelError, match="say --index FOLDER"):
        check_shards("memory://bucket/*.tar")
    with pytest.raises(ClipreelError, match="cannot be opened"):
        open_shards("nowhere://bucket")


def test_a_read_that_fails_once_is_tried_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(made)
    tried: list[str] = []

    def shaky(url: str, start: int | None = None, end: int | None = None) -> bytes:
        if url.endswith(".tar"):
            tried.append(url)
            if len(tried) in failing:
                raise TimeoutError("no answer")
        return get(url, start, end)

    get = tar_shards.get
    monkeypatch.setattr(tar_shards, "get", shaky)
    monkeypatch.setattr(tar_shards, "WAITS_S", (0.0, 0.0))
    failing = {1, 2}
    [data] = shards.read(0, [1])
    assert parse(data, "").id == shards.contents(0).ids[1]
    assert len(tried) == 3
    failing = {4, 5, 6}
    with pytest.raises(ClipreelError, match=r"shard-000000.tar cannot be read \(no answer\); the same command goes on"):
        shards.read(0, [1])


def test_samples_that_cannot_be_used() -> None:
    def tar(**members: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as made:
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"a.{suffix}")
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
        return out.getvalue()

    for data, said in (
        (tar(json=b"{}"), "no video"),
        (tar(mp4=b"x"), "no 'txt'"),
        (tar(mp4=b"x", json=b"[1]"), "damaged"),
        (tar(mp4=b"x", json=b'{"caption": ""}'), "no caption"),
        (tar(mp4=b"x", json=b'{"caption": "a", "start_s": "soon"}'), "damaged"),
        (b"?" * 512, "not readable as tar"),
    ):
        with pytest.raises(Damaged, match=said):
            parse(data, "a")


def test_the_command(films: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(films[0].video.parent), str(tmp_path / "s")
    assert main(["shards", data, "--out", out, "--per-shard", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 7
    assert main(["shards", out, "--decode"]) == 0
    assert "7 whole samples in 2 shards" in capsys.readouterr().out
    path = tmp_path / "s" / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    assert main(["shards", out]) == 1
    said = capsys.readouterr()
    assert "3 whole samples in 2 shards, 4 known to be lost" in said.out
    assert "4 of 4 samples lost" in said.err
    assert main(["shards", str(tmp_path / "none")]) == 2
    assert "there are no .tar files" in capsys.readouterr().err
    for wrong in (["--out", f"{path}/x"], ["--index", f"{path}/x"]):
        assert main(["shards", data if "--out" in wrong else out, *wrong]) == 2
        assert "cannot be made (Not a directory); name another folder" in capsys.readouterr().err
    assert main(["shards", data, "--out", out, "--per-shard", "0"]) == 2
