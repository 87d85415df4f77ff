"""The vectors of an evaluation with what they are of, as files: scored again in every way, without the model.

A folder holds features.safetensors (`texts`, `videos`, `bank` where other texts were encoded, and `scores` where a head
judged pairs; float32) and features.json (samples in order, the stamp, the videos that could not be read).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import Result, evaluate, evaluate_similarity
from clipreel.evaluation.protocol import Stamp
from clipreel.evaluation.similarity import Cosine, Dense, Matrix
from clipreel.video.sampling import Sampling

SCHEMA = 1
TENSORS, ABOUT = "features.safetensors", "features.json"


@dataclass(frozen=True, eq=False)
class Features:
    """Unit vectors `videos` (V, E), one per sample, and `texts` (T, E), one per caption in the order of the samples;
    `bank` (B, E) of texts that are no queries. Rows of NaN could not be made; `failed` says which videos, and why.
    `sampling` finds the frames again that were looked at. Where a head judges pairs, `scores` (T, V) rank in place of
    cosines, and `bank` are the scores (B, V) of the other texts."""

    samples: Sequence[Sample]
    texts: Tensor
    videos: Tensor
    stamp: Stamp
    bank: Tensor | None = None
    failed: Sequence[tuple[str, str]] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    scores: Tensor | None = None

    def having(self, **changes: Any) -> Features:
        """The same with another stamp."""
        return replace(self, stamp=self.stamp.having(**changes))

    @property
    def matrix(self) -> Matrix:
        """What ranks (T, V)."""
        return Cosine(self.texts, self.videos) if self.scores is None else Dense(self.scores)

    @property
    def truth(self) -> Tensor:
        """The video of each text (T,) int64."""
        return torch.tensor([i for i, s in enumerate(self.samples) for _ in s.captions])

    @property
    def captions(self) -> list[str]:
        return [c for s in self.samples for c in s.captions]

    def queries(self) -> str:
        """Identity of the videos and captions in order: equal ones may be compared query by query."""
        said = "\n".join("\t".join((s.id, *s.captions)) for s in self.samples)
        return hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def result(self, *, v2t: str = "caption", dual_softmax: str | None = None, by_bank: bool = False) -> Result:
        """The numbers of both directions (metrics.evaluate), stamped. Raises ClipreelError for a bank that is not
        there, or together with dual softmax."""
        if by_bank and self.bank is None:
            raise ClipreelError("there is no query bank in these features; evaluate with --bank FILE of other captions")
        if by_bank and dual_softmax is not None:
            raise ClipreelError("dual softmax and a query bank are two normalisations; choose one")
        how: dict[str, Any] = {"stamp": self.stamp, "v2t": v2t, "dual_softmax": dual_softmax}
        bank = self.bank if by_bank else None
        if self.scores is None:
            found = evaluate(self.texts, self.videos, self.truth, text_bank=bank, **how)
        else:
            found = evaluate_similarity(self.scores, self.truth, bank=bank, **how)
        found.features = self
        return found


def save_features(folder: str | Path, features: Features, stamp: Stamp | None = None) -> None:
    """Write the folder; `stamp` replaces that of the features. Raises ClipreelError where it cannot be written."""
    folder = Path(folder)
    tensors = {"texts": features.texts, "videos": features.videos}
    more = {"bank": features.bank, "scores": features.scores}
    tensors |= {name: t for name, t in more.items() if t is not None}
    about = {
        "schema": SCHEMA,
        "stamp": (stamp or features.stamp).to_dict(),
        "samples": [
            {"id": s.id, "video": str(s.video), "captions": s.captions, "start": s.start_s, "end": s.end_s}
            for s in features.samples
        ],
        "failed": list(features.failed),
        "sampling": features.sampling.to_dict(),
    }
    raw = save({n: t.float().cpu().contiguous() for n, t in tensors.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)  # half a folder must not be taken for a whole one
        (folder / TENSORS).write_bytes(raw)
        text = json.dumps(about, ensure_ascii=True) + "\n"
        (folder / ABOUT).write_text(text, "utf-8")
    except OSError as e:
        raise ClipreelError(f"{folder} cannot be written ({e.strerror}); make room or give another folder") from e


def load_features(folder: str | Path) -> Features:
    """What `save_features` wrote. Raises ClipreelError for anything else, naming what does not fit."""
    folder = Path(folder)
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text("utf-8"))
        if about.get("schema") != SCHEMA:
            raise ClipreelError(f"{folder / ABOUT} has schema {about.get('schema')!r}, this version reads {SCHEMA}")
        samples = [
            Sample(s["id"], Path(s["video"]), tuple(s["captions"]), s["start"], s["end"]) for s in about["samples"]
        ]
        stamp, failed = Stamp.from_dict(about["stamp"]), [(str(v), str(why)) for v, why in about["failed"]]
        sampling = Sampling(**about["sampling"])
        tensors = load_file(folder / TENSORS)
    except FileNotFoundError as e:
        raise ClipreelError(
            f"{folder} holds no features ({TENSORS}, {ABOUT}); make them with clipreel evaluate --store {folder}"
        ) from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        raise ClipreelError(f"{folder} holds no readable features ({type(e).__name__}: {e}); evaluate again") from e
    wanted = {"texts": sum(len(s.captions) for s in samples), "videos": len(samples)}
    wanted |= {"scores": wanted["texts"]} if "scores" in tensors else {}
    found = {n: len(t) for n, t in tensors.items() if n != "bank"}
    if found != wanted or any(t.ndim != 2 for t in tensors.values()):
        raise ClipreelError(f"{folder}: {ABOUT} names {wanted} and {TENSORS} holds {found}; evaluate again")
    made = tensors["texts"], tensors["videos"], stamp, tensors.get("bank"), failed, sampling, tensors.get("scores")
    return Features(samples, *made)
