"""The proxies' attention on the page of a tuned model: where it looks is coloured, and other methods have none."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipreel
from clipreel.adapter import save_adapter
from clipreel.cli import main
from clipreel.cli.proxy_page import COLOUR, HEIGHT, STRONGEST, attention, overlaid
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.retriever import Retriever
from clipreel.tuners import build, options
from clipreel.video.sampling import Sampling
from tests.alpro.tiny import retriever as alpro_retriever


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return ShapesWorld().write_videos(tmp_path_factory.mktemp("films"), "val", count=2)


def tuned(method: str, **options: object) -> Retriever:
    base = clipreel.load("shapes-tiny", device="cpu")
    torch.manual_seed(0)
    return base.adapted(build(method, base.clip, options), adapter="x", sampling=Sampling("uniform", 3))


def test_a_row_for_every_proxy_of_readable_videos(films: list[Sample], tmp_path: Path) -> None:
    section = attention(tuned("clip_vip", proxies=2, frames=3), [Sample("gone", tmp_path / "gone.mp4", ()), *films])
    assert section is not None
    assert [film.captions[0] in section.content for film in films] == [True, True]
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section.content)
    assert len(pictures) == 2 * 2
    shape = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0])))).shape
    assert shape == (HEIGHT, 3 * HEIGHT, 3)
    shares = [int(n) for n in re.findall(r"proxy \d: (\d+) %</th>", section.content)]
    assert len(shares) == 4
    assert all(0 < n <= 100 for n in shares)


def test_other_methods_have_no_proxies(films: list[Sample]) -> None:
    assert attention(tuned("full"), films) is None
    assert attention(alpro_retriever(), films) is None
    assert attention(tuned("clip_vip", frames=3), []) is None


def test_colour_lies_where_the_weight_is() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    weights = np.zeros((2, 2), np.float32)
    weights[0, 1] = 1.0
    found = overlaid(grey, weights)
    assert found.shape == (HEIGHT, HEIGHT, 3)
    assert (found[HEIGHT // 2 :] == 100).all()
    assert (found[: HEIGHT // 2, : HEIGHT // 2] == 100).all()
    wanted = np.rint(100 + STRONGEST * (COLOUR - 100))
    assert np.abs(found[: HEIGHT // 2, HEIGHT // 2 :] - wanted).max() <= 1


def test_the_gallery_of_an_evaluation_shows_them(films: list[Sample], tmp_path: Path) -> None:
    base = clipreel.load("shapes-tiny", device="cpu")
    for method, options_ in (("clip_vip", {"proxies": 2, "frames": 3}), ("bias", {})):
        torch.manual_seed(0)
        made = base.adapted(build(method, base.clip, options_), adapter="x", sampling=Sampling("uniform", 3))
        save_adapter(tmp_path / method, made, method, options(method, options_))
        page = tmp_path / f"{method}.html"
        command = ["evaluate", str(films[0].video.parent), "--adapter", str(tmp_path / method), "--frames", "3"]
        assert main([*command, "--gallery", str(page), "--device", "cpu"]) == 0
    drawn = (tmp_path / "clip_vip.html").read_text()
    assert "What the proxies look at" in drawn
    assert len(re.findall(r"<th>proxy \d: \d+ %</th>", drawn)) == 2 * 2
    assert drawn.index("Worst misses" if "Worst misses" in drawn else "Numbers") < drawn.index("What the proxies")
    assert "proxies" not in (tmp_path / "bias.html").read_text()
