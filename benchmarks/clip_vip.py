"""CLIP-ViP's video encoder with four ways of attention: our two fused calls, the released way, and all tokens jointly,
fused and with stored scores.

`python benchmarks/clip_vip.py [--threads N] [--rounds R] [--frames 4 8 12 32] [--patch 32] [--device cpu]
[--dtype float32]` -> results/clip_vip_DEVICE_DTYPE_PATCH.json. Forward and training steps of the whole tower, and one
layer's attention with its gradients, interleaved in one run. Memory is the peak on a GPU, and on a CPU what a training
step keeps for its backward pass, weights left out. The released way and stored scores keep what autograd finds in them,
as in released code; the others make some of it again. A way that would not fit into the free memory is left out, and
said.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from machine import describe, in_turns, save, summary
from torch import Tensor, nn
from training import keeping_all, kept_bytes

from clipreel.clip import Clip
from clipreel.patterns import Layout
from clipreel.sites import LayerTuner
from clipreel.training.microbatch import free_bytes
from clipreel.tuners.clip_vip import ClipVip, ClipVipConfig
from clipreel.tuners.counting import ARCHITECTURES

WAYS = ("ours", "released way", "joint", "joint, stored scores")
RELEASED = (WAYS[1], WAYS[3])
KINDS = ("forward", "training", "attention")


def released_way(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Proxy keys repeated for every frame, batched products and a softmax of stored scores (specification 2.2)."""
    heads, M, T, L = q.shape[2], *layout[:3]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # one batch of videos and heads
    q = q * q.shape[-1] ** -0.5

    def repeated(x: Tensor) -> Tensor:
        shared = x[:, :M].unsqueeze(1).repeat(1, T, 1, 1)
        return torch.cat([shared, x[:, M:].unflatten(1, (T, L))], 2).flatten(0, 1)

    scores = torch.bmm(q[:, M:].reshape(-1, L, q.shape[-1]), repeated(k).transpose(1, 2))
    patches = torch.bmm(scores.softmax(-1), repeated(v)).reshape(len(q), T * L, -1)
    proxies = torch.bmm(torch.bmm(q[:, :M], k.transpose(1, 2)).softmax(-1), v)
    return torch.cat([proxies, patches], 1).unflatten(0, (-1, heads)).transpose(1, 2)


def stored_scores(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """All tokens see all, with batched products and a softmax of stored scores."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)


def fits(clip: Clip, frames: int, videos: int, device: str, dtype: torch.dtype) -> bool:
    """Whether the scores of all tokens, kept twice in each layer, take less than half of the free memory."""
    vision = clip.config.vision
    tokens = 4 + frames * (clip.config.image_size // clip.config.patch) ** 2
    need = 2 * videos * vision.layers * vision.heads * tokens**2 * dtype.itemsize
    return need < free_bytes(torch.device(device)) / 2


def tuners(clip: Clip, frames: int, device: str) -> dict[str, ClipVip]:
    """The same encoder four times; `joint` has the same tokens and lets all see all."""
    torch.manual_seed(1)
    made = {w: ClipVip(clip, ClipVipConfig(frames=frames, train_base=False)).to(device) for w in WAYS[:2]}
    for way in WAYS[2:]:
        made[way] = ClipVip(clip, ClipVipConfig(frames=frames, train_base=False, attention="joint")).to(device)
    for tuner in made.values():
        tuner.load_state_dict(made["ours"].state_dict())
    for way, attend in (("released way", released_way), ("joint, stored scores", stored_scores)):
        made[way].sites = LayerTuner()
        made[way].sites.attend = attend
    return made


def settled(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def step_bytes(forward: Callable[[], Tensor], clip: Clip, tuner: ClipVip, device: str) -> int:
    gc.collect()
    if device != "cuda":
        return kept_bytes(lambda: forward().float().square().sum(), nn.ModuleList([clip, tuner]))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward().float().square().sum().backward()
    return torch.cuda.max_memory_allocated() - before


def measure(clip: Clip, frames: int, videos: int, rounds: int, device: str, dtype: torch.dtype) -> dict[str, object]:
    pixels = torch.randn(videos, frames, 3, clip.config.image_size, clip.config.image_size, device=device)
    cast = partial(torch.autocast, device, dtype, enabled=dtype != torch.float32)
    made = tuners(clip, frames, device)

    def encoded(way: str) -> Tensor:
        with cast(), keeping_all() if way in RELEASED else nullcontext():
            return clip.encode_video(pixels, made[way])

    def cleared(way: str) -> None:
        clip.zero_grad(set_to_none=True)
        made[way].zero_grad(set_to_none=True)
        settled(device)

    def forward(way: str) -> Tensor:
        with torch.inference_mode():
            z = encoded(way)
        settled(device)
        return z

    def training(way: str) -> None:
        encoded(way).float().square().sum().backward()
        cleared(way)

    def memory(way: str) -> int:
        found = step_bytes(partial(encoded, way), clip, made[way], device)
        cleared(way)
        return found

    side, width = clip.config.image_size // clip.config.patch, clip.config.vision.width
    layout = Layout(4, frames, side * side)
    heads = (videos, layout.length, clip.config.vision.heads, width // clip.config.vision.heads)
    qkv = [torch.randn(heads, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]

    def attention(way: str) -> None:
        attend = made[way].sites.attend
        assert attend is not None
        torch.autograd.grad(attend(*qkv, layout).sum(), qkv)
        settled(device)

    ways = WAYS if fits(clip, frames, videos, device, dtype) else WAYS[:3]
    same = {n: forward(n).float() for n in ways}
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    for a, b in (ways[:2], ways[2:]) if len(ways) == 4 else (ways[:2],):
        torch.testing.assert_close(same[a], same[b], atol=tolerance, rtol=tolerance)
    kinds: dict[str, Callable[[str], object]] = dict(zip(KINDS, (forward, training, attention), strict=True))
    times = in_turns({f"{k} {w}": partial(step, w) for k, step in kinds.items() for w in ways}, rounds)
    found: dict[str, object] = {"times": summary(times)}
    found["bytes"] = {w: memory(w) for w in ways}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=1)
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 12, 32])
    parser.add_argument("--patch", type=int, choices=(16, 32), default=32)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a trial run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = ARCHITECTURES[f"ViT-B/{args.patch}"]
    clip = Clip(replace(config, vision=replace(config.vision, layers=args.layers))).to(args.device)
    result: dict[str, object] = {"machine": describe("torch"), "arguments": vars(args)}
    if args.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    for frames in args.frames:
        found = measure(clip, frames, args.videos, args.rounds, args.device, getattr(torch, args.dtype))
        result[f"{frames} frames"] = found
        best = {n: t["best_s"] for n, t in found["times"].items()}
        for kind in KINDS:
            ratios = (
                f"{best[f'{kind} {w}'] / best[f'{kind} ours']:.2f} x {w}" for w in WAYS[1:] if f"{kind} {w}" in best
            )
            print(f"{frames:3} frames, {kind:9}: {1000 * best[f'{kind} ours']:8.1f} ms, faster than", *ratios)
        print(f"{'':12}memory   :", ", ".join(f"{w} {n / 2**20:.0f} MiB" for w, n in found["bytes"].items()))
        absent = [w for w in WAYS if w not in found["bytes"]]
        if absent:
            print(f"{'':12}left out :", ", ".join(absent), "(it would take more than half of the free memory)")
    save(f"clip_vip_{args.device}_{args.dtype}_b{args.patch}", result)


if __name__ == "__main__":
    main()
