"""Cells that start from other stages, from end to end: films of the shapes world in the published annotation forms."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clipreel.alpro.wordpiece import WordPiece
from clipreel.cli import main
from clipreel.data.sample import Sample
from clipreel.data.sets import developing
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.training.alpro_stages import StageConfig
from clipreel.training.catalogue import catalogue
from clipreel.training.chains import chain, lacking
from clipreel.training.stage_data import refuse_overlap
from tests.data import published

VISION = {"image_size": 32, "patch": 16, "width": 24, "layers": 1, "heads": 2, "mlp": 32}
TEXT = {"vocab": 8, "context": 40, "width": 24, "layers": 2, "text_layers": 1, "heads": 2, "mlp": 32}
SMALL = ["frames=2", "keep_frames=4", "batch=3", "train.steps=1", "tokens=16"]
TINY = [
    "frames=2",
    "batch=2",
    "train.steps=1",
    "train.precision=float32",
    "options.text_tokens=20",
    "model=shapes-tiny",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each published set, whose films are the same few."""
    home = tmp_path_factory.mktemp("home")
    made = ShapesWorld().write_videos(home / "films", "val", 9)
    kept = [f"video{n}" for n in range(400) if developing(f"video{n}")][:2]
    trained = [f"video{n}" for n in range(400) if not developing(f"video{n}")][:7]
    films = [named(s, id) for s, id in zip(made, [*kept, *trained], strict=True)]
    splits = {"train": films[:6], "validation": films[:2], "test": films[6:]}
    for name in ("webvid", "hdvila", "msrvtt7k", "msrvtt9k", "msrvtt1ka", "msrvtt-qa"):
        (home / name).mkdir()
        (home / name / "videos").symlink_to(home / "films")
    published.webvid(home / "webvid", splits)
    stills = [{"video": f"videos/{s.video.name}", "captions": ["a still"]} for s in films[:3]]
    published.lines(home / "webvid" / "cc3m.jsonl", [json.dumps(row) for row in stills])
    published.lines(home / "webvid" / "entities.txt", ["circle 3", "square 2"])
    one_each = {k: [replace(s, captions=s.captions[:1]) for s in v] for k, v in splits.items()}
    published.rows_of("clip_name", "caption", {"train": "train.jsonl", "test": "test.jsonl"})(
        home / "msrvtt7k", one_each
    )
    published.clip4clip_msrvtt(home / "msrvtt9k", splits)
    published.clip4clip_msrvtt(home / "msrvtt1ka", splits)
    for split, name in published.FILE.items():
        asked = films[2:6] if split == "train" else splits[split]
        rows = [
            {"question": q, "answer": a, "answer_type": q.split()[0], "video_id": s.id}
            for s in asked
            for q, a in (("what is it?", "shape"), ("how many?", "one"))
        ]
        published.lines(home / "msrvtt-qa" / "txt" / f"{name}.jsonl", [json.dumps(row) for row in rows])
    rows = [{"video": f"videos/{s.video.name}", "id": s.id, "captions": [s.captions[0]]} for s in films]
    published.lines(home / "hdvila" / "annotations.jsonl", [json.dumps(row) for row in rows])
    published.lines(home / "hdvila" / "captions.jsonl", [json.dumps({"id": s.id, "caption": "a shape"}) for s in films])
    words = [c for s in films for c in s.captions]
    WordPiece.of_words([*words, "what is it how many ? a footage video portrait of one the still ."]).save(home)
    return home


def named(sample: Sample, id: str) -> Sample:
    """The film as a data set names it."""
    path = sample.video.with_name(f"{id}.mp4")
    shutil.move(sample.video, path)
    return Sample(id, path, sample.captions)


def alpro_changes(home: Path) -> list[str]:
    """Tiny sizes and one step for every stage of ALPRO."""
    sizes = [f"sizes.vision.{k}={v}" for k, v in VISION.items()] + [f"sizes.text.{k}={v}" for k, v in TEXT.items()]
    start = [*SMALL, *sizes, "sizes.embed=16", f"tokenizer={home}", "vit=''", "bert=''"]
    return [f"{stage}.{c}" for stage in ("prompter", "pretrain") for c in [*start, "negatives_within=null"]]


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def test_alpro_from_the_prompter_to_retrieval_and_answers(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = alpro_changes(home)
    own = [*SMALL, "negatives_within=null"]
    command = ["reproduce", "alpro/retrieval/msrvtt-b16", *own, *before, "--data", str(home), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "ret")]) == 0
    said = capsys.readouterr().out
    assert "t2v R@1" in said
    assert "not the frozen config" in said
    assert "matching of every pair, rounded" in said
    found = result(tmp_path / "ret")
    assert set(found["ours"]) == {"t2v", "v2t", "cosine"}
    assert found["stamps"]["t2v"]["post_processing"] == "matching of every pair, rounded"
    assert found["stamps"]["cosine"]["post_processing"] == "none"
    assert found["stamp"]["split"] == "partial: 3 of 1000 (MSR-VTT 1k-A test)"
    assert (found["within"], found["seeds"], found["steps"]) == (None, [42], [1])
    assert found["difference"]["t2v"]["R@1"] == pytest.approx(found["ours"]["t2v"]["R@1"]["mean"] - 33.9)
    assert set(found["changes"]) == {*own, *before}
    assert found["parts"]["retrieval msrvtt7k/train"] == "partial: 6 of 7010 (MSR-VTT 7k train)"
    assert found["parts"]["pretrain webvid/train"] == "WebVid-2M train (unchecked)"  # of the stages before it, too
    pretrained = result(tmp_path / "alpro-pretrain-webvid2m-b16")
    assert set(pretrained["ours"]["pretrain"]) >= {"zero-shot MSR-VTT R@1"}
    assert "prompter.train.steps=1" in pretrained["changes"]
    model = tmp_path / "alpro-pretrain-webvid2m-b16" / "seed-42" / "model"
    assert found["config"]["model"] == str(model)
    stood = (model / "model.safetensors").stat().st_mtime_ns
    qa = ["reproduce", "alpro/qa/msrvtt-b16", *SMALL, *before, "--data", str(home), "--device", "cpu"]
    assert main([*qa, "--out", str(tmp_path / "qa"), "--json"]) == 0
    seen = capsys.readouterr()
    assert "alpro/pretrain/webvid2m-b16 is done" in seen.err
    answers = json.loads(seen.out)
    assert (model / "model.safetensors").stat().st_mtime_ns == stood
    assert set(answers["ours"]["qa"]) == {"accuracy", "accuracy what", "accuracy how"}
    assert answers["stamp"]["caption_mode"] == "questions"
    row = (tmp_path / "qa" / "row.md").read_text()
    assert row.startswith("| alpro/qa/msrvtt-b16 (accuracy) | 42.1 | ")
    assert main([*qa, "--out", str(tmp_path / "qa")]) == 0
    assert "done before" in capsys.readouterr().err
    for name in ("result.json", "seed-42/measured.json"):  # as if it was killed after the last step
        (tmp_path / "qa" / name).unlink()
    assert main([*qa, "--out", str(tmp_path / "qa"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ours"] == answers["ours"]
    assert main(["reproduce", "alpro/qa/msrvtt-b16", *SMALL, "--data", str(home), "--out", str(tmp_path / "qa")]) == 2
    assert "was made with" in capsys.readouterr().err


def test_clip_vip_from_post_pretraining_to_the_table(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [f"post_pretrain.{c}" for c in TINY]
    command = ["reproduce", "clip_vip/msrvtt9k-b32", *TINY, "options.frames=2", *before, "--data", str(home)]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "dual_softmax: protocol:" in said
    found = result(tmp_path / "out")
    assert set(found["ours"]) == {"t2v", "v2t", "dual_softmax"}
    transductive = {way: stamp["transductive"] for way, stamp in found["stamps"].items()}
    assert transductive == {"t2v": False, "v2t": False, "dual_softmax": True}
    assert found["difference"]["dual_softmax"]["R@1"] == pytest.approx(
        found["ours"]["dual_softmax"]["R@1"]["mean"] - 55.9
    )
    stage = tmp_path / "clip_vip-post_pretrain-hdvila-b32"
    assert found["config"]["start"] == str(stage / "seed-42" / "adapter")
    alone = result(stage)
    assert alone["printed"] == {}
    assert alone["stamps"]["dual_softmax"]["transductive"]
    assert alone["stamp"]["split"] == "partial: 3 of 1000 (MSR-VTT 1k-A test)"
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_post_pretraining_on_the_shapes_world_is_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ShapesWorld, "COUNTS", {"train": (4, 2), "val": (4, 2), "test": (4, 2)})
    command = ["reproduce", "post_pretrain/shapes-tiny", "frames=2", "batch=2", "train.steps=1", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stamp"]["split"], found["within"]) == ("shapes test", None)
    assert set(found["ours"]) == set(found["stamps"]) == {"t2v", "v2t", "dual_softmax"}
    assert found["intervals"]["t2v"]["R@1"]["value"] == found["ours"]["t2v"]["R@1"]["mean"]
    assert main([*command, "train.seed=43", "--out", str(tmp_path)]) == 0
    assert "nothing follows" in capsys.readouterr().out


def test_what_a_stage_lacks_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "alpro/retrieval/msrvtt-b16", "--data", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    for part in (
        "before it, alpro/prompter/webvid2m-b16 needs",
        "model=FILE",
        "WebVid-2M",
        "withdrawn",
        "cc3m.jsonl",
        "bert-base-uncased",
        "clipreel entities",
        "MSR-VTT",
    ):
        assert part in said, part
    assert said.index("MSR-VTT") < said.index("WebVid-2M")  # its own data first
    for once in ("WebVid-2M: ", "MSR-VTT 7k: ", "bert-base-uncased, below", "cc3m.jsonl, below"):
        assert said.count(once) == 1, once
    assert "in the form alpro: train.jsonl, test.jsonl" in said
    assert "ArrowLuo" not in said
    assert main(["reproduce", "clip_vip/msrvtt9k-b32", "--data", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "pretrain_clipvip_base_32.pt" in said
    assert "hdvila/annotations.jsonl" in said
    assert main(["reproduce", "clip_vip/msrvtt9k-b16", "--data", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "pretrain_clipvip_base_16.pt, the released checkpoint that it starts from (about 600 MB" in said
    assert "github.com/microsoft/XPretrain" in said
    assert said.count("openai/clip-vit-base-patch16, the base (about 598 MB: huggingface.co/") == 1


def test_a_set_that_is_half_there_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "msrvtt7k").mkdir()
    assert main(["reproduce", "alpro/retrieval/msrvtt-b16", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "there is no train.jsonl below" in said
    assert "there is no test.jsonl below" in said
    assert said.count("MSR-VTT 7k: ") == 1


def test_a_base_that_is_given_or_may_be_fetched_is_not_missing(tmp_path: Path) -> None:
    known = catalogue()
    links = chain(known["vop/vop_fc/msrvtt9k-b32"], known, tmp_path, [], tmp_path / "out")
    row = "openai/clip-vit-base-patch32, the base (about 605 MB: huggingface.co/openai/clip-vit-base-patch32)"
    assert any(line.startswith(row) for line in lacking(links, base=True))
    assert not any("the base" in line for line in lacking(links))


def test_rows_of_a_stage_that_are_tested_are_not_trained_on(tmp_path: Path) -> None:
    films = [Sample(f"v{n}", tmp_path / f"v{n}.mp4", ("x",)) for n in range(3)]
    config = StageConfig(stage="retrieval")
    refuse_overlap(config, films[:2], films[2:])
    with pytest.raises(ClipreelError, match=r"the splits train_data and validation_data share 1 videos \(v1\)"):
        refuse_overlap(config, films[:2], films[1:])
    rows = [{"question": "what?", "answer": "a", "video_id": s.id} for s in films]
    published.lines(tmp_path / "test.jsonl", [json.dumps(r) for r in rows])
    config = StageConfig(stage="qa", test_data=str(tmp_path / "test.jsonl"))
    with pytest.raises(ClipreelError, match="the splits train_data and test_data share 2 videos"):
        refuse_overlap(config, films[:2], [])


def test_where_the_data_lie_is_no_change(tmp_path: Path) -> None:
    known = catalogue()
    places = ["data.form=x-pool", f"data.videos={tmp_path}"]
    (link,) = chain(known["vop/vop_fc/msrvtt9k-b32"], known, tmp_path, [*places, "batch=4"], tmp_path / "out")
    assert link.changes == ("batch=4",)
    assert (link.config.data.form, link.config.data.videos) == ("x-pool", str(tmp_path))
    links = chain(known["alpro/qa/msvd-b16"], known, tmp_path, ["prompter.videos=here"], tmp_path / "qa")
    assert links[0].config.videos == "here"
    assert [each.changes for each in links] == [(), (), ()]


def test_changes_of_stages_that_are_not_run_are_refused(tmp_path: Path) -> None:
    known = catalogue()
    with pytest.raises(ClipreelError, match="builds on no stage prompter here; it builds on none"):
        chain(known["vop/vop_fc/msrvtt9k-b32"], known, None, ["prompter.train.steps=2"], tmp_path)
    links = chain(known["alpro/qa/msvd-b16"], known, tmp_path, ["prompter.batch=2", "train.steps=3"], tmp_path / "qa")
    assert [link.stage for link in links] == ["prompter", "pretrain", "qa"]
    assert [link.changes for link in links] == [
        ("batch=2",),
        ("prompter.batch=2",),
        ("prompter.batch=2", "train.steps=3"),
    ]
    assert [link.config.train.steps for link in links] == [None, None, 3]
    assert len(lacking(links)) > 5
