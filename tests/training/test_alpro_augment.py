"""Changes of pixels in ALPRO's training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.training.alpro_augment import PICTURE, VIDEO, Operations, augmentation, changed, motion, moved
from clipreel.training.batches import Augment, Loader
from clipreel.training.order import Order
from clipreel.video.sampling import Sampling


def film(size: int = 32, frames: int = 3, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (frames, 3, 5, 5), generator=g, dtype=torch.uint8).float()
    return torch.nn.functional.interpolate(small, (size, size), mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize("name", ["identity", "contrast", "brightness", "sharpness"])
def test_colours_do_not_change_at_level_five(name: str) -> None:
    assert torch.equal(changed(film(), name, 5), film())


def test_colours_change_as_they_should_above_it() -> None:
    x = film().float()
    factor = 1.8 * 0.7 + 0.1
    assert torch.equal(changed(film(), "brightness", 7), (x * factor).clamp(0, 255).to(torch.uint8))
    one = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert torch.equal(changed(one, "sharpness", 7), one)
    assert (changed(one, "contrast", 7).int() - 100).abs().max() <= 1  # the mean stays, but for rounding
    edge = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    edge[..., 2, 2] = 100
    smooth = 100 * 5 / 13
    assert changed(edge, "sharpness", 7)[0, 0, 2, 2] == int(smooth + factor * (100 - smooth))


def test_things_move_where_they_are_said_to() -> None:
    dot = torch.full((2, 3, 224, 224), 128, dtype=torch.uint8)
    dot[..., 100, 60] = 255  # row 100, column 60
    places = {
        "translate x": (100, 55),
        "translate y": (95, 60),
        "shear x": (100, 75),
        "shear y": (109, 60),
    }
    for name, (row, column) in places.items():
        found = changed(dot, name, 5)
        assert found[0, 0].argmax() == row * 224 + column, name
        assert torch.equal(found[0], found[1])
    assert changed(dot, "flip", 5)[0, 0].argmax() == 100 * 224 + 223 - 60
    turned = motion("rotate", 0.5, 224, 224) @ torch.tensor([112.0, 12.0, 1.0])  # 15 degrees of the way to the left
    assert turned.tolist() == pytest.approx(
        [112 - 100 * np.sin(np.pi / 12), 112 - 100 * np.cos(np.pi / 12), 1], abs=1e-3
    )
    assert (moved(dot, motion("translate x", 1.0, 224, 224))[..., -10:] == 128).all()


def test_a_row_is_changed_as_a_function_of_seed_step_and_place() -> None:
    films = {f"v{i}": film(36, 4, i).numpy() for i in range(6)}
    samples = [Sample(n, n, (n,)) for n in films]

    def loader(seed: int = 0, rank: int = 0, world: int = 1) -> Loader:
        tokens = lambda texts: torch.zeros(len(texts), 3, dtype=torch.long)  # noqa: E731
        order, sampling = Order(samples, "pairs", batch=4, seed=seed), Sampling("alpro_headtail", 2)
        change = augmentation("video")
        return Loader(order, films, tokens, sampling=sampling, augment=change, size=32, rank=rank, world=world)

    first = loader().batch(5).frames
    assert first.shape == (len(first), 2, 3, 32, 32)
    assert torch.equal(first, loader().batch(5).frames)
    halves = [loader(rank=r, world=2).batch(5).frames for r in range(2)]
    assert torch.equal(first, torch.cat(halves))
    assert not torch.equal(loader().batch(0).frames, loader(1).batch(0).frames)


def test_every_operation_comes_up_and_frames_change_alike() -> None:
    still = film(frames=1).repeat(3, 1, 1, 1)
    change = augmentation("operations")
    different = set()
    for seed in range(60):
        out = change(still, 32, np.random.default_rng(seed))
        assert torch.equal(out[0], out[2])
        different.add(out.numpy().tobytes())
    assert len(different) > 15  # pairs of five moves and a flip
    assert change.names == VIDEO
    picture = augmentation("picture")
    assert picture.names == PICTURE
    assert picture(film(36), 32, np.random.default_rng(0)).shape == (3, 3, 32, 32)
    assert augmentation("none") == Augment()
    assert augmentation("operations") != Augment()


def test_wrong_operations_are_told() -> None:
    with pytest.raises(ClipreelError, match="operations blur: 2 of identity, contrast"):
        Operations(names=("blur",))
    with pytest.raises(ClipreelError, match="level 11"):
        Operations(level=11)
