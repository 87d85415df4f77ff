"""Encoding speed of ViT-B/32 with random weights: ours, transformers with the same weights, our int8, the GEMM peak.

`python benchmarks/encode.py [--threads N ...] [--rounds R]` -> results/encode.json. Peers take turns in one run; ratios
are medians over the turns, rates come from the best turn. The peak is the rate of 2048 x 2048 x 2048 float32 products
into memory that is there already, on the same threads, for about as long as the others run. `--layers 1` is a trial.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from machine import describe, in_turns, save, summary

from clipreel.checkpoints import to_hf
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.int8 import TO_MAKE, Int8Frames, export, require
from clipreel.retriever import Retriever
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

B32 = ClipConfig(224, 32, TowerConfig(12, 768, 12, 3072), TowerConfig(12, 512, 8, 2048), 77, 49408, 512, "quick_gelu")
VIDEOS, FRAMES, TEXTS, EDGE = 2, 12, 64, 2048
Peers = dict[str, Callable[[], torch.Tensor]]


def frame_flops(c: ClipConfig, firsts: bool) -> float:
    """Multiply-adds of one frame through the video tower, counted twice, attention scores included.

    `firsts`: behind the last attention only the token that is read, as clipreel does it; transformers computes all.
    """
    d, s = c.vision.width, 1 + (c.image_size // c.patch) ** 2
    behind = d * d + 2 * d * c.vision.mlp  # the products of one token behind the attention
    blocks = c.vision.layers * s * (3 * d * d + 2 * s * d + behind)
    spared = (s - 1) * behind if firsts else 0
    return 2.0 * ((s - 1) * 3 * c.patch**2 * d + blocks - spared + d * c.embed)


def caption_ids(n: int, generator: torch.Generator) -> torch.Tensor:
    """Ids as long as real captions: 8 to 18 tokens with start and end, zeros behind."""
    ids = torch.zeros(n, 77, dtype=torch.long)
    for row in ids:
        length = int(torch.randint(8, 19, (1,), generator=generator))
        row[:length] = torch.randint(1, 49000, (length,), generator=generator)
        row[0], row[length - 1] = 49406, 49407
    return ids


def gemm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        torch.mm(a, b, out=out)
    return out


def peers_of(config: ClipConfig) -> tuple[Peers, float]:
    """What is timed, and how many operations the product has. All peers give the same vectors, int8 nearly."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    ours = Clip(config).eval()
    layers = {"num_hidden_layers": config.vision.layers}
    theirs = CLIPModel(CLIPConfig(vision_config=layers, text_config=layers)).eval()
    theirs.load_state_dict(to_hf(ours.state_dict(), config))
    model = Retriever(
        ours, tokenizer=None, preprocess=Preprocess(config.image_size), sampling=Sampling(), name="random ViT-B/32"
    )
    require(model, TO_MAKE)
    int8 = Int8Frames(export(model))
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(VIDEOS, FRAMES, 3, config.image_size, config.image_size, generator=generator)
    ids = caption_ids(TEXTS, generator)
    mask = (torch.arange(77) <= ids.argmax(1, keepdim=True)).long()

    def hf_text(length: int) -> torch.Tensor:
        return theirs.get_text_features(ids[:, :length], attention_mask=mask[:, :length]).pooler_output

    a, b, out = torch.randn(3, EDGE, EDGE, generator=generator)
    products = max(1, round(VIDEOS * FRAMES * frame_flops(config, False) / (2 * EDGE**3)))
    peers: Peers = {
        "clipreel video": partial(ours.encode_video, frames),
        "transformers video": lambda: theirs.get_image_features(frames.flatten(0, 1)).pooler_output,
        "clipreel int8 video": partial(int8, frames.flatten(0, 1)),
        "gemm": partial(gemm, a, b, out, products),
        "clipreel text": partial(ours.encode_text, ids),
        "transformers text, padded to 77": partial(hf_text, 77),
        "transformers text, padded to the longest": partial(hf_text, int(mask.sum(1).max())),
    }
    for kind in ("video", "text"):
        wanted = peers[f"clipreel {kind}"]().reshape(-1, config.embed)
        for name, run in peers.items():
            if f"transformers {kind}" in name:
                torch.testing.assert_close(run(), wanted, atol=1e-4, rtol=1e-3)
    return peers, products * 2.0 * EDGE**3


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long the first takes: the median over turns."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def measure(config: ClipConfig, peers: Peers, operations: float, rounds: int) -> dict[str, object]:
    times = in_turns(peers, rounds)
    best = summary(times)
    out: dict[str, object] = {"times": best, "gemm_peak_gflops": operations / best["gemm"]["best_s"] / 1e9}
    for name in ("clipreel", "transformers"):
        work = VIDEOS * FRAMES * frame_flops(config, firsts=name == "clipreel")
        out[f"{name}_share_of_peak"] = ratio(times, "gemm", f"{name} video") * work / operations
    for name in peers:
        if name != "gemm":
            out[f"{name}, per s"] = (TEXTS if "text" in name else VIDEOS * FRAMES) / best[name]["best_s"]
    out["video_speed_ratio"] = ratio(times, "transformers video", "clipreel video")
    out["int8_speed_ratio"] = ratio(times, "clipreel video", "clipreel int8 video")
    for padding in ("77", "the longest"):
        padded = f"transformers text, padded to {padding}"
        out[f"text_speed_ratio, padded to {padding}"] = ratio(times, padded, "clipreel text")
    found = (peers[f"clipreel {name}"]().reshape(-1, config.embed) for name in ("video", "int8 video"))
    near = torch.cosine_similarity(*found)
    out["int8_cosine"] = {"min": near.min().item(), "mean": near.mean().item()}
    return out


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=B32.vision.layers)
    args = parser.parse_args()
    towers = {name: replace(getattr(B32, name), layers=args.layers) for name in ("vision", "text")}
    config = replace(B32, **towers)
    with torch.inference_mode(False):
        peers, operations = peers_of(config)
    result: dict[str, object] = {
        "machine": describe("torch", "transformers", "onnxruntime"),
        "layers": args.layers,
        "gflop_per_frame": {
            "clipreel": frame_flops(config, True) / 1e9,
            "transformers": frame_flops(config, False) / 1e9,
        },
    }
    for threads in args.threads:
        torch.set_num_threads(threads)
        result[f"{threads} threads"] = measured = measure(config, peers, operations, args.rounds)
        print(threads, "threads:", {k: round(v, 3) for k, v in measured.items() if isinstance(v, float)})
    save("encode", result)


if __name__ == "__main__":
    main()
