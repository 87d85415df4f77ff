"""clipreel export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipreel.cli.output import shown


def export(
    adapter: Path,
    /,
    *,
    out: Path,
    model: str | None = None,
    download: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Merge an adapter into its base: a model folder that transformers and others load without clipreel.

    Only methods that change base weights can be merged (full, bias, proj, partial, lora). The written model is
    compared with the adapter on its base before it counts.
    Try `clipreel export tuned/lora/adapter --model shapes-tiny --out merged`

    Args:
        adapter: The folder of the adapter.
        out: A new folder for the model.
        model: The base. (Default: where it lay when the adapter was tuned.)
        download: Allow the base to be fetched from the hub.
    """
    from clipreel.adapter import read_config, with_adapter
    from clipreel.cli.search import load_model
    from clipreel.export import export as write
    from clipreel.head_files import CONFIG

    base = load_model(model or read_config(adapter).base_name, download, "cpu")
    found = write(with_adapter(base, adapter), out)
    print(f"wrote {shown(str(out))}; vectors differ by at most {found:.1e}")
    if (adapter / CONFIG).exists():
        print(f"note: the head in {shown(str(adapter))} is not part of it: it cannot be merged", file=sys.stderr)
    return 0
