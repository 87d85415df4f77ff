"""Encoding speed of ViT-B/32 with random weights: ours, transformers with the same weights, the GEMM peak.

`python benchmarks/encode.py [--threads N] [--rounds R]` -> results/encode.json. Every figure is from one interleaved
run. The peak is the best rate of a 2048 x 2048 x 2048 float32 product on the same threads.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from machine import describe, in_turns, save, summary

from clipreel.checkpoints import to_hf
from clipreel.clip import Clip, ClipConfig, TowerConfig

B32 = ClipConfig(224, 32, TowerConfig(12, 768, 12, 3072), TowerConfig(12, 512, 8, 2048), 77, 49408, 512, "quick_gelu")
VIDEOS, FRAMES, TEXTS = 2, 12, 64


def frame_flops(c: ClipConfig) -> float:
    """Multiply-adds of one frame through the video tower, counted twice, attention scores included."""
    d, s = c.vision.width, 1 + (c.image_size // c.patch) ** 2
    block = s * (4 * d * d + 2 * d * c.vision.mlp) + 2 * s * s * d
    return 2.0 * ((s - 1) * 3 * c.patch**2 * d + c.vision.layers * block + d * c.embed)


def caption_ids(n: int, generator: torch.Generator) -> torch.Tensor:
    """Ids as long as real captions: 8 to 18 tokens with start and end, zeros behind."""
    ids = torch.zeros(n, 77, dtype=torch.long)
    for row in ids:
        length = int(torch.randint(8, 19, (1,), generator=generator))
        row[:length] = torch.randint(1, 49000, (length,), generator=generator)
        row[0], row[length - 1] = 49406, 49407
    return ids


def measure(rounds: int) -> dict[str, object]:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    ours = Clip(B32).eval()
    theirs = CLIPModel(CLIPConfig()).eval()
    theirs.load_state_dict(to_hf(ours.state_dict(), B32))
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(VIDEOS, FRAMES, 3, 224, 224, generator=generator)
    ids = caption_ids(TEXTS, generator)
    mask = (torch.arange(77) <= ids.argmax(1, keepdim=True)).long()
    longest = int(mask.sum(1).max())
    a, b = torch.randn(2, 2048, 2048, generator=generator)

    def hf_text(length: int) -> torch.Tensor:
        return theirs.get_text_features(ids[:, :length], attention_mask=mask[:, :length]).pooler_output

    def hf_video() -> torch.Tensor:
        return theirs.get_image_features(frames.flatten(0, 1)).pooler_output

    with torch.inference_mode():
        torch.testing.assert_close(hf_video().view(VIDEOS, FRAMES, -1), ours.encode_video(frames), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(hf_text(77), ours.encode_text(ids), atol=1e-4, rtol=1e-3)
        times = in_turns(
            {
                "clipreel video": partial(ours.encode_video, frames),
                "transformers video": hf_video,
                "gemm": partial(torch.mm, a, b),
                "clipreel text": partial(ours.encode_text, ids),
                "transformers text, padded to 77": partial(hf_text, 77),
                "transformers text, padded to the longest": partial(hf_text, longest),
            },
            rounds,
        )
    best = summary(times)
    peak = 2 * 2048**3 / best["gemm"]["best_s"]
    out: dict[str, object] = {"times": best, "gemm_peak_gflops": peak / 1e9, "gflop_per_frame": frame_flops(B32) / 1e9}
    for name in ("clipreel", "transformers"):
        rate = VIDEOS * FRAMES / best[f"{name} video"]["best_s"]
        out[f"{name}_frames_per_s"] = rate
        out[f"{name}_share_of_peak"] = rate * frame_flops(B32) / peak
    for name in ("clipreel text", "transformers text, padded to 77", "transformers text, padded to the longest"):
        out[f"{name}, per s"] = TEXTS / best[name]["best_s"]
    out["video_speed_ratio"] = best["transformers video"]["best_s"] / best["clipreel video"]["best_s"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    result: dict[str, object] = {"machine": describe("torch", "transformers")}
    for threads in args.threads:
        torch.set_num_threads(threads)
        result[f"{threads} threads"] = measured = measure(args.rounds)
        print(threads, "threads:", {k: round(v, 3) for k, v in measured.items() if isinstance(v, float)})
    save("encode", result)


if __name__ == "__main__":
    main()
