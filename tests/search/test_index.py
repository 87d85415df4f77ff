"""The life of an index: what is new, moved, gone, broken; and what survives a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.index import Index, NoIndex
from clipreel.search.indexer import Report, facts_of, update
from clipreel.search.library import walk
from clipreel.search.query import Filter, Hit, Query, Searcher, best_per_file
from clipreel.search.vectors import MOST_FRAMES, spread, vectors_of
from clipreel.video.content import content_hash
from clipreel.video.decode import Stream
from clipreel.video.packets import VideoInfo
from clipreel.video.shots import Segments
from clipreel.video.transforms import Preprocess
from tests.search.tiny import library, new_index, tiny_model
from tests.video.make import write


def run(index: Index, folder: Path) -> Report:
    return update(index, tiny_model(), [str(folder)])


def content(index: Index) -> dict[str, list[list[float]]]:
    """Vectors by path, to compare whole indexes."""
    m = index.moments()
    return {f.path: m.vectors[m.file == i].round(4).tolist() for i, f in enumerate(m.files)}


def test_second_run_does_nothing(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    first = run(index, folder)
    assert (first.indexed, first.unchanged, first.skipped) == (3, 0, [])
    before = content(index)
    again = run(index, folder)
    assert (again.indexed, again.unchanged, again.vectors) == (0, 3, 0)
    assert content(Index(tmp_path / "i")) == before


def test_whole_videos_and_segments(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v", ("a.mp4",)), new_index(tmp_path / "i")
    run(index, folder)
    m = index.moments()
    assert m.level.tolist() == [0, 1, 1]  # one second in windows of half a second
    assert m.start_s.tolist() == [0.0, 0.0, 0.5]
    np.testing.assert_allclose(np.linalg.norm(m.vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("mode", ["windows", "shots"])
@pytest.mark.parametrize("pooled", [True, False])
def test_few_frames_of_a_long_video_are_held(mode: str, pooled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, count, alive, most = tiny_model(), 500, [0], [0]
    monkeypatch.setattr(type(model), "pools_frames", pooled)
    shown = torch.randint(0, 255, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    class Counted:
        """A frame of which `vectors_of` takes a copy that is counted."""

        def __init__(self, n: int) -> None:
            self.pixels = shown[n : n + 1]

        def __getitem__(self, key: int) -> torch.Tensor:
            return self.pixels[key]

        def clone(self) -> torch.Tensor:
            copy = self.pixels.clone()
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            weakref.finalize(copy, lambda: alive.__setitem__(0, alive[0] - 1))
            return copy

    info = VideoInfo(Path("x"), count / 2.0, 2.0, 16, 16, "x", 0.0, count, True)
    video = Stream(info, count, [], ((n / 2.0, Counted(n)) for n in range(count)))
    rows = vectors_of(model, Segments(mode, 6.0, 0.5, 2.0), video)
    assert len(rows) > 80
    assert most[0] <= 2 * 12 + MOST_FRAMES + model.sampling.frames + 20  # two windows, a batch, the whole, the cuts
    whole = [shown[i] for i in spread(count, model.sampling.frames)]
    wanted = model.encode_video(model.preprocess.normalise(torch.stack(whole))[None])[0]
    np.testing.assert_allclose(rows[0]["vector"], wanted, atol=1e-5)


def test_moves_changes_and_deletions(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    run(index, folder)
    before = content(index)
    (folder / "a.mp4").rename(folder / "sub" / "moved.mp4")
    write(folder / "b.mp4", frames=30)
    (folder / "sub" / "c.mkv").unlink()
    report = run(index, folder)
    assert (report.moved, report.indexed, report.forgotten) == (1, 1, 2)
    after = content(index)
    assert set(after) == {str(folder / "sub" / "moved.mp4"), str(folder / "b.mp4")}
    assert after[str(folder / "sub" / "moved.mp4")] == before[str(folder / "a.mp4")]
    assert after[str(folder / "b.mp4")] != before[str(folder / "b.mp4")]


def test_a_touched_file_is_not_encoded_again(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    run(index, folder)
    os.utime(folder / "a.mp4", (1, 1))
    report = run(index, folder)
    assert (report.indexed, report.unchanged) == (0, 3)
    assert run(index, folder).unchanged == 3


def test_a_copy_is_a_video_of_its_own(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v", ("a.mp4",)), new_index(tmp_path / "i")
    run(index, folder)
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    assert run(index, folder).indexed == 1
    assert len(index.moments().files) == 2


def test_a_missing_folder_forgets_nothing(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    run(index, folder)
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(ClipreelError, match="nothing was changed"):
        run(index, folder)
    assert len(index.moments().files) == 3


def test_broken_files_are_listed_each_time_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    (folder / "bad.mp4").write_text("no video")
    (folder / "empty.mp4").write_bytes(b"")
    for _ in range(2):
        report = run(index, folder)
        assert sorted((os.path.basename(p), r) for p, r in report.skipped) == [
            ("bad.mp4", "not-video"),
            ("empty.mp4", "empty"),
        ]
    assert len(index.moments().files) == 3
    write(folder / "bad.mp4", frames=12)
    assert run(index, folder).indexed == 1


@dataclass(frozen=True)
class Hanging(Preprocess):
    """Never ends with a bright frame, as some codecs do within one packet."""

    def pixels(self, frames: torch.Tensor) -> torch.Tensor:
        if frames.float().mean() > 200:
            time.sleep(1e6)
        return super().pixels(frames)


def test_a_codec_that_hangs_is_one_entry_and_indexing_goes_on(tmp_path: Path) -> None:
    folder = library(tmp_path / "v")
    write(folder / "aa.mp4", frames=28)  # frame 25 and those behind it are bright
    write(folder / "zz.mp4", frames=10)
    plain = tiny_model()
    model = Retriever(
        plain.clip, tokenizer=plain.tokenizer, preprocess=Hanging(16, "uint8"), sampling=plain.sampling, name="hanging"
    )
    index = Index.create(tmp_path / "i", facts_of(model, Segments("windows", 0.5, 0.0, 12.0)))
    report = update(index, model, [str(folder)], timeout_s=2.0)
    assert [(Path(p).name, r) for p, r in report.skipped] == [("aa.mp4", "timeout")]
    assert {Path(f.path).name for f in index.moments().files} == {"a.mp4", "b.mp4", "c.mkv", "zz.mp4"}
    again = update(index, model, [str(folder)], timeout_s=2.0)
    assert (again.indexed, len(again.skipped)) == (0, 1)  # named, and not waited for again


def test_a_higher_time_limit_gives_slow_files_another_chance(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v", ("a.mp4",)), new_index(tmp_path / "i")
    report = update(index, tiny_model(), [str(folder)], timeout_s=0.0)
    assert [r for _, r in report.skipped] == ["timeout"]
    assert update(index, tiny_model(), [str(folder)], timeout_s=0.0).indexed == 0
    report = update(index, tiny_model(), [str(folder)], timeout_s=60.0)
    assert (report.indexed, report.skipped) == (1, [])
    assert len(index.list_files()) == 1


def test_strange_names(tmp_path: Path) -> None:
    names = (b"with blank.mp4", b"two\nlines.mp4", "Büro 漢字.mp4".encode(), b"broken\xff.mp4", b"it's.mp4", b"-x.mp4")
    folder, index = tmp_path / "v", new_index(tmp_path / "i")
    folder.mkdir()
    source = write(tmp_path / "source.mp4", frames=12).read_bytes()
    for n, name in enumerate(names):
        with open(os.fsencode(folder) + b"/" + name, "wb") as f:
            f.write(source + bytes(n))  # trailing bytes make each a content of its own
    assert run(index, folder).indexed == len(names)
    assert {os.fsencode(f.path).rsplit(b"/", 1)[1] for f in index.moments().files} == set(names)
    hits = Searcher(index, tiny_model()).search(Query(["a red circle"]), 10)
    assert len(hits) == len(names)
    assert all(json.loads(h.to_json())["path"] for h in hits)
    (folder / "it's.mp4").unlink()
    assert run(index, folder).forgotten == 1


def test_hidden_files_other_files_and_links(tmp_path: Path) -> None:
    folder = library(tmp_path / "v", ("a.mp4", ".hidden.mp4", ".trash/b.mp4"))
    (folder / "note.txt").write_text("x")
    (folder / "loop").symlink_to(folder)
    assert [Path(f.path).name for f in walk(folder, [])] == ["a.mp4"]


def test_content_hash_sees_start_middle_and_end(tmp_path: Path) -> None:
    path = tmp_path / "x"
    data = bytearray(5 << 20)
    marks = set()
    for at in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] = 1
        path.write_bytes(changed)
        marks.add(content_hash(str(path)))
    assert len(marks) == 3


def test_models_never_mix(tmp_path: Path) -> None:
    index = new_index(tmp_path / "i")
    with pytest.raises(ClipreelError, match="was made with tiny-0"):
        Searcher(index, tiny_model(1))
    with pytest.raises(ClipreelError, match="another --index"):
        update(index, tiny_model(1), [str(library(tmp_path / "v"))])


def test_second_writer_is_told_to_wait_and_readers_go_on(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    run(index, folder)
    other = Index(tmp_path / "i")
    with index.writing():
        with pytest.raises(ClipreelError, match=f"pid {os.getpid()}"):
            run(other, folder)
        assert len(Searcher(other, tiny_model()).search(Query(["a circle"]), 5)) == 3


def test_a_reader_sees_what_another_process_wrote(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v", ("a.mp4",)), new_index(tmp_path / "i")
    searcher = Searcher(Index(tmp_path / "i"), tiny_model())
    assert searcher.search(Query(["a circle"])) == []
    run(index, folder)
    assert len(searcher.search(Query(["a circle"]))) == 1


SLOW_RUN = """
import sys, time
from clipreel.search import indexer
from clipreel.search.index import Index, NoIndex
from tests.search.tiny import tiny_model
indexer.STORE_EVERY = 2
real = indexer.vectors_of
def slow(*args):
    time.sleep(0.1)
    return real(*args)
indexer.vectors_of = slow
print("ready", flush=True)
def progress(done, total, report):
    print(done, flush=True)
indexer.update(Index(sys.argv[1]), tiny_model(), [sys.argv[2]], workers=1, progress=progress)
"""


def test_kill_at_any_point_loses_and_doubles_nothing(tmp_path: Path) -> None:
    folder = library(tmp_path / "v", tuple(f"{n}.mp4" for n in range(12)))
    wanted = new_index(tmp_path / "whole")
    run(wanted, folder)
    index = new_index(tmp_path / "i")
    rng = random.Random(0)
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", SLOW_RUN, index.place, str(folder)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(3):  # after the third, two are stored
            assert child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.wait()
    again = Index(tmp_path / "i")
    seen = len(again.moments().files)
    run(again, folder)
    assert content(again) == content(wanted)
    assert again.vectors.count_rows() == wanted.vectors.count_rows()
    assert 2 <= seen < 12


def test_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    run(index, folder)
    write(folder / "new.mp4", frames=20)

    class Full:
        schema = index.vectors.schema

        def merge_insert(self, key: str) -> None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(index, "vectors", Full())
        m.setattr(index, "sweep", lambda: 0)
        with pytest.raises(ClipreelError, match="is full; what was stored before is safe"):
            run(index, folder)
    assert len(Index(tmp_path / "i").moments().files) == 3
    assert run(Index(tmp_path / "i"), folder).indexed == 1


def test_no_index_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(NoIndex, match="clipreel index FOLDER"):
        Index(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(NoIndex, match="clipreel index FOLDER"):
        Index(tmp_path / "other")
    (tmp_path / "other" / "a.mp4").write_text("of the user")
    with pytest.raises(ClipreelError, match="not a whole clipreel index"):
        Index(tmp_path / "other")
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    run(index, folder)
    for path in (tmp_path / "i").rglob("*.lance"):
        if path.is_file():
            path.write_bytes(b"damage")
    with pytest.raises(ClipreelError, match="delete that folder and index again"):
        Index(tmp_path / "i").moments()


def test_segments_by_shots(tmp_path: Path) -> None:
    folder, index = library(tmp_path / "v", ("a.mp4",)), new_index(tmp_path / "i", Segments("shots", 0.5, 0.0, 4.0))
    assert run(index, folder).vectors >= 1


def searcher_over(tmp_path: Path) -> Searcher:
    folder, index = library(tmp_path / "v"), new_index(tmp_path / "i")
    run(index, folder)
    return Searcher(index, tiny_model())


def test_answers_are_exact_and_in_order(tmp_path: Path) -> None:
    searcher = searcher_over(tmp_path)
    hits = searcher.search(Query(["a red circle"]), 3)
    m, q = searcher.index.moments(), searcher.vector(Query(["a red circle"]))
    scores = m.vectors @ q  # all at once, as a search does: other shapes round otherwise
    best = {f.path: scores[m.file == i].max() for i, f in enumerate(m.files)}
    # the films begin alike, so their best moments differ by roundings: scores tell the order, not names
    assert sorted(h.path for h in hits) == sorted(best)
    assert [h.score for h in hits] == pytest.approx(sorted(best.values(), reverse=True))
    assert [h.score for h in hits] == pytest.approx([best[h.path] for h in hits])
    assert sorted((h.score for h in hits), reverse=True) == [h.score for h in hits]
    assert all(0 <= h.start_s < h.end_s <= h.duration_s + 1e-3 for h in hits)
    assert len(searcher.search(Query(["a red circle"]), 1)) == 1


def test_equal_scores_come_in_order_of_path(tmp_path: Path) -> None:
    m = searcher_over(tmp_path).index.moments()
    hits = best_per_file(m, np.zeros(len(m.vectors), np.float32), 9)
    assert [h.path for h in hits] == sorted(f.path for f in m.files)


def test_filters(tmp_path: Path) -> None:
    searcher, folder = searcher_over(tmp_path), tmp_path / "v"

    def names(f: Filter) -> list[str]:
        return sorted(Path(h.path).name for h in searcher.search(Query(["a circle"], filter=f), 10))

    assert names(Filter(under=str(folder / "sub"))) == ["c.mkv"]
    assert names(Filter(name="B.MP4")) == ["b.mp4"]
    assert names(Filter(min_duration_s=1.2)) == ["b.mp4", "c.mkv"]
    assert names(Filter(max_duration_s=1.2)) == ["a.mp4"]
    assert names(Filter(after_s=1.6)) == ["c.mkv"]
    assert names(Filter(under=str(folder / "su"))) == []


def test_queries_by_video_image_and_minus(tmp_path: Path) -> None:
    from PIL import Image

    searcher, folder = searcher_over(tmp_path), tmp_path / "v"
    hit: Hit = searcher.search(Query(videos=[str(folder / "b.mp4")]), 1)[0]
    assert Path(hit.path).name == "b.mp4"
    assert hit.score == pytest.approx(1.0, abs=1e-3)
    Image.new("RGB", (30, 20), (8, 8, 8)).save(tmp_path / "x.png")
    assert len(searcher.search(Query(images=[str(tmp_path / "x.png")]), 3)) == 3
    plain, less = (searcher.vector(Query(["a red circle"], minus)) for minus in ([], ["red"]))
    red = tiny_model().encode_text(["red"])[0].numpy()
    assert red @ less < red @ plain
    with pytest.raises(ClipreelError, match="no readable image"):
        searcher.search(Query(images=[str(folder / "a.mp4")]))


def test_typed_queries() -> None:
    q = Query.parse("dog on a-beach -people - -7 degrees")
    assert (q.texts, q.minus) == (["dog on a-beach - -7 degrees"], ["people"])


def test_unfit_queries(tmp_path: Path) -> None:
    searcher = searcher_over(tmp_path)
    for empty in ("", "   ", "\x00\x07", "<|endoftext|>"[:0]):
        with pytest.raises(ClipreelError, match="query is empty"):
            searcher.search(Query([empty]))
    with pytest.raises(ClipreelError, match="10000 words"):
        searcher.search(Query(["word " * 10000]))
    with pytest.raises(ClipreelError, match="at least 1"):
        searcher.search(Query(["a"]), 0)
    a, b = (searcher.vector(Query([t])) for t in ("a red circle", "a red\x00 <|endoftext|> circle"))
    np.testing.assert_allclose(a, b, atol=1e-6)
