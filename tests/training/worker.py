"""One process of a tested run, started with the environment that torchrun gives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import clipreel
from clipreel.data.readers import read_samples
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import save_features
from clipreel.head_files import with_head
from clipreel.training import checkpoint, distributed
from clipreel.training.alpro_stages import run_stage
from clipreel.training.engine import Validator, fit
from clipreel.training.evaluating import evaluate_together
from tests.training.tiny import ROWS, Memory, tiny_config, tiny_recipe


@dataclass
class Worker:
    """A started process and where its words arrive."""

    process: BaseProcess
    words: Path

    def wait(self, timeout: float = 300.0) -> tuple[int, str]:
        """Exit status (-9: killed) and everything said. A process that does not end fails the test."""
        self.process.join(timeout)
        code = self.process.exitcode
        self.end()
        assert code is not None, f"still running after {timeout} s: {self.words.read_text()}"
        return code, self.words.read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def start(size: int, folder: Path, **options: Any) -> list[Worker]:
    """The processes of one run. They are forked from a server that has torch imported, which takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    found = []
    for rank in range(size):
        around = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = folder.with_name(f"{folder.name}-{port}-{rank}.txt")
        process = context.Process(target=work, args=(around, str(words), str(folder), options), daemon=True)
        process.start()
        found.append(Worker(process, words))
    return found


def run(size: int, folder: Path, **options: Any) -> list[tuple[int, str]]:
    """Exit status and words of every process of a run."""
    workers = start(size, folder, **options)
    try:
        return [w.wait() for w in workers]
    finally:
        for w in workers:
            w.end()


def work(around: dict[str, Any], words: str, folder: str, options: dict[str, Any]) -> None:
    """What a process does: one run, its words in a file, status 2 for an error that it explains."""
    os.environ.update({k: str(v) for k, v in around.items()})
    torch.set_num_threads(1)
    with open(words, "w", buffering=1) as out:
        sys.stdout = sys.stderr = out
        try:
            with distributed.joined(options.pop("timeout_s", 300.0)):
                main(Path(folder), options)
        except ClipreelError as e:
            print(e)
            sys.exit(2)
        except Exception:
            traceback.print_exc()
            sys.exit(1)


def kill_at(event: str, number: int) -> None:
    """Die without a word (SIGKILL) when something happens for the n-th time."""
    left = [number]
    original = getattr(checkpoint, event) if event == "save_file" else getattr(os, event)

    def dying(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if event == "save_file":  # half a file
                Path(args[1]).write_bytes(b"\0" * 100)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(checkpoint if event == "save_file" else os, event, dying)


def own_loop(folder: Path, sizes: list[int], misses: bool = False) -> None:
    """One step as somebody would write it without the engine: gradients averaged over processes."""
    recipe = tiny_recipe()
    losses, _ = recipe(Memory(tuple(sizes), misses=misses).batch(0))
    sum(losses.values()).backward()
    params = recipe.trained()
    distributed.sum_gradients(list(params.values()))
    size = distributed.world().size
    grads = {n: p.grad / size for n, p in params.items() if p.grad is not None}
    if distributed.world().first:
        checkpoint.write_whole(folder / "grads.safetensors", grads, {})


def evaluation(folder: Path) -> None:
    """The features of annotated videos, as the first process has them after sharing."""
    model = clipreel.load("shapes-tiny", device="cpu")
    samples = read_samples(folder.parent / "annotations.jsonl", check_files=False)
    bank = [c for s in samples[:3] for c in s.captions]
    found = evaluate_together(model, samples, "ragged", 2, bank)
    judged = evaluate_together(with_head(model, "soft_frames"), samples, "ragged", 2, bank)
    if distributed.world().first:
        save_features(folder, found)
        save_features(folder / "judged", judged)


def alpro(folder: Path, hook: Any, stage: str, sizes: list[int], options: dict[str, Any], **config: Any) -> None:
    """A stage of ALPRO; says how many pairs this process judged in each step."""
    from tests.training import test_alpro

    recipe, judged = test_alpro.stage(stage, **options), []
    match = recipe.model.match
    recipe.model.match = lambda *tokens: judged.append(len(tokens[0])) or match(*tokens)
    fit(recipe, test_alpro.Shared(tuple(sizes), hook), tiny_config(**config), folder)
    print("judged", judged)


def main(folder: Path, options: dict[str, Any]) -> None:
    rank = distributed.world().rank
    if options.get("evaluate"):
        evaluation(folder)
        return
    if "kill" in options:
        kill_at(*options["kill"])

    def hook(step: int) -> None:
        if options.get("die") == [rank, step]:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.get("hang") == [rank, step]:
            os.kill(os.getpid(), signal.SIGSTOP)

    if "alpro" in options:
        alpro(folder, hook, **options["alpro"])
        return
    if "stage" in options:
        print("R@1", run_stage(options["stage"], folder, say=print).outcome.selected.metrics["t2v R@1"])
        return
    if options.get("own_loop"):
        own_loop(folder, options["sizes"], options.get("misses", False))
        return
    if "dark" in options:
        from tests.training import test_engine

        fit(test_engine.dark_recipe(options["dark"]), test_engine.OneDark(), tiny_config(), folder)
        return
    recipe = tiny_recipe(options.get("dropout", 0.0), options.get("method", ""), train_base=options.get("shard", False))
    if options.get("shard"):
        distributed.shard(recipe.clip)
    loader = Memory(tuple(options.get("sizes", [ROWS])), hook, options.get("misses", False))
    validator = Validator("validation", lambda r: {"t2v R@1": float(torch.rand(()))})
    config = tiny_config(**options.get("config", {}))
    outcome = fit(recipe, loader, config, folder, validator=validator)
    print("micro_batch", outcome.micro_batch)
