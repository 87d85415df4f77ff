"""TimeSformer forward and training step against the reference way of computing; matching of every pair against top k.

`python benchmarks/alpro.py [--quick] [--threads N] [--rounds R] [--layers L]` -> results/alpro.json, one interleaved
run. The reference way: tokens patch after patch, CLS copied to every frame, a rearrangement around each attention, and
attention as two products with a softmax in between. Both must give the same tokens and the same gradients. TimeSformer
and the reranking of one query are of ViT-B/16 with 8 frames; 1000 x 1000 pairs are judged by a small model, by a large
one they would take days, and the file says how many. `--quick` makes everything tiny and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
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


def step(model: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    run().square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


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
    for mine, other in zip(step(model, ours), step(model, theirs), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3 * float(other.abs().max()), rtol=1e-3)
    both = {name: partial(step, model, run) for name, run in (("clipreel", ours), ("reference way", theirs))}
    steps = summary(in_turns(both, rounds))
    ratios = {
        n: t["reference way"]["best_s"] / t["clipreel"]["best_s"] for n, t in (("forward", forward), ("step", steps))
    }
    return {"forward": forward, "step": steps, "times_faster": ratios, "videos": videos, "config": vars(config)}


def judge(vision: VisionConfig, text: TextConfig) -> AlproRetriever:
    """A random model; its tokens are made elsewhere, so one layer of video is enough."""
    torch.manual_seed(0)
    model = Alpro(AlproConfig(replace(vision, layers=1), text)).eval()
    pixels, sampling = Preprocess(vision.image_size), Sampling("uniform", vision.frames)
    return AlproRetriever(model, tokenizer=None, preprocess=pixels, sampling=sampling, name="random")


def one_query(config: VisionConfig, text: TextConfig, candidates: int, rounds: int) -> dict[str, object]:
    """One text against `candidates` videos whose tokens are there; 1000 x 1000 follows by proportion."""
    model = judge(config, text)
    tokens = torch.randn(candidates, 1 + config.grid**2, config.width)
    ids = torch.randint(1, text.vocab, (1, 12))
    times = summary(in_turns({"rerank": lambda: model.rerank(ids, tokens)}, rounds))
    each = times["rerank"]["best_s"] / candidates
    return {
        "candidates": candidates,
        "fusion_layers": text.layers - text.text_layers,
        "rerank_s": times["rerank"]["best_s"],
        "by_proportion_hours_for_1000_x_1000_in_full": each * 1e6 / 3600,
        "by_proportion_hours_for_1000_x_top_128": each * 1000 * 128 / 3600,
    }


def all_pairs(vision: VisionConfig, text: TextConfig, count: int, k: int) -> dict[str, object]:
    """`count` texts against as many videos, text to video: every pair, and the top k of each text by cosine.

    Each way once: the full one is a million passes.
    """
    model = judge(vision, text)
    tokens = torch.randn(count, 1 + vision.grid**2, vision.width)
    ids = torch.randint(1, text.vocab, (count, 12))

    def in_full() -> Tensor:
        return torch.stack([model.rerank(row[None], tokens) for row in ids])

    def top_k() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            best = (model.encode_text(ids) @ model.model.video_vectors(tokens).T).topk(k, 1).indices
        return best, torch.stack([model.rerank(row[None], tokens[some]) for row, some in zip(ids, best, strict=True)])

    seconds, found = {}, {}
    for name, run in (("top k", top_k), ("in full", in_full)):
        began = time.perf_counter()
        found[name] = run()
        seconds[name] = time.perf_counter() - began
    best, scores = found["top k"]
    torch.testing.assert_close(found["in full"].gather(1, best), scores, atol=1e-4, rtol=1e-3)
    return {
        "texts": count,
        "videos": count,
        "k": k,
        "seconds": seconds,
        "times_faster": seconds["in full"] / seconds["top k"],
        "width": vision.width,
        "tokens": [12, 1 + vision.grid**2],
        "fusion_layers": text.layers - text.text_layers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=1000, help="texts and videos that are judged in full")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written: does it run?")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = VisionConfig(frames=args.frames, layers=args.layers)
    half = max(args.layers // 2, 1)
    text = TextConfig(layers=2 * half, text_layers=half)
    small = VisionConfig(64, 16, 4, 64, 1, 2, 128), TextConfig(1000, 40, 64, 2, 1, 2, 128)
    rounds, pairs, candidates = args.rounds, args.pairs, args.candidates
    if args.quick:
        (config, text), rounds, pairs, candidates = small, 1, 20, 8
    result: dict[str, object] = {"machine": describe("torch"), "threads": args.threads}
    result["timesformer"] = found = encoder(config, args.videos, rounds)
    print("times faster:", found["times_faster"])
    result["one query"] = one_query(config, text, candidates, rounds)
    print("one query:", result["one query"])
    result["all pairs"] = all_pairs(*small, pairs, min(candidates, pairs))
    print("all pairs:", result["all pairs"])
    if not args.quick:
        save("alpro", result)


if __name__ == "__main__":
    main()
