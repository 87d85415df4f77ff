"""Pixels: every one as Pillow makes it, and the other recipes by their definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipreel.errors import ClipreelError
from clipreel.video.transforms import Preprocess


def noise(h: int, w: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(h * w).integers(0, 256, (2, h, w, 3), dtype=np.uint8))


@pytest.mark.parametrize(("h", "w"), [(240, 320), (97, 131), (131, 97), (40, 50), (48, 120), (48, 48)])
def test_pil_mode_is_the_official_recipe(h: int, w: int) -> None:
    frames, n = noise(h, w), 48
    found = Preprocess(n).pixels(frames)
    for frame, ours in zip(frames, found, strict=True):
        image = Image.fromarray(frame.numpy())
        short = min(h, w)
        if short != n:
            size = (n, n * h // w) if w <= h else (n * w // h, n)
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = round((image.width - n) / 2), round((image.height - n) / 2)
        wanted = np.asarray(image.crop((left, top, left + n, top + n)))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), wanted)


def test_uint8_mode_is_within_one_grey_level() -> None:
    frames = noise(240, 320)
    exact, fast = (Preprocess(112, resize=m).pixels(frames).int() for m in ("pil", "uint8"))
    assert (exact - fast).abs().max() <= 1
    assert (exact != fast).float().mean() < 0.02


def test_tensor_modes_and_squash() -> None:
    frames = noise(60, 90)
    x = frames.permute(0, 3, 1, 2).float() / 255
    plain = F.interpolate(x, (30, 30), mode="bicubic", align_corners=False)
    assert torch.allclose(Preprocess(30, "tensor", "squash").pixels(frames), plain)
    smooth = F.interpolate(x, (30, 45), mode="bicubic", align_corners=False, antialias=True)[..., 8:38]
    assert torch.allclose(Preprocess(30, "tensor_antialias").pixels(frames), smooth)


def test_normalising_twice_the_same_way() -> None:
    frames, recipe = noise(50, 60), Preprocess(32)
    assert torch.equal(recipe(frames), recipe.normalise(recipe.pixels(frames)))
    grey = Preprocess(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert grey(torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)).unique().tolist() == [1.0]


def test_wrong_values() -> None:
    with pytest.raises(ClipreelError, match="allowed are pil"):
        Preprocess(resize="lanczos")
    with pytest.raises(ClipreelError, match="at least 1"):
        Preprocess(0)
    with pytest.raises(ValueError, match="uint8"):
        Preprocess()(torch.zeros(1, 8, 8, 3))
    assert Preprocess(**Preprocess(96).to_dict()) == Preprocess(96)
    assert Preprocess(96).fingerprint() != Preprocess(96, "uint8").fingerprint()
