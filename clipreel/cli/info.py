"""clipreel info."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter


def info(
    model: str = "shapes-tiny",
    /,
    *,
    download: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Show what a model is: sizes, parameters, recipes, space.

    Try `clipreel info shapes-tiny`

    Args:
        model: Hub id, folder, file or built-in name.
        download: Allow the model to be fetched from the hub.
        json: Print the facts as JSON.
    """
    import json as js
    from dataclasses import asdict

    from clipreel.cli.search import load_model

    retriever = load_model(model, download, "cpu")
    clip = retriever.network
    config: Any = clip.config
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in clip.named_children()}
    facts = {
        "model": model,
        "space": retriever.space,
        "parameters": {"all": sum(p.numel() for p in clip.parameters()), **count},
        "config": asdict(config),
        "preprocess": retriever.preprocess.to_dict(),
        "sampling": retriever.sampling.to_dict(),
        "tokenizer": None if retriever.tokenizer is None else retriever.tokenizer.mode,
    }
    if json:
        print(js.dumps(facts))
    else:
        for key, value in facts.items():
            print(f"{key:<11}", ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value)
    return 0
