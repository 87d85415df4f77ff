"""CLIP-ViP's studies in miniature on the shapes world, one command each: a table over seeds, and a curve.

`python -m clipreel.training.vip_studies proxies|losses|scale|gap --out FOLDER [--seeds 3] [--estimate]`; runs that are
done are not repeated. Specification clip_vip.md 1.2, 1.3, 7.2. The post-pretraining corpus are films with noisy
subtitles; fine-tuning and test have right captions, fewer of them. R@1 is bounded for a model that cannot see order, so
it also stands in two parts that are not: the scene that is found, and the way that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clipreel.adapter import load, write
from clipreel.data.gap import draw, gaps, read_corpus
from clipreel.data.gap import table as gap_table
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features, load_features
from clipreel.evaluation.runs import shapes_bound
from clipreel.retriever import Retriever
from clipreel.training import rendering
from clipreel.training.comparing import Spread, as_json, study
from clipreel.training.config import OptimConfig, ScheduleConfig, SelectConfig, TrainConfig, as_dict, to_yaml
from clipreel.training.pairs import SHAPES, DataConfig
from clipreel.training.post_pretraining import NOT_DECAYED, PostPretrainConfig, SourceConfig, post_pretrain
from clipreel.training.settings import TuneConfig
from clipreel.training.tuning import tune

MODEL = "shapes-tiny"
PROXIES = (1, 2, 4, 8)
LOSSES = ("v-s", "v-s+f-c", "v-s+v-c", "v-s+v-c+f-c", "v-sc+f-c")
CORPORA = {"160 films": 160, "1600 films": None}
POINTS = 3  # of the curve, besides its beginning
TRIED = 5  # steps that an estimate is made of
MEASURES = ("t2v R@1", "t2v scene", "t2v order", "t2v R@5", "t2v R@10", "t2v mean", "v2t R@1")
BLIND = "order-blind bound"
RATE = 1e-4
# CLIP-ViP sets the logit scale to CLIP's; that of the model here is less than half, and all rows must begin with one
OWN = {"log_scale": None}


@dataclass(frozen=True)
class Lengths:
    """Updates of the runs: of the proxies' study, of post-pretraining, of fine-tuning behind it."""

    proxies: int = 100
    post: int = 100
    tune: int = 60


@dataclass(frozen=True)
class Leg:
    """One run in its folder; the report of one that is tuned counts for a row, at a step of post-pretraining."""

    folder: str
    config: TuneConfig | PostPretrainConfig
    row: str = ""
    at: int = 0

    @property
    def steps(self) -> int:
        return int(self.config.train.steps or 0)


def training(steps: int, seed: int, lr: float, every: int | None = None) -> TrainConfig:
    return TrainConfig(
        seed=seed,
        steps=steps,
        checkpoint_every=steps,
        log_every=min(TRIED, steps),
        optim=OptimConfig("adamw_hf", lr, 0.0, (0.9, 0.98), 1e-6, 5.0, (NOT_DECAYED,)),
        schedule=ScheduleConfig("constant", 0.1),
        select=SelectConfig(every_steps=every or steps),
    )


def tuned(method: str, seed: int, steps: int, **changes: Any) -> TuneConfig:
    fixed = TuneConfig(
        model=MODEL,
        method=method,
        data=DataConfig(SHAPES, limit=400),
        frames=4,
        loss="v-s",
        max_scale=200.0,
        lr=RATE,
        train=training(steps, seed, RATE),
    )
    return replace(fixed, **changes)


def proxy_configs(lengths: Lengths) -> dict[str, TuneConfig]:
    """Mean pooling, full attention and M proxies, tuned on films that stand beside their opposites, so order counts."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {"mean_pool": ("full", {}), "full_attention": ("clip_vip_joint", OWN)}
    ways |= {f"proxies_{m}": ("clip_vip", {"proxies": m} | OWN) for m in PROXIES}
    every = max(1, lengths.proxies // 2)
    return {
        name: tuned(
            method,
            0,
            lengths.proxies,
            options=options,
            data=DataConfig(SHAPES),
            frames=8,
            order="opposites",
            lr=3 * RATE,
            train=training(lengths.proxies, 0, 3 * RATE, every),
        )
        for name, (method, options) in ways.items()
    }


def loss_legs(root: Path, seed: int, lengths: Lengths, captions: str) -> list[Leg]:
    """Post-pretraining with every combination, then the same fine-tuning; and that alone."""
    legs = [Leg("none/tuned", tuned("clip_vip", seed, lengths.tune, options=OWN), "no post-pretraining")]
    for loss in LOSSES:
        config = PostPretrainConfig(
            model=MODEL,
            options=OWN,
            sources={"films": SourceConfig(SHAPES, captions=captions)},
            frames=4,
            batch=32,
            loss=loss,
            train=training(lengths.post, seed, RATE),
        )
        start = str(root / loss / "post" / "adapter")
        legs += [
            Leg(f"{loss}/post", config),
            Leg(f"{loss}/tuned", tuned("clip_vip", seed, lengths.tune, options=OWN, start=start), loss, lengths.post),
        ]
    return legs


def scale_legs(root: Path, seed: int, lengths: Lengths) -> list[Leg]:
    """Equally long post-pretraining of mean pooling on a small and a large corpus, fine-tuned at several points."""
    legs = [Leg("none/tuned", tuned("full", seed, lengths.tune), row, 0) for row in CORPORA]
    for row, limit in CORPORA.items():
        config = PostPretrainConfig(
            model=MODEL,
            method="full",
            sources={"films": SourceConfig(SHAPES, limit=limit)},
            frames=4,
            batch=32,
            loss="v-s",
            snapshots=POINTS,
            train=training(lengths.post, seed, RATE),
        )
        legs.append(Leg(f"{row}/post", config))
        for step in sorted({-(-lengths.post * i // POINTS) for i in range(1, POINTS + 1)}):
            start = str(root / row / "post" / f"adapter-{step:06d}")
            legs.append(Leg(f"{row}/tuned-{step}", tuned("full", seed, lengths.tune, start=start), row, step))
    return legs


# ---------------------------------------------------------------------- running


def run(leg: Leg, root: Path, scratch: Path, base: Retriever) -> None:
    """What is not done yet; a folder with a run of another config is refused by the run itself."""
    folder = root / leg.folder
    if isinstance(leg.config, TuneConfig):
        if stated(folder / "report.json") != plain(leg.config):
            tune(leg.config, folder, scratch=scratch, base=base)
    elif stated(folder / "adapter" / "adapter_config.json", "trained_on") != plain(leg.config):
        post_pretrain(leg.config, folder, scratch=scratch, base=base)


def plain(config: TuneConfig | PostPretrainConfig) -> Any:
    """As it reads from a JSON file."""
    return json.loads(json.dumps(as_dict(config)))


def stated(path: Path, *keys: str) -> Any:
    """The config that a file of a finished run holds below some keys; None where there is no such file."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text("utf-8"))
    for key in (*keys, "config"):
        found = found[key]
    return found


def recalls(t2v: Mapping[str, Any], v2t: Mapping[str, Any]) -> dict[str, float]:
    """Some of the measures; the mean is that of R@1, 5, 10, as in the paper."""
    found = {f"t2v {m}": float(t2v[m]) for m in ("R@1", "R@5", "R@10")}
    return found | {"t2v mean": sum(found.values()) / 3, "v2t R@1": float(v2t["R@1"])}


def parts(features: Features) -> dict[str, float]:
    """R@1 taken apart, per cent of the captions: `scene`, the best film is the right one or that backwards; `order`, of
    the captions of films that have an opposite, the right one is above it."""
    group = {item.id: item.group for item in ShapesWorld().videos("test")}
    names = [group[s.id] for s in features.samples]
    numbers = torch.tensor([names.index(name) for name in names])
    scores = features.texts @ features.videos.T
    rows = torch.arange(len(scores))
    same = numbers[features.truth][:, None] == numbers[None]
    found = scores.masked_fill(~same, -torch.inf).amax(1) > scores.masked_fill(same, -torch.inf).amax(1)
    opposite = same.clone()
    opposite[rows, features.truth] = False
    asked = opposite.any(1)
    above = (scores[rows, features.truth] - scores.masked_fill(~opposite, -torch.inf).amax(1))[asked]
    order = (above > 0).float() + 0.5 * (above == 0)
    return {"t2v scene": 100 * found.float().mean().item(), "t2v order": 100 * order.mean().item()}


def measured(folder: Path) -> dict[str, float]:
    """All measures of a tuned model on the held-out films."""
    after = json.loads((folder / "report.json").read_text("utf-8"))["compared"]["after"]
    return recalls(after["t2v"], after["v2t"]) | parts(load_features(folder / "features"))


def bound() -> dict[str, float]:
    """What the best model reaches to which a film and its opposite are the same."""
    return recalls(*shapes_bound()) | {"t2v scene": 100.0, "t2v order": 50.0}


def run_all(
    legs_of: Callable[[Path, int], list[Leg]], out: Path, cache: Path, seeds: int, base: Retriever
) -> dict[tuple[str, int], dict[str, Spread]]:
    """Measures by row and step of post-pretraining, over the seeds."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for seed in range(seeds):
        root = out / f"seed-{seed}"
        legs = legs_of(root, seed)
        for done, leg in enumerate(legs, 1):
            print(f"seed {seed}, {done} of {len(legs)}: {leg.folder}", file=sys.stderr, flush=True)
            run(leg, root, cache, base)
            if leg.row:
                found.setdefault((leg.row, leg.at), []).append(measured(root / leg.folder))
    return {key: {m: Spread.of([r[m] for r in rows]) for m in MEASURES} for key, rows in found.items()}


def estimate(legs: Sequence[Leg], out: Path, cache: Path, seeds: int, base: Retriever) -> tuple[float, float]:
    """Minutes of the whole study on this machine as it is now, and of its processors alone, from a few steps of every
    kind of run. On a busy machine the first is much the longer one."""
    measured: dict[str, tuple[float, float, float]] = {}
    wall_s = cpu_s = 0.0
    for leg in legs:
        short = replace(leg.config, start=None, train=training(TRIED, 0, RATE))
        if isinstance(short, PostPretrainConfig):
            short = replace(short, snapshots=0)
        key = json.dumps([type(short).__name__, as_dict(short)], sort_keys=True)
        if key not in measured:
            for again in range(1 if measured else 2):  # the first run of all decodes the films
                folder = out / "estimate" / f"{len(measured)}-{again}-{time.time_ns()}"
                began = time.perf_counter(), time.process_time()
                run(replace(leg, folder="run", config=short), folder, cache, base)
                wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
            log = (folder / "run" / "run" / "log.jsonl").read_text("utf-8").splitlines()
            each = 1 / next(r["steps_per_s"] for r in map(json.loads, log) if r["kind"] == "train")
            measured[key] = each, max(wall - TRIED * each, 0.0), cpu / wall
        each, rest, share = measured[key]
        wall_s += seeds * (leg.steps * each + rest)
        cpu_s += seeds * (leg.steps * each + rest) * share
    return wall_s / 60, cpu_s / 60


def save(out: Path, facts: dict[str, Any], text: str) -> None:
    write(out / "table.json", (json.dumps(facts, indent=1) + "\n").encode())
    write(out / "table.md", (text + "\n").encode())
    print(text)


def table(found: dict[tuple[str, int], dict[str, Spread]], first: str) -> str:
    """A line a row: mean over the seeds, lowest to highest; above them what no model without a sense of time passes."""
    most = bound()
    lines = [f"| {first} | steps | {' | '.join(MEASURES)} |", f"|---|---|{'---|' * len(MEASURES)}"]
    lines.append(f"| {BLIND} | | {' | '.join(f'{most[m]:.1f}' for m in MEASURES)} |")
    for (row, at), spread in found.items():
        lines.append(f"| {row} | {at} | {' | '.join(str(spread[m]) for m in MEASURES)} |")
    return "\n".join(lines)


def curve(found: dict[tuple[str, int], dict[str, Spread]], path: Path, measure: str = "t2v scene") -> None:
    """A fine-tuned measure over the progress of post-pretraining, a line a corpus with its range over the seeds: by
    default the one that mean pooling, which is blind to order, can raise to 100."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for corpus in dict.fromkeys(row for row, _ in found):
        points = sorted((at, s[measure]) for (row, at), s in found.items() if row == corpus)
        steps = [at for at, _ in points]
        axes.plot(steps, [s.mean for _, s in points], marker="o", label=corpus)
        axes.fill_between(steps, [s.low for _, s in points], [s.high for _, s in points], alpha=0.2)
    axes.set(xlabel="steps of post-pretraining", ylabel=f"{measure} after fine-tuning")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def run_gap(out: Path, seeds: int, captions: str, base: Retriever) -> None:
    """NMI between subtitles, generated captions and test captions."""
    generated = "shapes/captions" if captions == SHAPES else captions
    sources = {"subtitles": "shapes/subtitles", "generated captions": generated, "test captions": "shapes/test"}

    def encode(texts: list[str]) -> Any:
        parts = [base.encode_text(texts[i : i + 256]).cpu() for i in range(0, len(texts), 256)]
        return torch.cat(parts).double().numpy()

    panels = gaps({name: read_corpus(source) for name, source in sources.items()}, encode, seeds=seeds)
    rows = [p.gap for p in panels]
    told = {**sources, "generated captions": generated if captions == SHAPES else Path(captions).name}
    save(out, {"sources": told, "seeds": seeds, "gaps": [g.to_dict() for g in rows]}, gap_table(rows))
    draw(panels, out / "clusters.png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("proxies", "losses", "scale", "gap"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of all runs, for a trial")
    parser.add_argument("--captions", default=SHAPES, help="file of `clipreel caption`; without it, the world's own")
    parser.add_argument("--cache", type=Path, help="folder of decoded films, which losses and scale share (--out)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (proxies)")
    parser.add_argument("--estimate", action="store_true", help="only tell how long it would take here")
    args = parser.parse_args(argv)
    if args.seeds < 1 or (args.steps is not None and args.steps < 1):
        raise ClipreelError("give at least one seed and one step")
    lengths = Lengths() if args.steps is None else Lengths(args.steps, args.steps, args.steps)
    cache = args.cache or args.out
    args.out.mkdir(parents=True, exist_ok=True)
    base = load(MODEL, device="cpu")
    if args.study == "gap":
        return run_gap(args.out, args.seeds, args.captions, base)
    configs = proxy_configs(lengths)

    def legs_of(root: Path, seed: int) -> list[Leg]:
        if args.study == "losses":
            return loss_legs(root, seed, lengths, args.captions)
        return scale_legs(root, seed, lengths)

    if args.estimate:
        legs = [Leg(n, c) for n, c in configs.items()] if args.study == "proxies" else legs_of(args.out, 0)
        wall, cpu = estimate(legs, args.out, cache, args.seeds, base)
        cores = torch.get_num_threads()
        print(
            f"{args.study}, {args.seeds} seeds: about {wall:.0f} minutes as busy as this machine is, on {cores} threads"
        )
        print(f"{cpu:.0f} minutes of processor time, so about {cpu / cores:.0f} where nothing else runs")
        return None
    if args.study == "proxies":
        paths = [args.out / "configs" / f"{name}.yaml" for name in configs]
        paths[0].parent.mkdir(exist_ok=True)
        for path, config in zip(paths, configs.values(), strict=True):
            path.write_text(to_yaml(config), "utf-8")
        tables = study(paths, args.seeds, args.out, jobs=args.jobs, device="cpu")
        rendering.save(tables, json.dumps(as_json(tables), indent=1), args.out)
        print(rendering.rendered(tables, "markdown"))
        return None
    found = run_all(legs_of, args.out, cache, args.seeds, base)
    rows = [
        {"row": row, "steps": at} | {m: asdict(s) for m, s in spread.items()} for (row, at), spread in found.items()
    ]
    captions = Path(args.captions).name
    facts = {"study": args.study, "seeds": args.seeds, "captions": captions, "lengths": asdict(lengths)}
    facts |= {"bound": bound()}
    save(args.out, facts | {"rows": rows}, table(found, "loss" if args.study == "losses" else "corpus"))
    if args.study == "scale":
        curve(found, args.out / "curve.png")
    return None


if __name__ == "__main__":
    main()
