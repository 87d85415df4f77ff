"""Tags of stored vectors, and hits judged again by an ALPRO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clipreel.alpro.retriever import save_alpro
from clipreel.cli import main
from clipreel.errors import ClipreelError
from clipreel.search.index import Index
from clipreel.search.indexer import update
from clipreel.search.query import Query, Searcher
from clipreel.search.reread import reread
from clipreel.search.tags import entity_vectors, facets, read_tags, tag, tagged
from clipreel.video.decode import read_frames
from tests.alpro.tiny import retriever
from tests.search.tiny import library, new_index, tiny_model

WORDS = ("circle", "square", "star")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    store = new_index(tmp_path / "index")
    update(store, tiny_model(), [str(library(tmp_path / "videos"))])
    return store


def test_tags_are_the_softmax_over_prompts(index: Index) -> None:
    model = tiny_model()
    words = torch.from_numpy(entity_vectors(model, WORDS))
    moments = index.moments()
    p = (model.scale * torch.from_numpy(moments.vectors) @ words.T).softmax(1)
    found = tag(index, model, WORDS, most=2, least=0.0)
    assert len(found) == 2 * len(moments.vectors)
    first = [t for t in found if t.level == "video"][:2]
    assert [t.probability for t in first] == pytest.approx(p[0].topk(2).values.tolist(), abs=1e-6)
    assert [t.tag for t in first] == [WORDS[i] for i in p[0].topk(2).indices]
    assert not tag(index, model, WORDS, least=1.0) or p.max() == 1


def test_stored_tags_replace_those_before_and_filter(index: Index) -> None:
    tag(index, tiny_model(), ("dog",))
    found = tag(index, tiny_model(), WORDS, most=3, least=0.0)
    stored = read_tags(Index(index.place))
    assert len(stored) == len(found)
    assert {t.tag for t in stored} == set(WORDS)
    assert facets(stored) == [(w, 3) for w in sorted(WORDS)]
    assert len(tagged(stored, ["circle", "star"])) == 3
    with pytest.raises(ClipreelError, match="no video has the tag 'dog'; the most frequent are circle"):
        tagged(stored, ["dog"])


def test_facets_narrow_down_and_forgotten_videos_have_no_tags(index: Index) -> None:
    found = tag(index, tiny_model(), WORDS, most=3, least=0.0)
    paths = sorted({t.path for t in found})
    assert facets(found, paths[:2]) == [(w, 2) for w in sorted(WORDS)]
    assert facets(found, ()) == []
    index.remove({f.id for f in index.visible() if f.path == paths[0]})
    assert {t.path for t in read_tags(index)} == set(paths[1:])


def test_the_model_is_loaded_as_the_index_was_made(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its adapter and its engine, as search does."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("clipreel.cli.search.load_model", lambda *a: asked.append(a) or tiny_model())
    monkeypatch.setattr(Index, "read_facts", lambda self, read=Index.read_facts: {**read(self), "adapter": "mine"})
    words = tmp_path / "words.txt"
    words.write_text("dog\ncat\n")
    assert main(["tag", str(words), "--index", str(index.place)]) == 0
    assert asked == [("tiny-0", False, "auto", "mine", "torch")]


def test_wrong_use_is_told(index: Index) -> None:
    with pytest.raises(ClipreelError, match="has no tags; make some with: clipreel tag"):
        read_tags(index)
    with pytest.raises(ClipreelError, match="there are no entities"):
        tag(index, tiny_model(), ())
    with pytest.raises(ClipreelError, match="a probability from 0 to 1"):
        tag(index, tiny_model(), WORDS, least=3)
    with pytest.raises(ClipreelError, match="was made with"):
        tag(index, tiny_model(1), WORDS)


def test_hits_are_judged_by_their_moments(index: Index, tmp_path: Path) -> None:
    hits = Searcher(index, tiny_model()).search(Query(["a red dog"]), 3)
    judge = retriever()
    found, failed = reread(hits, "a red dog", judge)
    assert failed == []
    assert {h.path for h in found} == {h.path for h in hits}
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    best = found[0]
    frames = read_frames(
        best.path, judge.sampling, start_s=best.start_s, end_s=best.end_s, transform=judge.preprocess.pixels
    )
    tokens = judge.video_tokens(judge.preprocess.normalise(frames.pixels)[None])
    assert best.score == pytest.approx(judge.rerank(judge.ids(["a red dog"]), tokens).item(), abs=1e-5)
    Path(hits[0].path).write_text("gone bad")
    found, failed = reread(hits, "a red dog", judge)
    assert [path for path, _ in failed] == [hits[0].path]
    assert len(found) == 2
    with pytest.raises(ClipreelError, match="the query has none"):
        reread(hits, " ", judge)


def test_the_commands_tag_rerank_and_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, place = library(tmp_path / "videos"), str(tmp_path / "index")
    model = str(save_alpro(retriever(answers=("red", "blue"), entities=("dog", "cat")), tmp_path / "alpro"))
    (tmp_path / "captions.txt").write_text("a man is with the dog\nthe dog sees a cat\n")
    words = tmp_path / "words.txt"
    assert main(["entities", str(tmp_path / "captions.txt"), "--out", str(words), "--tagger", "places"]) == 0
    assert words.read_text() == "dog 2\ncat 1\nman 1\n"
    assert main(["index", str(videos), "--index", place, "--model", model]) == 0
    assert main(["tag", str(words), "--index", place, "--least", "0", "--prompts", "single"]) == 0
    assert "     3  dog" in capsys.readouterr().out
    assert main(["search", "a red dog", "--index", place, "--tag", "dog", "--rerank", "alpro", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)
    assert len(rows) == 3
    page = tmp_path / "pages" / "tags.html"
    assert main(["tag", str(words), "--index", place, "--least", "0", "--report", str(page), "--videos", "2"]) == 0
    text = page.read_text()
    assert text.count("data:image/jpeg") == 2 * 3  # two videos with a strip for each of three words
    assert text.count("what the entity head predicts at each patch") == 2 * 2  # "man" is no entity of the model
    assert text.count("where hiding a square costs the most") == 2
    assert main(["tag", "--index", place, "--report", str(page)]) == 2
    assert "the page is made while tagging" in capsys.readouterr().err
    page = tmp_path / "seen.html"
    question = ["ask", str(videos / "a.mp4"), "what colour is it?", "--model", model]
    assert main([*question, "--json", "--report", str(page)]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert sorted(a["answer"] for a in answers) == ["blue", "red"]
    assert page.read_text().count("data:image/jpeg") == 1 + 2  # the best answer, and two entities
    assert "what colour is it?" in page.read_text()
    for without in ([], ["--model", "shapes-tiny"]):
        assert main(["ask", str(videos / "a.mp4"), "what is it?", *without]) == 2
        assert "clipreel train configs/alpro/msvd-qa.yaml" in capsys.readouterr().err
    asking = str(save_alpro(retriever(answers=("red", "blue")), tmp_path / "qa"))
    seen = ["--report", str(page), "--seen-by", model]
    assert main(["ask", str(videos / "a.mp4"), "what is it?", "--model", asking, *seen]) == 0
    assert page.read_text().count("data:image/jpeg") == 3
    plain = ["--report", str(page)]
    assert main(["ask", str(videos / "a.mp4"), "what is it?", "--model", asking, *plain]) == 0
    assert page.read_text().count("data:image/jpeg") == 1  # no entities without a head
    assert main(["ask", str(videos / "a.mp4"), "what is it?", "--model", asking, *plain, "--seen-by", asking]) == 2
    assert "has no entity head with its words; give --seen-by an ALPRO" in capsys.readouterr().err
    for wrong, said in (
        ((*plain, "--seen-by", "shapes-tiny"), "shapes-tiny has no entity head"),
        (("--seen-by", model), "say where to write it with --report"),
        (("--start", "2", "--end", "1"), "a part from 2.0 to 1.0 seconds is none"),
        (("--start", "nan"), "a part from nan to None seconds is none"),
        (("--start", "900"), "a.mp4 ends at "),
    ):
        assert main(["ask", str(videos / "a.mp4"), "what is it?", "--model", asking, *wrong]) == 2
        assert said in capsys.readouterr().err
    tags = ["tag", str(words), "--index", place]
    assert main([*tags, "--report", str(page), "--videos", "0"]) == 2
    assert "show at least 1 (--videos)" in capsys.readouterr().err
    assert main(["tag", "--index", place]) == 0
    assert "     3  dog" in capsys.readouterr().out  # as before
    assert main([*tags, "--least", "1"]) == 0
    assert "0 tags in 0 videos; no word is as sure as --least 1: lower it" in capsys.readouterr().out
    assert main(["ask", str(videos / "a.mp4"), "what is it?", "--model", asking, "-k", "0"]) == 2
    assert "0 answers: ask for at least 1" in capsys.readouterr().err
    assert main(["info", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] == "wordpiece"
