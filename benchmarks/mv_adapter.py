"""MV-Adapter: training steps beside the official way of writing it, ST-Adapter and full tuning; what it adds to
encoding; and five adapters on one base (ViT-B/16 with random weights).

`python benchmarks/mv_adapter.py [--videos N] [--rounds N] [--threads N]` -> results/mv_adapter.json. The official way
makes an up-projection of every frame and a dense mask in every block, folds no factors, and keeps what autograd finds
for the backward pass. Outputs and gradients of
both are compared before anything is timed; then all take turns. Memory is measured in a process of its own for each,
as in training.py. `--quick` is a trial of two small layers that writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from encode import caption_ids
from machine import describe, in_fresh_process, in_turns, save, summary
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training import Ours, keeping_all, kept_bytes, memory, synchronised

import clipreel
from clipreel.adapter import WEIGHTS, save_adapter, trained, with_adapter
from clipreel.block import Block
from clipreel.clip import Clip
from clipreel.identity import digest
from clipreel.patterns import Layout
from clipreel.retriever import Retriever
from clipreel.sites import PLAIN, Tuner
from clipreel.training.batches import Batch
from clipreel.tuners import build, options
from clipreel.tuners.counting import ARCHITECTURES
from clipreel.tuners.mv_adapter import MvAdapter, TextBottleneck, VideoBottleneck
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

SIZES = ("ViT-B/32", "ViT-B/16")
PEERS = ("mv_adapter", "official way", "st_adapter", "full")
OPTIONS = ("videos", "frames", "threads", "device", "precision", "layers")  # that a process of its own is given too
TASKS, STEPS, QUERIES = 5, 2, 40


# ------------------------------------------------------------------ the official way


def gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def block(b: Block, x_BSR: Tensor, mask: Tensor) -> Tensor:
    """A block of the bottleneck under a dense additive mask that broadcasts to (B, H, S, S)."""
    q, k, v = (y.unflatten(-1, (b.heads, -1)).transpose(1, 2) for y in b.qkv(b.ln1(x_BSR)).chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, mask.expand(len(q), b.heads, q.shape[2], q.shape[2]).contiguous())
    x = x_BSR + b.out(y.transpose(1, 2).flatten(2))
    return x + b.proj(gelu(b.fc(b.ln2(x))))


def video_branch(self: VideoBottleneck, f_BSD: Tensor, layout: Layout) -> Tensor:
    """Tokens first, as the released code has them, and the up-projection of every frame written out."""
    B, T = len(f_BSD), layout.frames
    f_LFD = layout.split(f_BSD)[1].flatten(0, 1).transpose(0, 1)
    tied = self.tied()
    z = gelu(F.linear(f_LFD, self.down.weight if tied is None else tied, self.down.bias)).unflatten(1, (B, T))
    mask = torch.ones(B, T, device=z.device, dtype=z.dtype)
    assert self.cc is not None
    assert self.block is not None
    assert self.calibrate_c is not None
    s = torch.cat([self.cc.expand(B, 1, -1), z[0], z[1:].mean(0)], 1) + self.pos[: 1 + 2 * T]
    hidden = (1 - torch.cat([torch.ones_like(mask[:, :1]), mask, mask], 1)) * -1e6
    context, cls, patches = gelu(block(self.block, self.ln_pre(s), hidden[:, None, None])).split([1, T, T], 1)
    calibrate = self.calibrate_c
    e = torch.cat([cls + patches, calibrate.g(context).expand(-1, T, -1)], -1) * mask[..., None]
    alpha = 1 + calibrate.b(F.relu(calibrate.a(e)))
    up_BTDR = torch.einsum("btr,dr->btdr", alpha, self.up.weight)
    first = torch.einsum("btdr,btr->btd", up_BTDR, cls) + self.up.bias
    out = self.scale * torch.cat([first[None], self.up(z[1:])])
    return out.permute(1, 2, 0, 3).flatten(1, 2)


def text_branch(self: TextBottleneck, f_NLD: Tensor, layout: Layout) -> Tensor:
    tied, L = self.tied(), f_NLD.shape[1]
    z = F.linear(f_NLD, self.down.weight if tied is None else tied, self.down.bias) + self.pos[:L]
    assert self.block is not None
    mask = torch.full((L, L), -torch.inf, device=z.device, dtype=z.dtype).triu_(1)
    return self.scale * self.up(gelu(block(self.block, self.ln_pre(z), mask)))


def officially(tuner: MvAdapter) -> MvAdapter:
    """The same tensors, used as the released code does."""
    for layer in tuner.placed.values():
        layer.delta = MethodType(video_branch if isinstance(layer, VideoBottleneck) else text_branch, layer)
    return tuner


# ------------------------------------------------------------------ one base, all peers


def base_of(size: str, args: argparse.Namespace) -> Clip:
    torch.manual_seed(0)
    config = ARCHITECTURES[size]
    towers = {name: replace(getattr(config, name), layers=args.layers or 12) for name in ("vision", "text")}
    return Clip(replace(config, **towers))


def tuner_of(name: str, clip: Clip, frames: int) -> Tuner:
    """Equal from call to call, and away from the start, where an MV-Adapter adds nothing."""
    torch.manual_seed(1)
    known = {"official way": "mv_adapter"}.get(name, name)
    tuner = build(known, clip, {"frames": frames} if known == "mv_adapter" else {})
    if known == "mv_adapter":
        with torch.no_grad():
            for n, p in tuner.named_parameters():
                if not n.startswith("base"):
                    p.add_(torch.randn_like(p) * 0.02)
    return officially(tuner) if name == "official way" else tuner


def batch_of(clip: Clip, tuner: Tuner, args: argparse.Namespace) -> Batch:
    generator = torch.Generator().manual_seed(1)
    n, size = args.videos, clip.config.image_size
    frames = torch.randint(0, 256, (n, args.frames, 3, size, size), dtype=torch.uint8, generator=generator)
    ids = caption_ids(n, generator)[:, : clip.config.context - tuner.text_slots]
    return Batch(frames, ids.contiguous(), torch.arange(n), tuple(map(str, range(n))))


def compared(clip: Clip, args: argparse.Namespace) -> dict[str, float]:
    """Greatest differences of outputs and gradients; SystemExit where the two ways are not the same mathematics."""
    found = []
    exact = argparse.Namespace(**{**vars(args), "precision": "float32", "videos": 2})
    for name in PEERS[:2]:
        peer = Ours(clip, tuner_of(name, clip, args.frames), exact)
        features = peer.recipe.encode(batch_of(clip, peer.tuner, exact).to(args.device))
        (features["video"] @ features["text"].T * 100).logsumexp(1).sum().backward()
        grads = {n: p.grad for n, p in peer.recipe.trained().items() if p.grad is not None}
        found.append(({n: x.detach() for n, x in features.items()}, grads))
    (ours, mine), (theirs, wanted) = found
    assert set(mine) == set(wanted), set(mine) ^ set(wanted)
    least = 1e-5 * nn.utils.get_total_norm(list(wanted.values()))
    out = {
        "output": max(float((ours[k] - theirs[k]).abs().max()) for k in ours),
        "gradient": max(float((mine[n] - g).norm() / g.norm().clamp(min=least)) for n, g in wanted.items()),
    }
    if out["output"] > 1e-4 or out["gradient"] > 1e-3:
        raise SystemExit(f"the official way is not the same mathematics: {out}")
    return out


def alone(size: str, name: str, args: argparse.Namespace) -> dict[str, int]:
    """Memory of one peer; run in a fresh process."""
    clip = base_of(size, args)
    peer = Ours(clip, tuner_of(name, clip, args.frames), args)
    batch = batch_of(clip, peer.tuner, args)
    with as_it_is_kept(name):
        peak = memory(peer.step, batch, args.device)
        kept = kept_bytes(lambda: peer.loss(batch), nn.ModuleList([clip, peer.tuner]))
    return {"peak_bytes": peak, "kept_bytes": kept}


def as_it_is_kept(name: str) -> AbstractContextManager[None]:
    """How a peer keeps activations."""
    return keeping_all() if name == "official way" else nullcontext()


def training(size: str, clip: Clip, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds and memory of a step, and the numbers that it trains."""
    peers = {name: Ours(clip, tuner_of(name, clip, args.frames), args) for name in PEERS}

    def step(name: str, batch: Batch) -> None:
        with as_it_is_kept(name):
            peers[name].step(batch)

    batches = {n: batch_of(clip, p.tuner, args) for n, p in peers.items()}
    steps = {n: synchronised(partial(step, n, batch), args.device) for n, batch in batches.items()}
    rows = summary(in_turns(steps, args.rounds))
    for name, peer in peers.items():
        count = sum(p.numel() for p in peer.recipe.trained().values())
        rows[name] |= {"trained": count, **in_fresh_process(__file__, (size, name), args, OPTIONS)}
    return rows


def encoding(clip: Clip, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Videos through the tower: the bare one, and what each adapter adds in per cent, by the clock and in FLOP.

    Our adapter is folded, as every loaded one is. Bare, the last block computes CLS alone, which no adapter behind the
    MLP can: that is in the figures.
    """
    tuners: dict[str, Tuner] = {"bare": PLAIN}
    for name in PEERS[:3]:
        tuners[name] = tuner_of(name, clip, args.frames).to(args.device).eval().requires_grad_(False)
    tuners["mv_adapter"].fold()
    size, dtype = clip.config.image_size, getattr(torch, args.precision)
    pixels = torch.randn(args.videos, args.frames, 3, size, size, device=args.device)

    @torch.inference_mode()
    def encode(tuner: Tuner) -> None:
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            clip.encode_video(pixels, tuner)

    runs = {name: synchronised(partial(encode, tuner), args.device) for name, tuner in tuners.items()}
    times = in_turns(runs, max(args.rounds, 3) if not args.quick else 1)
    rows = summary(times)
    for name, run in runs.items():
        with FlopCounterMode(display=False) as counter:
            run()
        rows[name]["gflop"] = counter.get_total_flops() / 1e9
        # turn by turn, because clocks drift between turns
        more = [100 * (t / bare - 1) for t, bare in zip(times[name], times["bare"], strict=True)]
        rows[name]["extra_percent"] = statistics.median(more)
        rows[name]["extra_flop_percent"] = 100 * (rows[name]["gflop"] / rows["bare"]["gflop"] - 1)
    return rows


# ------------------------------------------------------------------ five tasks on one base


def five(base: Retriever, folder: Path, args: argparse.Namespace) -> list[Retriever]:
    """Five adapters for as many frames as are encoded, each trained STEPS steps on other random data, saved, and loaded
    onto the one base in memory: what is measured are bytes and time, which no more training changes."""
    frames = args.frames
    chosen, made = options("mv_adapter", {"frames": frames}), []
    small = argparse.Namespace(**{**vars(args), "videos": 2, "device": "cpu", "precision": "float32"})
    for task in range(TASKS):
        torch.manual_seed(task)
        peer = Ours(base.clip, build("mv_adapter", base.clip, {"frames": frames}), small)
        batch = batch_of(base.clip, peer.tuner, small)
        vocab = base.clip.config.vocab
        batch = replace(batch, frames=batch.frames.roll(task, -1), ids=batch.ids.clamp(max=vocab - 1))
        for _ in range(STEPS):
            peer.step(batch)
        model = base.adapted(peer.tuner, adapter=digest(trained(peer.tuner)), sampling=Sampling("mv_adapter", frames))
        made.append(save_adapter(folder / str(task), model, "mv_adapter", chosen))
    return [with_adapter(base, path) for path in made]


def storage(base: Retriever, args: argparse.Namespace) -> dict[str, float]:
    """Bytes of the files and in memory, and a query to one adapter beside queries to five in turn."""
    with tempfile.TemporaryDirectory() as folder:
        resident = five(base, Path(folder), args)
        files = [(path / WEIGHTS).stat().st_size for path in sorted(Path(folder).iterdir())]
    assert all(model.clip is base.clip for model in resident)
    assert len({model.space for model in resident}) == TASKS
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for m in resident for t in state(m.tuner)}
    own = sum(t.numel() * t.element_size() for t in base.clip.parameters())
    ids = caption_ids(1, torch.Generator().manual_seed(3))[:, : resident[0].context].clamp(
        max=base.clip.config.vocab - 1
    )
    orders = {"one": [resident[0]] * TASKS, "in turn": resident}
    asked: dict[str, Callable[[], object]] = {n: partial(ask, models, ids) for n, models in orders.items()}
    times = {n: [t / TASKS for t in all_of] for n, all_of in in_turns(asked, QUERIES).items()}
    switch = statistics.median(b - a for a, b in zip(times["one"], times["in turn"], strict=True))
    return {
        "tasks": TASKS,
        "frames": args.frames,
        "steps": STEPS,
        "base_bytes": own,
        "file_bytes": statistics.mean(files),
        "files_share_of_base": sum(files) / own,
        "resident_bytes": sum(tensors.values()),
        "base_and_adapters_share": 1 + sum(tensors.values()) / own,
        "query_s": statistics.median(times["one"]),
        "query_in_turn_s": statistics.median(times["in turn"]),
        "switch_s": switch,
    }


def state(tuner: Tuner) -> list[Tensor]:
    """All that an adapter holds in memory, its folded weights too."""
    return [*tuner.parameters(), *tuner.buffers()]


def ask(models: list[Retriever], ids: Tensor) -> None:
    for model in models:
        model.encode_text(ids)


def untrained(size: str, args: argparse.Namespace) -> Retriever:
    clip = base_of(size, args)
    sampling = Sampling("mv_adapter", 12)
    return Retriever(clip, tokenizer=None, preprocess=Preprocess(), sampling=sampling, name=f"random {size}")


# ------------------------------------------------------------------ the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=0, help="of both towers, for a trial; 0: all 12")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--alone", nargs=2, metavar=("SIZE", "PEER"), help="only the memory of one, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        print(json.dumps(alone(*args.alone, args)))
        return
    if args.quick:
        args.sizes, args.videos, args.frames, args.rounds, args.layers = ["ViT-B/32"], 1, 2, 1, 2
    machine = describe("torch")
    if args.device != "cpu":
        machine["gpu"] = torch.cuda.get_device_name()
    stated = {n: getattr(args, n) for n in ("videos", "frames", "threads", "rounds", "layers", "device", "precision")}
    result: dict[str, object] = {"machine": machine, **stated}
    for size in args.sizes:
        clip = base_of(size, args).to(args.device)
        found = {
            "apart": compared(clip, args),
            "training": training(size, clip, args),
            "encoding": encoding(clip, args),
        }
        result[size] = found
        for part in ("training", "encoding"):
            print(size, part, json.dumps(found[part]), flush=True)
    bases = {"shapes-tiny": partial(clipreel.load, "shapes-tiny", device="cpu")}
    if not args.quick:
        bases["ViT-B/16"] = partial(untrained, "ViT-B/16", args)
    result["storage"] = kept = {name: storage(make(), args) for name, make in bases.items()}
    print("storage", json.dumps(kept))
    if not args.quick:
        save("mv_adapter" if args.device == "cpu" else f"mv_adapter_{args.device}", result)


if __name__ == "__main__":
    main()
