"""All methods by name: what they are, their options, and how they are built on a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.sites import PLAIN, Tuner
from clipreel.tuners.adaptformer import AdaptFormer, AdaptFormerConfig
from clipreel.tuners.checking import Options
from clipreel.tuners.clip_vip import ClipVip, ClipVipConfig
from clipreel.tuners.convpass import Convpass, ConvpassConfig
from clipreel.tuners.cross_modal import CrossModal, CrossModalConfig
from clipreel.tuners.lora import Lora, LoraConfig
from clipreel.tuners.mv_adapter import MvAdapter, MvAdapterConfig
from clipreel.tuners.overriding import Overriding, OverridingConfig
from clipreel.tuners.patch_3d import Patch3d, Patch3dConfig
from clipreel.tuners.st_adapter import StAdapter, StAdapterConfig
from clipreel.tuners.vop import Vop, VopConfig, context_rates


@dataclass(frozen=True)
class Method:
    """`preset` are the options that make this method of its tuner; `identity`: it starts as the base itself;
    `temporal`: frames in another order can give another vector; `rate`: the learning rate to start from, `rates`:
    those of some parameters, by regular expressions for their names, as they follow from the options."""

    about: str
    build: Callable[[Clip, Any], Tuner]
    config: type[Options]
    preset: Mapping[str, Any] = field(default_factory=dict)
    identity: bool = False
    temporal: bool = False
    rate: float = 1e-3
    rates: Callable[[Any], Mapping[str, float]] = lambda config: {}


def _vop(about: str, *, temporal: bool = False, rate: float = 1e-3, **preset: Any) -> Method:
    return Method(about, Vop, VopConfig, preset, temporal=temporal, rate=rate, rates=context_rates)


def _base(about: str, rate: float, **preset: Any) -> Method:
    return Method(about, Overriding, OverridingConfig, preset, identity=True, rate=rate)


def _adaptformer(about: str, **preset: Any) -> Method:
    return Method(about, AdaptFormer, AdaptFormerConfig, preset, identity=True, rate=3e-4)


TUNERS: Mapping[str, Method] = {
    "vop": _vop("prompts in every layer of both towers"),
    "vop_p": _vop("VoP, half of the prompts per frame position", general=4, position=4, temporal=True),
    "vop_c": _vop("VoP, half of the prompts from a BiLSTM over the frames", general=4, context=4, temporal=True),
    "vop_f": _vop("VoP, the last layers see all frames", joint_layers=None, temporal=True),
    "vop_fp": _vop("VoP^F with position prompts", general=4, position=4, joint_layers=None, temporal=True),
    "vop_fc": _vop("VoP^F with context prompts", general=4, context=4, joint_layers=None, temporal=True),
    "vop_pc": _vop("position and context prompts", general=4, position=2, context=2, temporal=True),
    "vop_fpc": _vop("all of VoP", general=4, position=2, context=2, joint_layers=None, temporal=True),
    "vpt": _vop("prompts in the video tower only (VPT, deep)", prefix=0),
    "coop": _vop("prompts before the words only (CoOp)", general=0, prefix=16, text_layers=(0,)),
    "text_prompts": _vop("the text half of VoP", general=0),
    "clip_vip": Method("video proxies, and every tensor of the base", ClipVip, ClipVipConfig, temporal=True, rate=1e-6),
    "clip_vip_joint": Method(
        "CLIP-ViP's comparison: one proxy, all tokens see all",
        ClipVip,
        ClipVipConfig,
        {"proxies": 1, "attention": "joint"},
        temporal=True,
        rate=1e-6,
    ),
    "full": _base("every tensor of the base", 1e-6, what="full"),
    "bias": _base("every bias of the base (BitFit)", 1e-4, what="bias"),
    "proj": _base("both projections", 1e-4, what="proj"),
    "partial": _base("the last blocks of both towers", 1e-5, what="partial"),
    "adapter_attn": _adaptformer("bottlenecks beside attention", branch="attn"),
    "adapter_ffn": _adaptformer("bottlenecks beside the MLP (AdaptFormer, parallel)", branch="ffn"),
    "adaptformer_seq": _adaptformer("bottlenecks behind the MLP (AdaptFormer, sequential)", form="sequential"),
    "convpass": Method("convolutions over patches beside both branches", Convpass, ConvpassConfig, {}, True, rate=3e-4),
    "st_adapter": Method(
        "convolutions over time before the MLP", StAdapter, StAdapterConfig, {}, True, temporal=True, rate=3e-4
    ),
    "st_adapter_24x": Method(
        "convolutions over time before attention and the MLP",
        StAdapter,
        StAdapterConfig,
        {"places": ("attn", "mlp")},
        True,
        temporal=True,
        rate=3e-4,
    ),
    "cross_modal": Method(
        "bottlenecks that the towers share in part (Cross-Modal Adapter)", CrossModal, CrossModalConfig, rate=3e-4
    ),
    "mv_adapter": Method(
        "MV-Adapter: bottlenecks over time and words, tied between the towers",
        MvAdapter,
        MvAdapterConfig,
        identity=True,
        temporal=True,
        rate=3e-4,
    ),
    "lora": Method("low-rank updates of q and v", Lora, LoraConfig, identity=True, rate=3e-4),
    "patch_3d": Method(
        "patches over three frames (CLIP4Clip)", Patch3d, Patch3dConfig, identity=True, temporal=True, rate=1e-4
    ),
}


@dataclass(frozen=True)
class FrozenConfig(Options):
    """There is nothing to choose."""


# the base as it is, below a head that is trained alone; no entry of the registry, because it trains nothing itself
FROZEN = "frozen"
UNTUNED = Method("nothing, below a head that is trained", lambda clip, config: PLAIN, FrozenConfig, identity=True)


def method(name: str) -> Method:
    """The method of this name; ClipreelError lists the known ones."""
    known = {**TUNERS, FROZEN: UNTUNED}
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ClipreelError(f"there is no method {name!r}{hint} Methods: {', '.join(known)}")
    return known[name]


def options(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method, its preset changed by `changes`; ClipreelError for an option that it does not have, of
    another type, or out of its range."""
    m = method(name)
    known = [f.name for f in fields(m.config)]
    for key in changes:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ClipreelError(f"the method {name} has no option {key!r}{hint} Options: {', '.join(known)}")
    return asdict(m.config(**{**m.preset, **changes}))


def own_rates(name: str, changes: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """The learning rate of a method with these options, and those of some of its parameters by regular expression."""
    m = method(name)
    return m.rate, dict(m.rates(m.config(**options(name, changes))))


def build(name: str, clip: Clip, changes: Mapping[str, Any] | None = None) -> Tuner:
    """A new tuner of this method on a backbone, in training mode, its tensors on the CPU."""
    m = method(name)
    return m.build(clip, m.config(**options(name, changes or {})))
