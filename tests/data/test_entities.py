"""Nouns of captions without a tagger's model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from clipreel.alpro.prompter import read_entities
from clipreel.cli import main
from clipreel.data.entities import mine, noun_phrases, write_entities
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_render import SHAPES
from clipreel.errors import ClipreelError

CAPTIONS = [
    "a man is playing the guitar",
    "a young man walks with a dog",
    "two dogs run on the beach",
    "a woman is cooking in a big kitchen",
    "the woman sings to the man",
    "a dog on a beach, near the sea",
]


def test_phrases_end_before_function_words() -> None:
    assert list(noun_phrases("A young man walks with a big dog.")) == [
        (["young", "man"], True),
        (["big", "dog"], True),
    ]
    assert list(noun_phrases("a yellow bar moving to the left")) == [(["yellow", "bar"], True)]
    assert list(noun_phrases("a dog catches some old shoes")) == [(["dog"], True), (["old", "shoes"], False)]
    assert list(noun_phrases("a running dog")) == [(["running", "dog"], False)]
    assert list(noun_phrases("the bus")) == [(["bus"], True)]
    assert list(noun_phrases("the guitar")) == [(["guitar"], True)]
    assert list(noun_phrases("it rains")) == []


def test_nouns_are_found_and_counted() -> None:
    found = dict(mine(CAPTIONS, tagger="places"))
    assert found == {"dog": 3, "man": 3, "beach": 2, "woman": 2, "guitar": 1, "kitchen": 1, "sea": 1}
    assert mine(CAPTIONS, 2, "places") == [("dog", 3), ("man", 3)]


def test_the_nouns_of_the_shapes_world_are_its_shapes() -> None:
    captions = [c for item in ShapesWorld().videos("train") for c in item.captions]
    assert {w for w, _ in mine(captions, 100, "places")} == set(SHAPES)


LEMMAS = {"dogs": "dog", "Dogs": "dog", "dog": "dog", "man": "man", "beach": "beach", "x2": "x2"}


class Pipeline:
    """A stand-in for a loaded model of spaCy: nouns by a table, of which one is no word."""

    def pipe(self, texts: list[str], disable: list[str]) -> Iterator[list[SimpleNamespace]]:
        assert disable == ["ner", "parser"]
        for text in texts:
            yield [
                SimpleNamespace(text=w, lemma_=LEMMAS.get(w, w), pos_="NOUN" if w in LEMMAS else "VERB")
                for w in text.split()
            ]


def stand_in(installed: tuple[str, ...]) -> ModuleType:
    """The two functions of spaCy that are asked, with these models installed."""
    spacy, loaded = ModuleType("spacy"), []
    spacy.load = lambda name: loaded.append(name) or Pipeline()
    spacy.util = SimpleNamespace(is_package=lambda name: name in installed)
    spacy.loaded = loaded
    return spacy


def test_spacy_counts_the_lemmas_of_its_nouns(monkeypatch: pytest.MonkeyPatch) -> None:
    spacy = stand_in(("en_core_web_md", "en_core_web_lg"))
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    texts = ["Dogs run", "a dog sees dogs", "man x2 beach"]
    wanted = [("dog", 3), ("beach", 1), ("man", 1)]
    assert mine(texts, tagger="spacy") == wanted
    assert mine(texts) == wanted  # auto takes it too
    assert spacy.loaded == ["en_core_web_md"] * 2  # the smallest that is there
    assert mine(CAPTIONS, 1, "places") == [("dog", 3)]
    assert spacy.loaded == ["en_core_web_md"] * 2


def test_spacy_without_a_model_is_told_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stand_in(()), None):  # None: not installed
        monkeypatch.setitem(sys.modules, "spacy", module)
        assert mine(CAPTIONS, 2) == [("dog", 3), ("man", 3)]
        with pytest.raises(ClipreelError, match="spaCy is not installed with a model of English"):
            mine(CAPTIONS, tagger="spacy")


def test_the_command_reads_what_a_captioner_wrote(tmp_path: Path) -> None:
    rows = [{"id": str(n), "caption": c, "model": "m"} for n, c in enumerate(CAPTIONS)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "entities.txt"
    assert main(["entities", str(tmp_path / "said.jsonl"), "--tagger", "places", "--out", str(out)]) == 0
    assert read_entities(out)[:2] == ("dog", "man")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("listed.json", json.dumps([{"image_id": 7, "caption": "a dog on a beach"}] * 2)),  # as published
        ("named.jsonl", '{"clip_name": "a", "caption": "a dog on a beach"}\n' * 2),
        ("pairs.csv", "video,caption\na.mp4,a dog on a beach\nb.mp4,a dog on a beach\n"),
        ("lines.txt", "a dog on a beach\n\na dog on a beach\n"),
    ],
)
def test_captions_in_any_form_are_mined(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert main(["entities", str(tmp_path / name), "--out", str(tmp_path / "w.txt"), "--tagger", "places"]) == 0
    assert (tmp_path / "w.txt").read_text() == "beach 2\ndog 2\n"


def test_captions_that_cannot_be_mined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = '{"id": "1", "caption": "a dog on a beach"}\n'
    good = tmp_path / "good.jsonl"
    good.write_text(row)
    (tmp_path / "half.jsonl").write_text(row + row[:20])
    (tmp_path / "mute.jsonl").write_text(row + '{"id": "2", "caption": 3}\n')
    for file, out, said in (
        (tmp_path / "half.jsonl", tmp_path / "w.txt", "half.jsonl, line 2 is no JSON"),
        (tmp_path / "mute.jsonl", tmp_path / "w.txt", "entry 2: {'id': '2', 'caption': 3} is not"),
        (good, tmp_path, "cannot be written (Is a directory); give another --out"),
        (good, good / "w.txt", "cannot be written (File exists)"),
    ):
        assert main(["entities", str(file), "--out", str(out), "--tagger", "places"]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "w.txt").exists()


def test_a_vocabulary_is_read_back(tmp_path: Path) -> None:
    write_entities(tmp_path / "words.txt", [("dog", 3), ("man", 1)])
    assert read_entities(tmp_path / "words.txt") == ("dog", "man")
    (tmp_path / "words.txt").write_text("polar bear 7\n  fire   truck \n\n42\ncat\t0.5\n")
    assert read_entities(tmp_path / "words.txt") == ("polar bear", "fire truck", "42", "cat")


def test_wrong_use_is_told() -> None:
    with pytest.raises(ClipreelError, match="no noun was found in 1 captions"):
        mine(["it rains"], tagger="places")
    with pytest.raises(ClipreelError, match="allowed are auto, spacy, places"):
        mine(CAPTIONS, tagger="x")
    with pytest.raises(ClipreelError, match="0 entities"):
        mine(CAPTIONS, 0)
