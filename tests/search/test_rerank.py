"""Frame vectors in an index, and the second look that a head takes at the best hits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel.cli import main
from clipreel.errors import ClipreelError
from clipreel.head_files import save_head, with_head
from clipreel.heads import build_head
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.query import Query, Searcher
from clipreel.search.rerank import FACT, FrameStore, Reranker, padded
from clipreel.video.shots import Segments
from tests.search.tiny import library, new_index, tiny_model

SEGMENTS = Segments("windows", 0.5, 0.0, 4.0)


def indexed(tmp_path: Path, segments: Segments = SEGMENTS) -> tuple[Path, Index]:
    """Three videos in an index that keeps their frames."""
    folder = library(tmp_path / "v")
    index = Index.create(tmp_path / "i", facts_of(tiny_model(), segments) | FACT)
    update(index, tiny_model(), [str(folder)])
    return folder, index


def owners(index: Index) -> set[str]:
    return set(FrameStore(index).table.to_arrow().column("file").to_pylist())


@pytest.mark.parametrize("segments", [SEGMENTS, Segments("none", 0.5, 0.0, 4.0)])
def test_the_mean_of_the_stored_frames_is_the_stored_vector(tmp_path: Path, segments: Segments) -> None:
    _, index = indexed(tmp_path, segments)
    searcher, query = Searcher(index, tiny_model()), Query(["a red circle"])
    found = Reranker(index, with_head(tiny_model(), "mean"))(query, searcher.search(query))
    assert len(found) == 3
    moments, vector = index.moments(), searcher.vector(query)
    for hit in found:
        of = [moments.files[i].path == hit.path for i in moments.file]
        row = np.flatnonzero(of & (moments.start_s == hit.start_s) & (moments.end_s == hit.end_s))[-1]
        assert hit.score == pytest.approx(float(moments.vectors[row] @ vector), abs=1e-3)


def test_a_head_orders_the_candidates_and_leaves_the_rest_behind(tmp_path: Path) -> None:
    _, index = indexed(tmp_path)
    searcher, query = Searcher(index, tiny_model()), Query(["a red circle"])
    torch.manual_seed(0)
    head = build_head("x_pool", tiny_model().clip)
    torch.nn.init.normal_(head.linear.weight)
    reranker = Reranker(index, tiny_model().headed(head))
    first = searcher.search(query, 3)
    frames, mask = padded(reranker.store.of(first))
    assert mask.sum(1).tolist() == [len(f) for f in reranker.store.of(first)]
    text = tiny_model().encode_text(["a red circle"], normalize=False)
    wanted = head.score(text, frames, mask)[0]
    found = reranker.search(searcher, query, 3, candidates=3)
    assert [h.path for h in found] == [first[i].path for i in wanted.argsort(descending=True)]
    assert [h.score for h in found] == pytest.approx(sorted(wanted.tolist(), reverse=True), abs=1e-5)
    part = reranker.search(searcher, query, 3, candidates=2)
    assert part[2] == first[2]
    assert {h.path for h in part[:2]} == {h.path for h in first[:2]}
    assert len(reranker.search(searcher, query, 1, candidates=3)) == 1


def test_frames_live_and_go_with_their_videos(tmp_path: Path) -> None:
    folder, index = indexed(tmp_path)
    assert len(owners(index)) == 3
    stored = FrameStore(index).table.to_arrow().column("frames").to_pylist()
    assert np.isfinite(np.concatenate(stored)).all()
    (folder / "a.mp4").rename(folder / "moved.mp4")
    (folder / "b.mp4").unlink()
    update(index, tiny_model(), [str(folder)])
    assert owners(index) == {f.id for f in index.list_files()}
    assert len(owners(index)) == 2
    searcher = Searcher(index, tiny_model())
    hits = Reranker(index, with_head(tiny_model(), "soft_frames")).search(searcher, Query(["a red circle"]))
    assert {Path(h.path).name for h in hits} == {"moved.mp4", "c.mkv"}
    main(["forget", str(folder / "moved.mp4"), "--index", str(tmp_path / "i")])
    assert len(owners(index)) == 1


def test_what_cannot_be_reranked(tmp_path: Path) -> None:
    folder, index = indexed(tmp_path)
    reranker = Reranker(index, with_head(tiny_model(), "top_frames"))
    hits = Searcher(index, tiny_model()).search(Query(["a"]))
    for query in (Query(["a"], ["b"]), Query(["a", "b"]), Query(["a"], videos=[str(folder / "b.mp4")]), Query(["  "])):
        with pytest.raises(ClipreelError, match="a head reads one text"):
            reranker(query, hits)
    assert reranker(Query(["a"]), []) == []
    with pytest.raises(ClipreelError, match="at least 1"):
        reranker.search(Searcher(index, tiny_model()), Query(["a"]), 3, candidates=0)
    with pytest.raises(ClipreelError, match="has no head"):
        Reranker(index, tiny_model())
    with pytest.raises(ClipreelError, match="keeps no frame vectors; make one that does"):
        Reranker(new_index(tmp_path / "plain"), with_head(tiny_model(), "mean"))
    FrameStore(index).table.delete("true")
    with pytest.raises(ClipreelError, match="are not in the index"):
        reranker(Query(["a"]), hits)


def test_rerank_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    import clipreel

    folder, place = library(tmp_path / "v"), str(tmp_path / "i")
    run = ["index", str(folder), "--index", place, "--model", "shapes-tiny"]
    assert main([*run, "--frames"]) == 0
    assert main(run) == 0
    base = clipreel.load("shapes-tiny")
    save_head(tmp_path / "head", base.headed(build_head("seq_transf", base.clip)))
    capsys.readouterr()
    for head in ("soft_frames", str(tmp_path / "head")):
        assert main(["search", "a red circle", "--index", place, "--rerank", head, "--json"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(rows) == 3
        assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)
    # a head of its own scale, and hits behind its candidates: neither is judged in words that are about cosines
    save_head(tmp_path / "tight", base.headed(build_head("tight_transf", base.clip)))
    for head in ("soft_frames", str(tmp_path / "tight")):
        few = ["search", "a red circle", "--index", place, "--rerank", head, "--candidates", "2"]
        assert main(few) == 0
        told = capsys.readouterr()
        lines = told.out.splitlines()
        assert ["not reranked" if "not reranked" in line else line.split()[2] for line in lines] == [
            "reranked",
            "reranked",
            "not reranked",
        ]
        assert "scored the first 2; those behind keep their cosines" in told.err
        assert not any(word in told.out for word in ("match", "unlikely"))
        assert main([*few, "--json"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [r["reranked"] for r in rows] == [True, True, False]
    assert main(["search", "a red circle", "--index", place, "--rerank", "meanP"]) == 0
    assert "note:" not in capsys.readouterr().err
    assert main(["search", "a", "--index", place, "--rerank", "X-Pool"]) == 2
    assert "x_pool must be trained" in capsys.readouterr().err
    assert main(["search", "a", "--index", place, "--rerank", str(tmp_path)]) == 2
    assert "there is no head_config.json" in capsys.readouterr().err
    other = str(tmp_path / "j")
    assert main(["index", str(folder), "--index", other, "--model", "shapes-tiny"]) == 0
    assert main(["index", str(folder), "--index", other, "--frames"]) == 2
    assert "keeps no frame vectors" in capsys.readouterr().err
