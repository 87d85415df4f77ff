"""A training step of VoP, F+C and full tuning at ViT-B/32: ours, and a plain loop with transformers (plain_loop.py).

`python benchmarks/training.py [--videos N] [--threads N] [--out NAME]` -> results/NAME.json (training). First loss and
gradients of both are compared, with the same weights, prompts and batch; then they are timed in turns. Memory is
measured in a process of its own for each: `peak_bytes` above weights and moments, and `kept_bytes`, exactly what
autograd holds between forward and backward. `1/2` and `1/4` are feature-cache micro-batches of that share of the batch.
`--device cuda --precision bfloat16 --videos 32` gives the same on a GPU, and the share of its measured GEMM peak.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from encode import B32, caption_ids
from machine import describe, in_fresh_process, in_turns, save, summary
from plain_loop import Plain, PlainLoop
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipreel.checkpoints import to_hf
from clipreel.clip import Clip
from clipreel.sites import Tuner
from clipreel.training.batches import Batch
from clipreel.training.config import OptimConfig, ScheduleConfig
from clipreel.training.microbatch import Passes, gradients
from clipreel.training.optim import Updater
from clipreel.training.recipe import RetrievalRecipe
from clipreel.tuners import build
from clipreel.video.transforms import Preprocess

METHODS, MICRO = ("vop", "vop_fc", "full"), {"clipreel": 1, "clipreel 1/2": 2, "clipreel 1/4": 4}
OPTIONS = ("videos", "frames", "threads", "device", "precision")  # that a process of its own is given too
OPTIM = OptimConfig("adamw", lr=1e-5, decay=0.2, eps=1e-6, clip_norm=1.0)


class Ours:
    """The same as `PlainLoop`, as the engine does it."""

    def __init__(self, clip: Clip, tuner: Tuner, args: argparse.Namespace, parts: int = 1) -> None:
        self.clip, self.tuner = clip, tuner
        self.recipe = RetrievalRecipe(clip.to(args.device), tuner.to(args.device), Preprocess())
        self.recipe.train(True)
        params, device = self.recipe.trained(), torch.device(args.device)
        self.updater = Updater(params, OPTIM, ScheduleConfig("constant", 0.0), 1000)
        dtype = getattr(torch, args.precision)
        self.passes = Passes(
            list(params.values()),
            device,
            -(-args.videos // parts),
            lambda: torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        )

    def loss(self, batch: Batch) -> Tensor:
        with self.passes.autocast():
            return self.recipe(batch.to(self.passes.device))[0]["contrastive"]

    def backward(self, batch: Batch) -> Tensor:
        return gradients(self.recipe, batch, 0, self.passes)[0]["contrastive"]

    def step(self, batch: Batch) -> None:
        self.backward(batch)
        self.updater.update(0)
        self.recipe.after_step()


def made(method: str, args: argparse.Namespace) -> tuple[Clip, Tuner]:
    torch.manual_seed(0)
    clip = Clip(B32)
    return clip, build(method, clip, {"frames": args.frames} if method != "full" else {})


def batch_of(method: str, args: argparse.Namespace) -> Batch:
    generator = torch.Generator().manual_seed(1)
    n = args.videos
    frames = torch.randint(0, 256, (n, args.frames, 3, 224, 224), dtype=torch.uint8, generator=generator)
    ids = caption_ids(n, generator)[:, : 77 if method == "full" else 69]
    return Batch(frames, ids.contiguous(), torch.arange(n), tuple(map(str, range(n))))


def in_plain_names(method: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our trained tensors, or their gradients, under the names of the plain loop."""
    if method == "full":
        own = {name.removeprefix("base.tensors.").replace("/", "."): x for name, x in values.items()}
        return {f"model.{name}": x for name, x in to_hf(own, B32).items()}
    out = {}
    for name, x in values.items():
        part, *rest = name.split(".")
        if name.startswith("context.read."):
            out |= {f"lstm.{rest[1]}_l0{end}": x[d] for d, end in enumerate(("", "_reverse"))}
        elif part == "context":
            out[f"fc.{rest[1]}"] = x
        elif rest[1] == "frame_position":
            out["frame_position"] = x
        else:
            out[f"{'video' if part == 'vision' else 'text'}_prompts.{rest[0]}"] = x
    return out


def peers(method: str, args: argparse.Namespace) -> tuple[PlainLoop, Ours]:
    """Both with the same weights and prompts."""
    clip, tuner = made(method, args)
    plain = Plain(method, args.frames)
    plain.model.load_state_dict(to_hf(clip.state_dict(), B32))
    ours = Ours(clip, tuner, args)
    mapped = in_plain_names(method, dict(ours.recipe.trained()))
    theirs = plain.trained()
    assert set(mapped) == set(theirs), set(mapped) ^ set(theirs)
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(mapped[name])
    return PlainLoop(plain, torch.device(args.device), getattr(torch, args.precision)), ours


def compared(method: str, plain: PlainLoop, ours: Ours, batch: Batch) -> dict[str, float]:
    """Greatest relative differences of loss and gradients; SystemExit where they are not the same mathematics."""
    wanted = plain.loss(batch.frames, batch.ids)
    wanted.backward()
    loss = ours.backward(batch)
    found = in_plain_names(method, {n: p.grad for n, p in ours.recipe.trained().items() if p.grad is not None})
    grads = {name: p.grad for name, p in plain.plain.trained().items() if p.grad is not None}
    assert set(grads) == set(found), set(grads) ^ set(found)
    # a gradient that is zero in exact arithmetic (biases of keys) is only rounding: the scale of all counts there
    least = 1e-5 * nn.utils.get_total_norm(list(grads.values()))
    apart = {name: float((found[name] - g).norm() / g.norm().clamp(min=least)) for name, g in grads.items()}
    worst = max(apart, key=lambda n: apart[n])
    out = {"loss": float((loss - wanted.detach()).abs() / wanted.detach()), "gradient": apart[worst]}
    if out["loss"] > 1e-4 or out["gradient"] > 1e-3:
        raise SystemExit(f"{method}: not the same mathematics: {out}, worst gradient {worst}")
    plain.optimiser.zero_grad()
    ours.updater.optimiser.zero_grad()
    return out


@contextmanager
def keeping_all() -> Iterator[None]:
    """Blocks of which autograd keeps what it finds, as in released code: nothing is made again in the backward pass."""
    with mock.patch("clipreel.block.sparingly", lambda make, *kept, random: make(*kept)):
        yield


def kept_bytes(loss: Callable[[], Tensor], weights: nn.Module) -> int:
    """Bytes that autograd holds for the backward pass, each storage once, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in weights.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = loss()
    result.backward()
    return sum(kept.values())


def memory(step: Callable[[Batch], None], batch: Batch, device: str) -> int:
    """Bytes above weights and moments of the optimiser (equal for all), at the peak of two steps.

    One row goes through first, so that the moments, and code and buffers of the libraries, are there.
    """
    step(batch.rows(0, 1))
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(batch), step(batch)
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory goes back to the system, and
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten; Linux only
    before = resident("VmRSS")
    step(batch), step(batch)
    return resident("VmHWM") - before


def resident(which: str) -> int:
    """Resident bytes of this process: now (VmRSS) or at their peak (VmHWM)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(which))
    return 1024 * int(line.split()[1])


def alone(method: str, name: str, args: argparse.Namespace) -> dict[str, int]:
    """Memory of one peer; run in a fresh process."""
    batch = batch_of(method, args)
    if name == "transformers":
        torch.manual_seed(0)
        plain = Plain(method, args.frames)
        loop = PlainLoop(plain, torch.device(args.device), getattr(torch, args.precision))
        peak = memory(lambda rows: loop.step(rows.frames, rows.ids), batch, args.device)
        return {"peak_bytes": peak, "kept_bytes": kept_bytes(lambda: loop.loss(batch.frames, batch.ids), plain)}
    ours = Ours(*made(method, args), args, MICRO[name])
    out = {"peak_bytes": memory(ours.step, batch, args.device)}
    if MICRO[name] == 1:
        out["kept_bytes"] = kept_bytes(lambda: ours.loss(batch), nn.ModuleList([ours.clip, ours.tuner]))
    return out


def gemm(args: argparse.Namespace) -> tuple[Callable[[], object], float]:
    """A product of two square matrices in this precision, ten times, and its FLOP."""
    n = 8192 if args.device != "cpu" else 2048
    a, b = torch.randn(2, n, n, device=args.device, dtype=getattr(torch, args.precision))
    return lambda: [torch.mm(a, b) for _ in range(10)], 20 * n**3


def synchronised(run: Callable[[], object], device: str) -> Callable[[], None]:
    """`run`, finished."""

    def finished() -> None:
        run()
        if device != "cpu":
            torch.cuda.synchronize()

    return finished


def measure(method: str, args: argparse.Namespace) -> dict[str, object]:
    batch = batch_of(method, args)
    exact = argparse.Namespace(**{**vars(args), "precision": "float32", "videos": 2})
    out: dict[str, object] = {"apart": compared(method, *peers(method, exact), batch_of(method, exact))}
    plain, ours = peers(method, args)
    steps: dict[str, Callable[[], None]] = {"transformers": partial(plain.step, batch.frames, batch.ids)}
    for name, parts in MICRO.items():
        if parts == 1 or (method in args.micro and args.videos >= parts):
            peer = ours if parts == 1 else Ours(ours.clip, ours.tuner, args, parts)
            steps[name] = partial(peer.step, batch)
    product, flop = gemm(args)
    runs = {name: synchronised(run, args.device) for name, run in {**steps, "gemm": product}.items()}
    times = summary(in_turns(runs, args.rounds))
    peak = flop / times["gemm"]["best_s"]
    rows: dict[str, dict[str, float]] = {}
    for name, run in steps.items():
        with FlopCounterMode(display=False) as counter:
            run()
        flop = counter.get_total_flops()
        rows[name] = {**times[name], "gflop": flop / 1e9, "share_of_peak": flop / times[name]["best_s"] / peak}
    del plain, ours, steps
    for name, row in rows.items():
        row |= in_fresh_process(__file__, (method, name), args, OPTIONS)
    ours_row, theirs = rows["clipreel"], rows["transformers"]
    out |= {"peers": rows, "gemm_peak_gflops": peak / 1e9, "speed_ratio": theirs["best_s"] / ours_row["best_s"]}
    return out | {f"{m}_ratio": ours_row[f"{m}_bytes"] / theirs[f"{m}_bytes"] for m in ("peak", "kept")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--micro", nargs="*", choices=METHODS, default=["vop"], help="methods measured in micro-batches"
    )
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", default="training", help="name of the file in results")
    parser.add_argument("--alone", nargs=2, metavar=("METHOD", "PEER"), help="only the memory of one, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        print(json.dumps(alone(*args.alone, args)))
        return
    machine = describe("torch", "transformers")
    if args.device != "cpu":
        machine["gpu"] = torch.cuda.get_device_name()
    asked = {name: getattr(args, name) for name in ("videos", "frames", "threads", "rounds", "device", "precision")}
    result: dict[str, object] = {"machine": machine, **asked}
    for method in args.methods:
        result[method] = measured = measure(method, args)
        print(method, {k: round(v, 3) for k, v in measured.items() if isinstance(v, float)}, flush=True)
    save(args.out if args.device == "cpu" else f"{args.out}_{args.device}", result)


if __name__ == "__main__":
    main()
