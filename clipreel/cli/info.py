"""clipreel info."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def info(model: str = "shapes-tiny", /, *, methods: Flag = False, download: Flag = False, json: Flag = False) -> int:
    """Show what a model is (sizes, parameters, recipes, space), and what each method would train on it.

    Counts are given in full and by the rule of VoP's paper, which skips what is in no leaf module; the settings of
    MV-Adapter's tables with the space they take, beside what its paper prints (for ViT-B/16 alone).
    Try `clipreel info ViT-B/32`

    Args:
        model: Hub id, folder, file or built-in name; or ViT-B/32, ViT-B/16 or ViT-L/14 without weights.
        methods: Count what each method trains; always done for an architecture without weights.
        download: Allow the model to be fetched from the hub.
        json: Print the facts as JSON.
    """
    import json as js
    from dataclasses import asdict

    from clipreel.cli.search import load_model
    from clipreel.clip import ClipConfig
    from clipreel.errors import ClipreelError
    from clipreel.tuners import TUNERS, options
    from clipreel.tuners.counting import ARCHITECTURES, counts, mv_adapter_storage, whole_by_paper

    facts: dict[str, Any]
    if model in ARCHITECTURES:
        config, methods, facts = ARCHITECTURES[model], True, {"model": model}
    else:
        retriever = load_model(model, download, "cpu")
        clip: Any = retriever.network
        config = clip.config
        if methods and not isinstance(config, ClipConfig):
            raise ClipreelError(f"{model} is no CLIP, and the methods train CLIPs; leave --methods out")
        count = {name: sum(p.numel() for p in part.parameters()) for name, part in clip.named_children()}
        facts = {
            "model": model,
            "space": retriever.space,
            "parameters": {
                "all": sum(p.numel() for p in clip.parameters()),
                "by the paper's rule": whole_by_paper(clip),
                **count,
            },
            "preprocess": retriever.preprocess.to_dict(),
            "sampling": retriever.sampling.to_dict(),
            "tokenizer": None if retriever.tokenizer is None else retriever.tokenizer.mode,
        }
    facts["config"] = asdict(config)
    table = {name: asdict(c) for name, c in counts(config).items()} if methods else {}
    stored = {name: asdict(s) for name, s in mv_adapter_storage(config).items()} if methods else {}
    if json:
        print(js.dumps(facts | ({"methods": table, "mv_adapter": stored} if methods else {})))
        return 0
    for key, value in facts.items():
        print(f"{key:<11}", ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value)
    if methods:
        print(f"\n{'method':<16}{'trainable':>13}{'of the base':>13}{'VoP counts':>13}{'of its base':>13}")
    for name, c in table.items():
        print(f"{name:<16}{c['trainable']:>13,}{c['share']:>11.3f} %{c['paper']:>13,}{c['paper_share']:>11.3f} %")
    if methods and (left := [name for name in TUNERS if name not in table]):
        print(f"not on this architecture: {', '.join(left)}")
    if methods:
        width, usual = stored["no tying"]["width"], options("mv_adapter", {})["width"]
        above = "" if width == usual else f" (above: {usual}, the default)"
        print(f"\nmv_adapter as in its paper's tables, with bottlenecks of {width}{above}")
        print(f"{'setting':<22}{'adapters':>12}{'with biases':>13}{'of the base':>13}{'printed':>10}", end="")
        print(f"{'float32':>12}{'mixed':>11}{'base and 5':>12}")
    for name, s in stored.items():
        printed = "" if s["paper"] is None else f"{s['paper']:.2f} %"
        print(f"{name:<22}{s['adapters']:>12,}{s['trained']:>13,}{s['share']:>11.3f} %{printed:>10}", end="")
        print(f"{s['megabytes']:>9.2f} MB{s['half_megabytes']:>8.2f} MB{s['tasks']:>10.1f} %")
    return 0
