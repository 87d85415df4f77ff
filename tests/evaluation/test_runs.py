"""From captioned videos to vectors, whatever their parts and lengths."""

from pathlib import Path

import pytest
import torch

import clipreel
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.evaluation.runs import encode_stacks, encode_videos
from clipreel.retriever import Retriever


@pytest.fixture(scope="module")
def model() -> Retriever:
    return clipreel.load("shapes-tiny", device="cpu")


def test_two_parts_of_one_file_are_two_videos(model: Retriever, tmp_path: Path) -> None:
    film = ShapesWorld().write_videos(tmp_path, "test", count=1)[0].video
    first, second = Sample("a", film, ("x",), 0.0, 0.5), Sample("b", film, ("y",), 1.5, 2.0)
    both, failed = encode_videos(model, [first, second], 2)
    assert not failed
    for row, part in zip(both, (first, second), strict=True):
        torch.testing.assert_close(row, encode_videos(model, [part], 2)[0][0], atol=1e-6, rtol=0)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_videos_of_different_length_and_missing_ones(model: Retriever) -> None:
    made = torch.Generator().manual_seed(0)
    stacks = [None if n == 3 else torch.randint(0, 255, (1 + n % 4, 3, 64, 64), generator=made) for n in range(20)]
    stacks = [None if s is None else s.to(torch.uint8) for s in stacks]
    found = encode_stacks(model, iter(stacks), len(stacks))
    assert found[3].isnan().all()
    for n, stack in enumerate(stacks):
        if stack is not None:
            alone = model.encode_video(model.preprocess.normalise(stack[None]))[0]
            torch.testing.assert_close(found[n], alone, atol=2e-6, rtol=0)
