"""Texts of many adapters in one batch: each row goes through the sites of its own method, all through one base.

Methods that replace base tensors run by themselves, because a row cannot have weights of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from clipreel.clip import TextTower
from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.patterns import Layout, causal
from clipreel.retriever import Retriever
from clipreel.sites import LayerTuner, Tuner

Rows = list[tuple[Tuner, slice]]


class MixedLayer(LayerTuner):
    """One block: every site that any of the methods fills, each on its own rows."""

    def __init__(self, parts: list[tuple[LayerTuner, slice]]) -> None:
        super().__init__()
        self.parts = parts
        for site in ("before", "attend", "linear", "beside_attn", "beside_mlp", "after"):
            if any(getattr(layer, site) is not None for layer, _ in parts):
                setattr(self, site, getattr(self, f"_{site}"))

    def _tokens(self, site: str, x_NSD: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        found = [
            (x_NSD[rows], layout) if getattr(layer, site) is None else getattr(layer, site)(x_NSD[rows], layout)
            for layer, rows in self.parts
        ]
        return torch.cat([x for x, _ in found]), found[0][1]

    def _before(self, x_NSD: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        return self._tokens("before", x_NSD, layout)

    def _after(self, x_NSD: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        return self._tokens("after", x_NSD, layout)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        return torch.cat([(layer.attend or causal)(q[r], k[r], v[r], layout) for layer, r in self.parts])

    def _linear(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[r] if t.linear is None else t.linear(name, x[r], y[r]) for t, r in self.parts])

    def _beside(self, site: str, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        found = ((getattr(layer, site), rows) for layer, rows in self.parts)
        return torch.cat([torch.zeros_like(y[r]) if f is None else f(x[r], h[r], y[r], layout) for f, r in found])

    def _beside_attn(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self._beside("beside_attn", x, h, y, layout)

    def _beside_mlp(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self._beside("beside_mlp", x, h, y, layout)


class Mixed(Tuner):
    """Methods by rows of a batch of texts. All take the same number of slots and replace no base tensor."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows, self.text_slots = rows, rows[0][0].text_slots

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        found = [(t.layer(tower, index), r) for t, r in self.rows]
        if all(layer is None for layer, _ in found):
            return None
        return MixedLayer([(layer or LayerTuner(), r) for layer, r in found])

    def embed_text(self, x_NLD: Tensor, ends_N: Tensor, tower: TextTower) -> Tensor:
        return torch.cat([t.embed_text(x_NLD[r], ends_N[r], tower) for t, r in self.rows])

    def text_length(self, ends_N: Tensor, length: int) -> int:
        return max(t.text_length(ends_N[r], length) for t, r in self.rows)

    def read_text(self, ends_N: Tensor, length: int) -> Tensor:
        return torch.cat([t.read_text(ends_N[r], length) for t, r in self.rows])


@torch.inference_mode()
def encode_mixed(requests: Sequence[tuple[Retriever, str]], *, strip_special: bool = False) -> Tensor:
    """Unit vectors (N, E) float32 of texts, each with its own retriever; all retrievers share one base in memory.

    One forward pass for all whose methods take equally many slots, one more for each method that replaces base
    tensors. Raises ClipreelError for retrievers on different bases or without a vocabulary.
    """
    if not requests:
        raise ClipreelError("there are no texts to encode; give pairs of a retriever and a text")
    first = requests[0][0]
    passes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (model, _) in enumerate(requests):
        if model.clip is not first.clip:
            raise ClipreelError(f"{model.name} and {first.name} are not on one base in memory; load it once (adapted)")
        passes[model.tuner.text_slots, id(model.tuner) if model.tuner.overrides else 0].append(i)
    found = torch.empty(len(requests), first.embed_dim, device=first.device)
    for members in passes.values():
        found[members] = one_pass([requests[i] for i in members], strip_special)
    return found


def one_pass(requests: Sequence[tuple[Retriever, str]], strip_special: bool) -> Tensor:
    """Vectors (N, E) of texts whose methods can run together."""
    # rows of one method stand together, so that each is a slice
    order = sorted(range(len(requests)), key=lambda i: id(requests[i][0].tuner))
    models = [requests[i][0] for i in order]
    model = models[0]
    if model.tokenizer is None:
        raise ClipreelError(f"{model.name} has no vocabulary, so it cannot read text: put tokenizer.json beside it")
    ids = model.tokenizer([requests[i][1] for i in order], model.context, strip_special=strip_special)
    starts = [i for i, m in enumerate(models) if not i or m.tuner is not models[i - 1].tuner]
    rows = [(models[a].tuner, slice(a, b)) for a, b in zip(starts, [*starts[1:], len(models)], strict=True)]
    tuner = model.tuner if len(rows) == 1 else Mixed(rows)
    with torch.autocast(model.device.type, model.dtype, enabled=model.dtype is not torch.float32):
        z = unit(model.clip.encode_text(ids.to(model.device), tuner))
    back = torch.empty_like(z)
    back[order] = z
    return back
