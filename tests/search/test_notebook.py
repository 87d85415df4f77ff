"""Searching in three lines of Python, and what a notebook shows of the answer."""

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

import clipreel
from clipreel.search import loading
from clipreel.search.indexer import update
from tests.search.tiny import library, new_index, tiny_model


def test_an_index_answers_and_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films = library(tmp_path / "films", ("<a>.mp4", "b.mp4"))
    update(new_index(tmp_path / "index"), tiny_model(), [str(films)])
    loaded = []
    monkeypatch.setattr(loading, "model_of", lambda index, device: loaded.append(device) or tiny_model())
    index = clipreel.Index(tmp_path / "index")
    answer = index.search("a red circle", k=2, device="cpu")
    assert index.search("a red circle", k=1).hits == answer.hits[:1]
    assert loaded == ["cpu"]  # once
    page = answer._repr_html_()
    assert "&lt;a&gt;.mp4" in page
    assert "<a>" not in page
    pictures = [p.partition('"')[0] for p in page.split("data:image/jpeg;base64,")[1:]]
    assert [Image.open(io.BytesIO(base64.b64decode(p))).size for p in pictures] == [(480, 90)] * 2
    os.remove(films / "b.mp4")
    assert "missing" in index.search("a red circle", k=2)._repr_html_()
    with pytest.raises(clipreel.ClipreelError, match="ask for at least 1"):
        index.search("a red circle", k=0)
