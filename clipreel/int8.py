"""The video tower in 8-bit integers on the CPU, offered only together with its measured loss in recall.

`quantize` makes it, evaluates it and the original on the same pairs and keeps both results beside it; `enable` opens
it. onnxruntime computes it. Weights have 7 bits and a scale per output channel: the sum of two products with 8-bit
activations then fits into 16 bits, so CPUs with and without VNNI compute the same. Frames run one by one, because
activations share a scale per run: a frame's vector does not depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.runs import encode_videos, evaluate_vectors

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

SCHEMA = 1  # of measured.json, and of what the numbers of an int8 space mean
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Int8Frames:
    """Pixels (N, 3, H, W) -> raw vectors (N, E) float32, as many frames at once as torch has threads."""

    name = f"int8/{SCHEMA}"

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        # parallel over frames, not inside one: no waiting for each other between the layers
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

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
    """What int8 does to one model: the results of both on the same pairs, how near the vectors of the videos are
    (cosine), and how many queries lost and won the first place, text to video and video to text."""

    model: str
    space: str  # of the model in full precision
    digest: str  # of the file that was measured
    fp32: Result
    int8: Result
    cosine: Mapping[str, float]
    first_place: Mapping[str, Mapping[str, int]]

    def note(self) -> str:
        """The figures in one line."""
        said = []
        for way in ("t2v", "v2t"):
            before, after, moved = getattr(self.fp32, way), getattr(self.int8, way), self.first_place[way]
            ks = ", ".join(f"R@{k} {before[f'R@{k}']:.1f} -> {after[f'R@{k}']:.1f}" for k in (1, 5, 10))
            said.append(f"{way} {ks} (first place lost by {moved['lost']}, won by {moved['won']})")
        n = self.fp32.t2v
        return (
            f"int8 video tower, measured against fp32 on {self.fp32.stamp.split}, {n['queries']} queries over "
            f"{n['gallery']} videos: {'; '.join(said)}; mean cosine of the vectors {self.cosine['mean']:.5f}"
        )

    def to_dict(self) -> dict[str, Any]:
        results = {name: getattr(self, name).to_dict() for name in ("fp32", "int8")}
        return {"schema": SCHEMA, **vars(self), **results, "versions": {p: version(p) for p in PACKAGES}}


def place(model: Retriever) -> Path:
    """The folder that is made for exactly this model: weights, adapter, tokenizer, pixels and sampling."""
    from platformdirs import user_data_dir

    return Path(user_data_dir("clipreel", appauthor=False)) / "int8" / model.space


def require(model: Retriever) -> None:
    """Raises ClipreelError where int8 is not possible: packages, tuner, device."""
    from importlib.util import find_spec

    missing = [p for p in PACKAGES if find_spec(p) is None]
    if missing:
        raise ClipreelError(f"int8 needs {', '.join(missing)}: pip install 'clipreel[int8]'")
    if not model.pools_frames:
        raise ClipreelError(
            f"{model.name} with {type(model.tuner).__name__} looks at several frames at once, and int8 encodes each "
            "frame by itself; use --engine fp32"
        )
    if model.device.type != "cpu":
        raise ClipreelError(f"int8 runs on the CPU and {model.name} is on {model.device}; use --device cpu")


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
    require(model)
    if model.engine is not None:
        raise ClipreelError(f"{model.name} is in int8 already; quantize it from full precision")
    target = place(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "video.onnx"
        export(model, made)
        fast = model.with_engine(Int8Frames(made))
        both = []
        for encoder in (model, fast):
            vectors, failed = encode_videos(encoder, samples, frames, progress)
            if len(failed) == len(samples):
                raise ClipreelError(f"none of the {len(samples)} videos of {split} can be read; int8 stays unmeasured")
            both.append((vectors, evaluate_vectors(encoder, samples, vectors, split, frames)))
        (a, before), (b, after) = both
        cosine = (a * b).sum(1)[a.isfinite().all(1)]
        near = {"min": cosine.min().item(), "mean": cosine.mean().item()}
        moved = {way: first_place(before, after, n) for n, way in enumerate(("t2v", "v2t"))}
        measured = Measured(model.name, model.space, digest(made), before, after, near, moved)
        text = Path(scratch) / "measured.json"
        text.write_text(json.dumps(measured.to_dict(), indent=1) + "\n", "utf-8")
        target.mkdir(exist_ok=True)
        for file in (made, text):  # the digest in the second says whether the first belongs to it
            os.replace(file, target / file.name)
    return measured, failed


def enable(model: Retriever) -> Retriever:
    """The same model with its video tower in int8; its `space` differs, and its `warnings` say what int8 costs.

    Raises ClipreelError unless the loss was measured for exactly this model.
    """
    require(model)
    found = measured(model)
    if found is None:
        raise ClipreelError(
            f"int8 is offered only with its measured loss in recall, and for {model.name} none is measured: run "
            f"clipreel quantize FOLDER --model {model.name}, with a folder of videos and captions like your own"
        )
    fast = model.with_engine(Int8Frames(place(model) / "video.onnx"))
    fast.warnings = (*model.warnings, found.note())
    return fast


def measured(model: Retriever) -> Measured | None:
    """What is stored for exactly this model, None where it was never quantized. Raises ClipreelError for a damaged
    store."""
    folder = place(model)
    try:
        data = json.loads((folder / "measured.json").read_text("utf-8"))
        if data.pop("schema") != SCHEMA or data["space"] != model.space:
            raise ValueError("another schema or another model")
        if data["digest"] != digest(folder / "video.onnx"):
            raise ValueError("video.onnx is not the file that was measured")
        del data["versions"]
        return Measured(**{**data, "fp32": Result.from_dict(data["fp32"]), "int8": Result.from_dict(data["int8"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ClipreelError) as e:
        raise ClipreelError(f"the int8 model in {folder} is damaged ({e}); run clipreel quantize again") from e


def export(model: Retriever, path: Path) -> None:
    """Write the int8 graph of one frame: `frames` (1, 3, H, W) float32 -> `vectors` (1, E) float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    size = model.preprocess.size
    with quiet():
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
        quantize_dynamic(
            graph, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
        )


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


def first_place(before: Result, after: Result, way: int) -> dict[str, int]:
    """How many queries found the right one first only before, or only after."""
    assert before.ranks is not None
    assert after.ranks is not None
    was, now = (r.ranks[way].hit_rate(1) for r in (before, after))
    return {"lost": int((was > now).sum()), "won": int((was < now).sum())}


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
