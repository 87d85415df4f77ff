"""Tables of runs: what was made in the same way shares one, the difference is named, and pairs of runs are compared."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from clipreel.cli import main
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval
from clipreel.evaluation.features import Features, save_features
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.protocol import SUBJECTS, Stamp
from clipreel.evaluation.report import compare
from clipreel.training import rendering
from clipreel.training.comparing import Study, finished, tables
from clipreel.training.finished import Run, Spread, is_done, paired, read_run
from clipreel.training.settings import TuneConfig

COUNT = 24
STAMP = Stamp(split="made", split_hash="x", frames="8 uniform", resolution=64, tokens=32, tokenizer="openai")
# another value for every item of the protocol that is not what rows are about
OTHER: dict[str, Any] = {
    "split": "other",
    "split_hash": "y",
    "caption_mode": "multiple, v2t by video",
    "part": "0123456789ab",
    "frames": "12 uniform",
    "pixels": "tensor squash",
    "resolution": 224,
    "tokens": 77,
    "tokenizer": "hf",
    "selection": "best t2v R@1 on the test split",
    "post_processing": "dual softmax (softmax, factor 100)",
    "transductive": True,
    "tie_rule": "pessimistic",
}


def features(noise: float, seed: int = 0, stamp: Stamp = STAMP) -> Features:
    """Texts that are their videos with noise: the more, the worse."""
    made = torch.Generator().manual_seed(seed)
    videos = normalize(torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(99)), dim=1)
    texts = normalize(videos + noise * torch.randn(COUNT, 8, generator=made), dim=1)
    samples = [Sample(f"v{i}", Path(f"{i}.mp4"), (f"caption {i}",)) for i in range(COUNT)]
    return Features(samples, texts, videos, stamp)


def run_of(name: str, *kept: Features) -> Run:
    return Run(name, [f.result() for f in kept], list(kept))


def test_every_item_of_the_protocol_has_another_value_here() -> None:
    assert set(OTHER) == {f.name for f in fields(Stamp)} - set(SUBJECTS)


@pytest.mark.parametrize("item", OTHER)
def test_runs_that_differ_in_one_item_of_the_protocol_are_never_ranked_together(item: str) -> None:
    good, other = run_of("good", features(0.1)), run_of("other", features(0.5))
    stamp = other.results[0].stamp.having(**{item: OTHER[item]})
    other.results[0] = replace(other.results[0], stamp=stamp)
    assert set(good.results[0].stamp.differences(stamp)) == {item}
    found = tables([good, other])
    assert [[r.name for r in t.rows] for t in found] == [["good"], ["other"]]
    assert set(found[1].apart) == {item}
    assert not any(t.gains for t in found)
    for form in rendering.FORMS:
        text = rendering.rendered(found, form)
        assert f"{item}: " in text, form
        assert "Not ranked with the first table" in text
    with pytest.raises(ClipreelError, match=f"{item}: "):
        paired(good, other)
    with pytest.raises(ClipreelError, match=f"{item}: "):
        compare({"good": good.results[0], "other": other.results[0]})


@pytest.mark.parametrize("item", SUBJECTS)
def test_what_rows_are_about_may_differ(item: str) -> None:
    values = {
        "base": "b",
        "adapter": "a",
        "seeds": (3,),
        "versions": {"torch": "9"},
        "base_name": "n",
        "trained_on": "t",
    }
    good, other = run_of("good", features(0.1)), run_of("other", features(0.5))
    other.results[0].stamp = other.results[0].stamp.having(**{item: values[item]})
    assert [len(t.rows) for t in tables([good, other])] == [2]


def test_what_rows_are_about_is_said_for_each() -> None:
    """What all share once, the rest by row; a table of before has only the protocol of its first row."""
    runs = []
    for name, noise, trained in (("few", 0.5, "x: 4 videos (a)"), ("many", 0.1, "x: 12 videos (b)")):
        stamp = STAMP.having(base="0123", base_name="tiny", adapter=f"of {name}", trained_on=trained)
        runs.append(replace(run_of(name, features(noise, stamp=stamp)), seeds=[0, 1]))
    found = tables(runs)
    assert len(found) == 1
    protocol, shared, *apart = rendering.notes(found[0])[:-1]
    assert not any(word in protocol for word in ("base", "adapter", "trained", "python"))
    assert shared.startswith("base: tiny (0123); versions: python ")
    assert shared.endswith("; seeds: 0, 1")
    assert apart == ["adapter: few of few; many of many", "trained on: few x: 4 videos (a); many x: 12 videos (b)"]
    for form in rendering.FORMS:
        assert "few x: 4 videos (a); many x: 12 videos (b)" in rendering.rendered(found, form)
    again = Study.from_dict(json.loads(json.dumps(found[0].to_dict())))
    assert rendering.about(again.rows) == [shared, *apart]
    data = found[0].to_dict()
    for row in data["rows"]:
        del row["made"]
    assert rendering.about(Study.from_dict(data).rows) == []
    found[0].rows = [replace(r, made={}) for r in found[0].rows]
    assert "base tiny (0123), adapter of few" in rendering.notes(found[0])[0]


def test_other_sizes_and_other_captions_are_kept_apart() -> None:
    whole, odd = features(0.1), features(0.1)
    odd = replace(odd, samples=[replace(odd.samples[0], captions=("another",)), *odd.samples[1:]])
    assert set(tables([run_of("a", whole), run_of("b", odd)])[1].apart) == {"videos and captions"}
    few = replace(whole, samples=whole.samples[:9], texts=whole.texts[:9], videos=whole.videos[:9])
    assert {"queries", "gallery"} <= set(tables([run_of("a", whole), run_of("b", few)])[1].apart)


def test_pairs_of_runs_are_compared_on_the_same_queries() -> None:
    """Means over seeds: the gain is the difference of means, and better beyond chance is marked."""
    weak, strong = run_of("weak", features(1.0, 1), features(1.0, 2)), run_of("strong", features(0.05, 3))
    gains = paired(weak, strong)
    for way in ("t2v", "v2t"):
        for m in ("R@1", "R@5", "R@10"):
            wanted = strong.spread(way, m).mean - weak.spread(way, m).mean
            assert gains[way][m].value == pytest.approx(wanted)
            assert gains[way][m].low <= wanted <= gains[way][m].high
    assert gains["t2v"]["R@1"].low > 0
    same = paired(weak, weak)["t2v"]["R@1"]
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    found = tables([weak, strong])
    assert [(g.a, g.b) for g in found[0].gains] == [("weak", "strong")]
    assert "strong against weak on the same queries" in rendering.terminal(found[0])
    assert rendering.told(Interval(3.0, 1.0, 5.0)) == "+3.0 (+1.0 to +5.0) *"
    assert rendering.told(Interval(3.0, -1.0, 5.0)) == "+3.0 (-1.0 to +5.0)"
    assert tables([weak, strong], against_first=False)[0].gains == []
    with pytest.raises(ClipreelError, match="kept no vectors"):
        paired(weak, Run("bare", strong.results, []))


def test_intervals_and_ranges_over_seeds() -> None:
    run = run_of("two", features(0.6, 1), features(0.6, 2))
    row = tables([run])[0].rows[0]
    both = [r.t2v["R@1"] for r in run.results]
    assert row.recalls["t2v R@1"] == Spread(sum(both) / 2, min(both), max(both))
    interval = row.intervals["t2v R@1"]
    assert interval.value == pytest.approx(sum(both) / 2)
    assert interval.low < interval.value < interval.high


def test_one_table_in_four_forms() -> None:
    found = tables([run_of("a_b & 100%", features(0.3)), run_of("<i>", features(0.6))])
    assert rendering.lines(found[0])[0] == ["method", *rendering.WAYS, "t2v R@1, 95 %", "v2t R@1, 95 %"]
    text = rendering.rendered(found, "markdown")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    tex = rendering.rendered(found, "latex")
    assert r"a\_b \& 100\% &" in tex
    assert tex.count(r"\\") == 3
    page = rendering.rendered(found, "html")
    assert "&lt;i&gt;" in page
    assert "<i>" not in page.split("</style>")[1].replace("<title>", "")
    assert rendering.rendered(found, "terminal").splitlines()[1].startswith("<i>")  # the best stands last
    assert [line[:2] for line in rendering.lines(Study())] == [["method", "trained"]]
    assert rendering.markdown(Study()).startswith("| method |")


def report(folder: Path, kept: Features, seed: int, steps: int) -> None:
    """What `tune` leaves behind, as far as tables read it."""
    result = kept.result()
    costs = {"trainable": 10, "adapter_bytes": 4000, "seconds": 3.0, "peak_memory_bytes": 5, "step": 1}
    config = {"method": "vop", "train": {"seed": seed, "steps": steps}}
    compared = {"before": result.to_dict(), "after": result.to_dict()}
    (folder / "run").mkdir(parents=True)
    made = {"config": config, "costs": costs, "compared": compared, "last": result.to_dict()}
    (folder / "report.json").write_text(json.dumps(made))
    rows = [{"kind": "measure", "step": s, "t2v R@1": 10.0 * s} for s in (1, steps)]
    (folder / "run" / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    save_features(folder / "features", kept)


def test_finished_runs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        report(tmp_path / "seeds" / f"seed-{seed}", features(0.5, seed), seed, 4)
    report(tmp_path / "single", features(0.1, 7), 7, 80)
    save_features(tmp_path / "stored", features(0.1, 8, STAMP.having(frames="3 uniform")))
    out = tmp_path / "out"
    paths = [str(tmp_path / n) for n in ("seeds", "single", "stored")]
    assert main(["compare", *paths, "--out", str(out)]) == 0
    said = capsys.readouterr()
    printed = said.out
    assert f"table.json, table.md, table.tex, table.html and 8 plots in {out}" in said.err
    assert printed.strip() == (out / "table.md").read_text().strip()
    assert "frames: '8 uniform' there, '3 uniform' here" in printed
    assert "single against seeds on the same queries" in printed
    data = json.loads((out / "table.json").read_text())
    assert [r["name"] for r in data["rows"]] == ["seeds", "single"]
    assert [r["steps"]["mean"] for r in data["rows"]] == [4, 80]
    assert data["rows"][0]["seeds"] == [0, 1]
    assert [[r["name"] for r in t["rows"]] for t in data["others"]] == [["stored"]]
    assert rendering.lines(finished([Path(p) for p in paths])[0])[0][:4] == ["method", "trained", "file", "steps"]
    pictures = {p.name for p in out.glob("*.svg")}
    assert pictures == {"parameters.svg", "storage.svg", "time.svg", "curves.svg"}
    assert {p.with_suffix(".png").name for p in out.glob("*.svg")} == {p.name for p in out.glob("*.png")}
    assert (out / "table.html").read_text().count("<svg") == 4
    assert main(["compare", *paths[:2], "--out", str(out), "--format", "latex"]) == 0
    assert capsys.readouterr().out.startswith(r"\begin{tabular}{l")


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "default.yaml").write_text("{}")
    out = ["--out", str(tmp_path / "out")]
    for what, said in (
        (["empty"], "holds no finished run"),
        (["empty", "default.yaml"], "is a folder and"),
        (["default.yaml"], "is what other configs share and trains nothing"),
        (["none.yaml"], f"there is no {tmp_path / 'none.yaml'}; give configs to train, or folders of runs"),
        (["empty", "no_run"], f"there is no {tmp_path / 'no_run'}; give configs to train, or folders of runs"),
        ([], "give at least one config"),
    ):
        assert main(["compare", *(str(tmp_path / w) for w in what), *out]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    report(tmp_path / "mixed" / "seed-0", features(0.5), 0, 4)
    report(tmp_path / "mixed" / "seed-1", features(0.5, stamp=STAMP.having(frames="3 uniform")), 1, 4)
    with pytest.raises(ClipreelError, match="was made differently"):
        read_run(tmp_path / "mixed")
    (tmp_path / "mixed" / "seed-1" / "report.json").write_text("{}")
    with pytest.raises(ClipreelError, match="is no report of a run"):
        read_run(tmp_path / "mixed")


def test_results_without_vectors_still_make_a_table(tmp_path: Path) -> None:
    """Runs of before vectors were kept."""
    report(tmp_path / "old", features(0.5), 0, 4)
    for file in (tmp_path / "old" / "features").iterdir():
        file.unlink()
    row = finished([tmp_path / "old"])[0].rows[0]
    assert row.intervals == {}
    assert isinstance(read_run(tmp_path / "old").results[0], Result)


def test_a_table_survives_json(tmp_path: Path) -> None:
    report(tmp_path / "a", features(0.5, 1), 0, 4)
    report(tmp_path / "b", features(0.1, 2), 0, 4)
    made = finished([tmp_path / "a", tmp_path / "b"])[0]
    data = json.loads(json.dumps(made.to_dict()))
    again = Study.from_dict(data)
    assert (again.rows, again.gains) == (made.rows, made.gains)
    assert rendering.lines(again) == rendering.lines(made)
    for row in data["rows"]:  # as tables were written before
        del row["steps"], row["intervals"]
    del data["gains"], data["apart"], data["stamp"]
    assert rendering.lines(Study.from_dict(data))[0][:4] == ["method", "trained", "file", *rendering.WAYS[:1]]
    with pytest.raises(ClipreelError, match="is no table of clipreel compare"):
        Study.from_dict({"rows": [{}]})


def test_what_validation_said_stands_beside_where_it_is_known(tmp_path: Path) -> None:
    """Settings are chosen by it, so that it belongs into the table; older reports and tables do not have it."""
    chosen = {"t2v R@1": 40.0, "t2v R@5": 90.0, "t2v R@10": 95.0, "v2t R@1": 50.0, "v2t R@5": 80.0, "v2t R@10": 99.0}
    for seed in (0, 1):
        report(tmp_path / "new" / f"seed-{seed}", features(0.5, seed), seed, 4)
        path = tmp_path / "new" / f"seed-{seed}" / "report.json"
        told = {k: v + seed for k, v in chosen.items()}
        path.write_text(json.dumps({**json.loads(path.read_text()), "validation": told}))
    report(tmp_path / "old", features(0.1, 2), 0, 4)
    found = finished([tmp_path / "new", tmp_path / "old"])[0]
    new, old = found.rows
    assert new.validation == {k: Spread(v + 0.5, v, v + 1) for k, v in chosen.items()}
    assert old.validation == {}
    data = json.loads(json.dumps(found.to_dict()))
    assert rendering.lines(Study.from_dict(data)) == rendering.lines(found)
    head, *body = rendering.lines(found)
    assert head[3:6] == ["steps", "val t2v R@1", "val v2t R@1"]
    assert {line[0]: line[4:6] for line in body} == {
        "new": ["40.5 (40.0-41.0)", "50.5 (50.0-51.0)"],
        "old": ["", ""],
    }
    for row in data["rows"]:
        del row["validation"]
    assert rendering.lines(Study.from_dict(data))[0][3:5] == ["steps", "t2v R@1"]


def test_runs_of_a_version_with_fewer_settings_are_done(tmp_path: Path) -> None:
    report(tmp_path / "old", features(0.5), 3, 4)
    base = TuneConfig(method="vop")  # vop_fc of a former version had one rate for all parts
    wanted = replace(base, train=replace(base.train, seed=3, steps=4))
    assert is_done(tmp_path / "old", wanted)
    assert not is_done(tmp_path / "old", replace(wanted, frames=wanted.frames + 1))
    assert not is_done(tmp_path / "none", wanted)
    path = tmp_path / "old" / "report.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "config": {**data["config"], "gone": 1}}))
    assert not is_done(tmp_path / "old", wanted)
