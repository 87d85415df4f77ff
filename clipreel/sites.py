"""Where a method may act: the six sites of a block, the edits of a tower, and tuners in a chain.

A method is a `Tuner`; in block i of a tower it is a `LayerTuner`. The backbone calls what is there and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from clipreel.patterns import Layout, Pattern

if TYPE_CHECKING:
    from clipreel.clip import TextTower, VideoTower

NOTHING: Mapping[str, Tensor] = {}


def scoped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with the prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class LayerTuner(nn.Module):
    """What a method does inside one block: any of six sites; a site left at None costs nothing.

    before(x_BSD, layout) -> x_BSD, layout        tokens in: prompts, ST-Adapter
    attend(q, k, v, layout) -> o                  another attention pattern; q, k, v (B, S, H, K)
    linear(name, x, y) -> y                       name is qkv, out, fc or proj; y = layer(x): LoRA
    beside_attn(x, h, y, layout) -> delta         x residual, h normalised, y branch output
    beside_mlp(x, h, y, layout) -> delta          the same beside the MLP
    after(x_BSD, layout) -> x_BSD, layout         tokens out
    """

    before: Callable[[Tensor, Layout], tuple[Tensor, Layout]] | None = None
    attend: Pattern | None = None
    linear: Callable[[str, Tensor, Tensor], Tensor] | None = None
    beside_attn: Callable[[Tensor, Tensor, Tensor, Layout], Tensor] | None = None
    beside_mlp: Callable[[Tensor, Tensor, Tensor, Layout], Tensor] | None = None
    after: Callable[[Tensor, Layout], tuple[Tensor, Layout]] | None = None


class Tuner(nn.Module):
    """A method's trainable part. Parameters that layers or towers share belong here and are referenced by the layers.

    `overrides` maps names of base tensors ("vision.blocks.3.out.bias") to the tensors that replace them, so the base
    in memory is never written. `text_slots` is how many slots of a text the method's own tokens take, or leave unused;
    texts are tokenised to that many less.
    """

    text_slots = 0

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        """The sites of block `index` of tower "vision" or "text"."""
        return None

    @property
    def overrides(self) -> Mapping[str, Tensor]:
        return NOTHING

    def embed_video(self, x_BSD: Tensor, layout: Layout, tower: VideoTower) -> tuple[Tensor, Layout]:
        """Edit the embedded tokens of a video: positions are added, `ln_pre` is still to come."""
        return x_BSD, layout

    def embed_text(self, x_NLD: Tensor, ends_N: Tensor, tower: TextTower) -> Tensor:
        """Edit the embedded tokens of texts before positions are added by slot."""
        return x_NLD

    def read_video(self, x_BSD: Tensor, layout: Layout) -> Tensor:
        """The tokens (B, R, D) that are projected: one per frame (R = T), or one for the video (R = 1)."""
        return layout.split(x_BSD)[1][:, :, 0]

    def text_length(self, ends_N: Tensor, length: int) -> int:
        """How many of the `length` id slots are needed for an exact result."""
        return int(ends_N.max()) + 1

    def read_text(self, ends_N: Tensor, length: int) -> Tensor:
        """The slot (N,) that is read, from the slot of the end token in the ids and the number of id slots."""
        return ends_N

    def fold(self) -> None:
        """Compute once what every call would make out of weights alone; called where weights are final. `train()`
        undoes it, other changes of the weights go unseen."""


class Layered(Tuner):
    """A tuner that keeps its layers by tower and block, under the names vision.0, text.0 and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.placed: dict[tuple[str, int], LayerTuner] = {}

    def place(self, tower: str, index: int, layer: LayerTuner) -> None:
        if tower not in self._modules:
            self.add_module(tower, nn.ModuleDict())
        self.get_submodule(tower).add_module(str(index), layer)
        self.placed[tower, index] = layer

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        return self.placed.get((tower, index))


NO_SITES = LayerTuner()
PLAIN = Tuner()


class Overrides(nn.Module):
    """Trainable replacements of base tensors: copies of those that `choose(name)` picks, under the same names."""

    def __init__(self, base: nn.Module, choose: Callable[[str], bool]) -> None:
        super().__init__()
        # a parameter's name may not contain dots, so they are slashes in here and in the saved file
        self.tensors = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(p.detach().clone())
                for name, p in base.named_parameters()
                if choose(name)
            }
        )
        if not self.tensors:
            raise ValueError("Overrides: no tensor of the base was chosen")

    @property
    def by_name(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): p for name, p in self.tensors.items()}


class ChainedLayer(LayerTuner):
    """The sites of two methods in one block: tokens go in first-second and out second-first, deltas add up."""

    def __init__(self, first: LayerTuner, second: LayerTuner) -> None:
        super().__init__()
        self.parts = nn.ModuleList([first, second])
        if first.attend is not None and second.attend is not None:
            raise ValueError(f"{type(first).__name__} and {type(second).__name__} both set the attention pattern")
        self.attend = first.attend or second.attend
        for site in ("before", "linear", "beside_attn", "beside_mlp", "after"):
            given = [f for f in (getattr(first, site), getattr(second, site)) if f is not None]
            if given:
                setattr(self, site, given[0] if len(given) == 1 else getattr(self, f"_{site}")(*given))

    @staticmethod
    def _before(f: Callable, g: Callable) -> Callable:
        return lambda x, layout: g(*f(x, layout))

    @staticmethod
    def _after(f: Callable, g: Callable) -> Callable:
        return lambda x, layout: f(*g(x, layout))

    @staticmethod
    def _linear(f: Callable, g: Callable) -> Callable:
        return lambda name, x, y: g(name, x, f(name, x, y))

    @staticmethod
    def _beside_attn(f: Callable, g: Callable) -> Callable:
        return lambda x, h, y, layout: f(x, h, y, layout) + g(x, h, y, layout)

    _beside_mlp = _beside_attn


class Chain(Tuner):
    """Two tuners on one backbone. What only one of them may set (reading, attention, an override) must not clash."""

    def __init__(self, first: Tuner, second: Tuner) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.text_slots = first.text_slots + second.text_slots
        clash = sorted(set(first.overrides) & set(second.overrides))
        if clash:
            raise ValueError(f"both tuners replace {', '.join(clash[:3])}")
        for read in ("read_video", "text_length", "read_text"):
            own = [t for t in (first, second) if getattr(type(t), read) is not getattr(Tuner, read)]
            if len(own) == 2:
                raise ValueError(f"{type(first).__name__} and {type(second).__name__} both define {read}")
            if own:
                setattr(self, read, getattr(own[0], read))
        self._layers: dict[tuple[str, int], LayerTuner | None] = {}

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        key = (tower, index)
        if key not in self._layers:
            a, b = self.first.layer(tower, index), self.second.layer(tower, index)
            self._layers[key] = ChainedLayer(a, b) if a is not None and b is not None else a or b
        return self._layers[key]

    @property
    def overrides(self) -> Mapping[str, Tensor]:
        return {**self.first.overrides, **self.second.overrides}

    def embed_video(self, x_BSD: Tensor, layout: Layout, tower: VideoTower) -> tuple[Tensor, Layout]:
        return self.second.embed_video(*self.first.embed_video(x_BSD, layout, tower), tower)

    def embed_text(self, x_NLD: Tensor, ends_N: Tensor, tower: TextTower) -> Tensor:
        return self.second.embed_text(self.first.embed_text(x_NLD, ends_N, tower), ends_N, tower)

    def fold(self) -> None:
        self.first.fold()
        self.second.fold()
