"""The video tower in 8-bit integers on the CPU, offered only together with its measured loss in recall.

`quantize` makes it, evaluates it and the original on the same pairs and keeps both results beside it; `enable` opens
it. onnxruntime computes it. Weights have 7 bits and a scale per output channel: the sum of two products with 8-bit
activations then fits into 16 bits, so CPUs with and without VNNI compute the same. Patches (3 % of the work) and
attention stay in float32. Frames run one by one, because activations share a scale per run: a frame's vector does not
depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval, gain
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.runs import encode_videos, evaluate_vectors

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

SCHEMA = 1  # of measured.json, and of what the numbers of an int8 space mean
TO_RUN, TO_MAKE = ("onnxruntime",), ("onnxruntime", "onnx", "onnxscript")
GRAPH, FIGURES = "video.onnx", "measured.json"
MOST_BYTES = 2**31 - 1  # of a graph in one piece: a limit of its file format


class Int8Frames:
    """Pixels (N, 3, H, W) -> raw vectors (N, E) float32, as many frames at once as torch has threads."""

    name = f"int8/{SCHEMA}"

    def __init__(self, graph: bytes) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        # parallel over frames, not inside one: no waiting for each other between the layers
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, frames_NCHW: Tensor) -> Tensor:
        frames = frames_NCHW.float().cpu().numpy()

        def one(i: int) -> Tensor:
            return torch.from_numpy(self.session.run(None, {"frames": frames[i : i + 1]})[0])

        threads = min(torch.get_num_threads(), len(frames))
        if threads < 2:
            return torch.cat([one(i) for i in range(len(frames))])
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(one, range(len(frames)))))


@dataclass(frozen=True)
class Measured:
    """What int8 does to one model: the results of both on the same pairs, the paired gains in recall (below zero:
    lost) with their intervals, how near the vectors of the videos are (cosine), and frames/s of both on `threads`."""

    model: str
    space: str  # of the model in full precision
    fp32: Result
    int8: Result
    gains: Mapping[str, Mapping[str, Interval]]
    cosine: Mapping[str, float]
    frames_per_s: Mapping[str, float]
    threads: int

    def note(self) -> str:
        """What matters most in one line."""
        said = []
        for way, after in (("t2v", self.int8.t2v), ("v2t", self.int8.v2t)):
            g = self.gains[way]["R@1"]
            said.append(f"{way} R@1 {after['R@1']:.1f}, {g.value:+.1f} ({g.low:+.1f} to {g.high:+.1f})")
        n = self.int8.t2v
        return (
            f"int8 against fp32 on {self.int8.stamp.split}, {n['queries']} queries over {n['gallery']} videos: "
            f"{'; '.join(said)}; mean cosine {self.cosine['mean']:.4f}; "
            f"{self.frames_per_s['int8'] / self.frames_per_s['fp32']:.1f} x as fast"
        )

    def to_dict(self) -> dict[str, Any]:
        results = {name: getattr(self, name).to_dict() for name in ("fp32", "int8")}
        gains = {way: {k: asdict(g) for k, g in found.items()} for way, found in self.gains.items()}
        return {**vars(self), **results, "gains": gains}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        results = {name: Result.from_dict(data[name]) for name in ("fp32", "int8")}
        gains = {way: {k: Interval(**g) for k, g in found.items()} for way, found in data["gains"].items()}
        return cls(**{**data, **results, "gains": gains})


def place(model: Retriever) -> Path:
    """The folder that is made for exactly this model: weights, tokenizer, pixels and sampling."""
    from platformdirs import user_data_dir

    return Path(user_data_dir("clipreel", appauthor=False)) / "int8" / model.space


def require(model: Retriever, packages: Sequence[str]) -> None:
    """Raises ClipreelError where int8 is not possible: packages, tuner, device, already there."""
    missing = [p for p in packages if find_spec(p) is None]
    if missing:
        raise ClipreelError(f"int8 needs {', '.join(missing)}: pip install 'clipreel[int8]'")
    if model.engine is not None:
        raise ClipreelError(f"{model.name} is in int8 already; start from full precision (--engine torch)")
    if not model.pools_frames:
        raise ClipreelError(
            f"int8 encodes each frame with the base alone, and {model.name} has {type(model.tuner).__name__} on it; "
            "use --engine torch"
        )
    if model.device.type != "cpu":
        raise ClipreelError(f"int8 runs on the CPU and {model.name} is on {model.device}; use --device cpu")
    size = 4 * sum(p.numel() for p in model.clip.vision.parameters())
    if size > MOST_BYTES:
        raise ClipreelError(f"int8 takes video towers up to 2 GB, and that of {model.name} has {size / 1e9:.1f} GB")


def quantize(
    model: Retriever,
    samples: Sequence[Sample],
    split: str,
    frames: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Measured, list[tuple[str, str]]]:
    """Make the int8 tower of a model, measure it on these samples, and keep both for `enable`.

    Also returns the videos that could not be read, with the reason: for both towers they count as missed. Raises
    ClipreelError where int8 is not possible or no video can be read.
    """
    require(model, TO_MAKE)
    if model.dtype is not torch.float32:
        raise ClipreelError(
            f"int8 is measured against float32; load {model.name} with dtype float32, not {model.dtype}"
        )
    n = len(samples)
    wanted, failed = encode_videos(model, samples, frames, lambda done, _: progress(done, 2 * n))
    if len(failed) == n:
        raise ClipreelError(f"none of the {n} videos of {split} can be read, so nothing was measured")
    graph = export(model)
    fast = model.with_engine(Int8Frames(graph))
    found, _ = encode_videos(fast, samples, frames, lambda done, _: progress(n + done, 2 * n))
    before = evaluate_vectors(model, samples, wanted, split, frames)
    after = evaluate_vectors(fast, samples, found, split, frames)
    cosine = (wanted * found).sum(1)
    cosine = cosine[cosine.isfinite()]
    measured = Measured(
        model.name,
        model.space,
        before,
        after,
        gains=gains(before, after, [i for i, s in enumerate(samples) for _ in s.captions]),
        cosine={"min": cosine.min().item(), "mean": cosine.mean().item()},
        frames_per_s=speed(model, fast),
        threads=torch.get_num_threads(),
    )
    keep(place(model), graph, measured)
    return measured, failed


def enable(model: Retriever) -> Retriever:
    """The same model with its video tower in int8; its `space` differs, and its `warnings` say what int8 costs.

    Raises ClipreelError unless the loss was measured for exactly this model.
    """
    require(model, TO_RUN)
    folder = place(model)
    try:
        graph, text = (folder / GRAPH).read_bytes(), (folder / FIGURES).read_text("utf-8")
    except FileNotFoundError as e:
        raise ClipreelError(
            f"int8 is offered only with its measured loss in recall, and for {model.name} none is measured here: run "
            f"clipreel quantize DATA --model {model.name}, with videos and captions like your own"
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        raise ClipreelError(f"the int8 tower in {folder} cannot be read ({e})") from e
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA or data["seal"] != seal(graph, data["figures"]):
            raise ValueError("its figures are not the measurement of this tower")
        found = Measured.from_dict(data["figures"])
        if found.space != model.space:
            raise ValueError(f"measured for another model, {found.model}")
    except (ValueError, KeyError, TypeError, AttributeError, ClipreelError) as e:
        raise ClipreelError(
            f"the int8 tower in {folder} is refused ({e}); run clipreel quantize DATA --model {model.name} again"
        ) from e
    fast = model.with_engine(Int8Frames(graph))
    fast.warnings = (*model.warnings, found.note())
    return fast


def keep(folder: Path, graph: bytes, measured: Measured) -> None:
    """Write the tower and its figures; a seal over both says that they belong together."""
    figures = measured.to_dict()
    packages = {p: version(p) for p in TO_MAKE}
    data = {"schema": SCHEMA, "seal": seal(graph, figures), "figures": figures, "versions": packages}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
            for name, content in ((GRAPH, graph), (FIGURES, json.dumps(data, indent=1).encode())):
                (Path(scratch) / name).write_bytes(content)
            for name in (GRAPH, FIGURES):
                os.replace(Path(scratch) / name, folder / name)
    except OSError as e:
        raise ClipreelError(f"the int8 tower cannot be kept in {folder} ({e.strerror})") from e


def seal(graph: bytes, figures: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(figures, sort_keys=True).encode() + graph, digest_size=16).hexdigest()


def gains(before: Result, after: Result, owners: Sequence[int]) -> dict[str, dict[str, Interval]]:
    """Points of recall that the second result has more than the first; text t belongs to video owners[t]."""
    assert before.ranks is not None
    assert after.ranks is not None
    sides = {"t2v": (0, owners), "v2t": (1, range(len(before.ranks[1].above)))}
    return {way: gain(before.ranks[i], after.ranks[i], videos) for way, (i, videos) in sides.items()}


def speed(*models: Retriever, frames: int = 16, rounds: int = 3) -> dict[str, float]:
    """Best frames/s of the models in turns, by the name of their engine."""
    size = models[0].preprocess.size
    pixels = torch.randn(1, frames, 3, size, size, generator=torch.Generator().manual_seed(0))
    best = dict.fromkeys(("fp32", "int8"), 0.0)
    for _ in range(rounds):
        for model in models:
            start = time.perf_counter()
            model.encode_frames(pixels)
            name = "fp32" if model.engine is None else "int8"
            best[name] = max(best[name], frames / (time.perf_counter() - start))
    return best


def export(model: Retriever) -> bytes:
    """The int8 graph of one frame: `frames` (1, 3, H, W) float32 -> `vectors` (1, E) float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    size = model.preprocess.size
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        program = torch.onnx.export(
            OneFrame(model).eval(),
            (torch.zeros(1, 3, size, size),),
            dynamo=True,
            verbose=False,
            input_names=["frames"],
            output_names=["vectors"],
        )
        assert program is not None
        graph = program.model_proto
        # the exporter's own shapes contradict those that the quantizer infers, which then refuses the graph
        del graph.graph.value_info[:]
        made = Path(scratch) / GRAPH
        quantize_dynamic(
            graph,
            made,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        return made.read_bytes()


class OneFrame(nn.Module):
    """Pixels (1, 3, H, W) -> the raw vector (1, E) of the frame."""

    def __init__(self, model: Retriever) -> None:
        super().__init__()
        self.clip, self.tuner = model.clip, model.tuner

    def forward(self, frames: Tensor) -> Tensor:
        return self.clip.encode_video(frames[:, None], self.tuner)[:, 0]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's warnings about packages and types of its own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
