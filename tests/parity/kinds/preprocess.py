"""Real frames to model pixels against the official preprocessing of OpenAI, X-Pool and CLIP-ViP."""

from pathlib import Path

from clipreel.video.transforms import Preprocess
from tests.parity.fixture import load

MODES = {
    "clip_pil": ({"resize": "pil"}, 2e-3),  # one grey level is 0.0146: every pixel is equal
    "xpool_tensor_noantialias": ({"resize": "tensor"}, 0.005),
    "xpool_tensor_antialias": ({"resize": "tensor_antialias"}, 0.005),
    "clipvip_squash_noantialias": ({"resize": "tensor", "geometry": "squash"}, 0.005),
}


def check(path: Path) -> None:
    fixture = load(path)
    config, step = fixture.config, int(fixture.meta.get("pixel_step", 1))
    assert fixture.outputs
    for name, wanted in fixture.outputs.items():
        mode, number = name.rsplit("_", 1)
        options, tolerance = MODES[mode]
        recipe = Preprocess(config["size"], mean=tuple(config["mean"]), std=tuple(config["std"]), **options)
        ours = recipe(fixture.inputs[f"frame_{number}"][None])[0, :, ::step, ::step]
        difference = (ours - wanted.float()).abs()
        assert difference.max() <= tolerance, f"{path.name}: {name} differs by {difference.max():.4f}"
