"""Released checkpoints of the published systems, loaded as they are and run as their code runs them.

`load_official("vop", "VoP_msrvtt9k.pth")`; quirks of released code are options of the tuners and are set here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clipreel.alpro import retriever as alpro
from clipreel.checkpoints import load_weights, translate
from clipreel.errors import ClipreelError
from clipreel.official.clip_vip import clip_vip
from clipreel.official.files import read_state, without_copies
from clipreel.official.heads import HEAD_SYSTEMS, load_with_head
from clipreel.official.mv_adapter import mv_adapter
from clipreel.official.vop import vop
from clipreel.retriever import Retriever, assemble

CLIP_SYSTEMS = ("openai-clip", "hf-clip", "open-clip")
OWN: Mapping[str, Callable[..., Retriever]] = {"vop": vop, "mv-adapter": mv_adapter, "clip-vip": clip_vip}
SYSTEMS = (*CLIP_SYSTEMS, *HEAD_SYSTEMS, *OWN, *alpro.SYSTEMS)


def load_official(
    system: str,
    source: str | Path | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Retriever:
    """A retriever that computes what the official code computes with its released checkpoint.

    `source` is the file, or its state dict. `config` holds what tensors do not tell, under the names of the official
    configuration (vision_heads, text_heads, tokenizer; vop: tp_prefix_token_num, num_frames, tpt_layers, vpt_layers;
    mv-adapter: clip, the source of the base, and forward, n_head, scale, attn_type, position, no_cc; clip-vip:
    test_num_frms, max_txt_len, clip_vision_additional_config; clip4clip and x-pool: see `heads.load_with_head`; the
    alpro systems: see alpro/retriever.py).
    Raises ClipreelError that names the system or the tensor that does not fit.
    """
    if system not in SYSTEMS:
        raise ClipreelError(f"system {system!r}: allowed are {', '.join(SYSTEMS)}")
    if system in alpro.SYSTEMS:
        return alpro.load_official(system, source, config, device=device, dtype=dtype)
    config = dict(config or {})
    if system in HEAD_SYSTEMS:
        return load_with_head(system, source, config, device=device, dtype=dtype)
    if system in OWN:
        return OWN[system](read_state(source), config, device=device, dtype=dtype)
    if not isinstance(source, Mapping):
        return assemble(load_weights(source), name=str(source), device=device, dtype=dtype)
    state = without_copies({n.replace("module.", ""): t for n, t in read_state(source).items()})
    facts: dict[str, Any] = {k: config[k] for k in ("vision_heads", "text_heads") if k in config}
    loaded = translate(state, activation="quick_gelu", facts=facts)
    loaded.tokenizer_files = Path(config["tokenizer"]) if "tokenizer" in config else None
    return assemble(loaded, name=system, device=device, dtype=dtype)
