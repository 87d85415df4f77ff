"""TimeSformer forward and training step against the reference way of computing; reranking against judging every pair.

`python benchmarks/alpro.py [--threads N] [--rounds R] [--layers L]` -> results/alpro.json, one interleaved run. The
reference way: tokens patch after patch, CLS copied to every frame, a rearrangement around each attention, and attention
as two products with a softmax in between. Both must give the same tokens. Full runs are ViT-B/16 with 8 frames.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch
from machine import describe, in_turns, save, summary
from torch import Tensor, nn

from clipreel.alpro.bert import TextConfig
from clipreel.alpro.model import Alpro, AlproConfig
from clipreel.alpro.retriever import AlproRetriever
from clipreel.alpro.timesformer import Attention, Block, TimeSformer, VisionConfig
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess


def plain_attention(a: Attention, x: Tensor) -> Tensor:
    """(N, S, D) by products and a softmax."""
    n, s, d = x.shape
    q, k, v = a.qkv(x).reshape(n, s, 3, a.heads, d // a.heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (d // a.heads) ** -0.5).softmax(-1)
    return a.proj((weights @ v).transpose(1, 2).reshape(n, s, d))


def plain_block(block: Block, x: Tensor, frames: int) -> Tensor:
    """CLS, then each patch through time (B, 1 + N T, D)."""
    b, d = len(x), x.shape[2]
    patches = (x.shape[1] - 1) // frames
    over_time = x[:, 1:].reshape(b * patches, frames, d)
    seen = plain_attention(block.temporal_attn, block.temporal_norm1(over_time)).reshape(b, -1, d)
    rest = x[:, 1:] + block.temporal_fc(seen)
    cls = x[:, :1].repeat(1, frames, 1).reshape(b * frames, 1, d)
    by_frame = rest.reshape(b, patches, frames, d).transpose(1, 2).reshape(b * frames, patches, d)
    o = plain_attention(block.attn, block.norm1(torch.cat([cls, by_frame], 1)))
    cls = o[:, 0].reshape(b, frames, d).mean(1, keepdim=True)
    o = o[:, 1:].reshape(b, frames, patches, d).transpose(1, 2).reshape(b, -1, d)
    x = torch.cat([x[:, :1], rest], 1) + torch.cat([cls, o], 1)
    return x + block.mlp(block.norm2(x))


def plain(model: TimeSformer, video: Tensor) -> Tensor:
    c, x = model.embed(video)
    frames = x.shape[1]
    z = torch.cat([c, x.transpose(1, 2).flatten(1, 2)], 1)
    for block in model.blocks:
        z = plain_block(block, z, frames)
    z = model.norm(z)
    return torch.cat([z[:, :1], z[:, 1:].reshape(len(z), -1, frames, z.shape[2]).mean(2)], 1)


def step(model: nn.Module, run: object) -> None:
    model.zero_grad(set_to_none=True)
    run().square().mean().backward()


def encoder(config: VisionConfig, videos: int, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    model = TimeSformer(replace(config, drop_path=0.0))
    for block in model.blocks:
        nn.init.normal_(block.temporal_fc.weight, std=0.02)
    video = torch.randn(videos, config.frames, 3, config.image_size, config.image_size)
    ours, theirs = partial(model, video), partial(plain, model, video)
    with torch.no_grad():
        torch.testing.assert_close(ours(), theirs(), atol=1e-4, rtol=1e-3)
        forward = summary(in_turns({"clipreel": ours, "reference way": theirs}, rounds))
    both = {name: partial(step, model, run) for name, run in (("clipreel", ours), ("reference way", theirs))}
    steps = summary(in_turns(both, rounds))
    ratios = {
        n: t["reference way"]["best_s"] / t["clipreel"]["best_s"] for n, t in (("forward", forward), ("step", steps))
    }
    return {"forward": forward, "step": steps, "times_faster": ratios, "videos": videos, "config": vars(config)}


def reranking(config: VisionConfig, layers: int, candidates: int, rounds: int) -> dict[str, object]:
    """One text against `candidates` videos whose tokens are there; 1000 x 1000 follows by proportion."""
    torch.manual_seed(0)
    half = max(layers // 2, 1)
    text = TextConfig(layers=2 * half, text_layers=half)
    model = AlproRetriever(
        Alpro(AlproConfig(replace(config, layers=1), text)).eval(),
        tokenizer=None,
        preprocess=Preprocess(config.image_size),
        sampling=Sampling("uniform", config.frames),
        name="random",
    )
    tokens = torch.randn(candidates, 1 + config.grid**2, config.width)
    ids = torch.randint(1, 30000, (1, 12))
    times = summary(in_turns({"rerank": lambda: model.rerank(ids, tokens)}, rounds))
    each = times["rerank"]["best_s"] / candidates
    return {
        "candidates": candidates,
        "fusion_layers": half,
        "rerank_s": times["rerank"]["best_s"],
        "hours_for_1000_x_1000_in_full": each * 1e6 / 3600,
        "hours_for_1000_x_top_128": each * 1000 * 128 / 3600,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = VisionConfig(frames=args.frames, layers=args.layers)
    result: dict[str, object] = {"machine": describe("torch"), "threads": args.threads}
    result["timesformer"] = found = encoder(config, args.videos, args.rounds)
    print("times faster:", found["times_faster"])
    result["reranking"] = reranking(config, args.layers, args.candidates, args.rounds)
    print("reranking:", result["reranking"])
    save("alpro", result)


if __name__ == "__main__":
    main()
