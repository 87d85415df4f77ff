"""Published data sets: every form gives back what was written in it, under a name that it deserves, or one line."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from clipreel import load
from clipreel.cli import main
from clipreel.data.pickled import read_plain
from clipreel.data.questions import accuracies
from clipreel.data.sample import Sample
from clipreel.data.sets import check_apart, developing, facts, named, open_set, spoken
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_questions import shapes_questions
from clipreel.errors import ClipreelError
from clipreel.evaluation.runs import encode_videos, evaluate_vectors
from clipreel.training.alpro_stages import StageConfig
from clipreel.training.pairs import DataConfig, read_pairs
from clipreel.training.stage_data import questions_in
from clipreel.video.quarantine import write_quarantine
from tests.data import published as p

THREE = ("train", "validation", "test")
JSONL = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
LISTS = {"train": "train_list_jsfusion.txt", "test": "val_list_jsfusion.txt"}
FULL = {"train": "train_list_full.txt", "validation": "val_list_full.txt", "test": "test_list_full.txt"}
MIECH = {"train": "train_list_miech.txt", "test": "test_list_miech.txt"}
MV = {"train": "c4c_train.json", "test": "c4c_test.json"}
MV_1KA = {"train": "c4c_train_1ka.json", "test": "c4c_test_jsfusion.json"}
CASES: list[tuple[str, str, Callable[..., None]]] = [
    ("msrvtt9k", "clip4clip", p.clip4clip_msrvtt),
    ("msrvtt9k", "x-pool", p.clip4clip_msrvtt),
    ("msrvtt9k", "frozen", partial(p.frozen_msrvtt, lists=LISTS, numbers=True)),
    ("msrvtt9k", "clip-vip", p.rows_of("clip_id", "text", {"train": "train9k.jsonl", "test": "test1ka.jsonl"}, True)),
    ("msrvtt9k", "mv-adapter", p.mv_adapter(MV_1KA)),
    ("msrvtt9k", "alpro", p.rows_of("clip_name", "caption", {"train": "train.jsonl", "test": "test.jsonl"})),
    ("msrvtt7k", "clip4clip", partial(p.clip4clip_msrvtt, train="7k")),
    ("msrvtt1ka", "clip4clip", p.clip4clip_msrvtt),
    ("msrvtt1kb", "frozen", partial(p.frozen_msrvtt, lists=MIECH)),
    ("msrvtt-full", "clip4clip", p.full_msrvtt),
    ("msrvtt-full", "frozen", partial(p.frozen_msrvtt, lists=FULL)),
    ("msvd", "clip4clip", p.pickled),
    ("msvd", "x-pool", p.xpool_msvd),
    ("msvd", "frozen", p.pickled),
    ("msvd", "mv-adapter", p.mv_adapter({**MV, "validation": "c4c_val.json"})),
    ("lsmdc", "clip4clip", p.lsmdc),
    ("lsmdc", "x-pool", p.lsmdc),
    ("lsmdc", "frozen", p.pickled),
    (
        "lsmdc",
        "clip-vip",
        p.rows_of("clip_id", "text", {"train": "train_101k_frame.jsonl", "test": "test_1k_frame.jsonl"}),
    ),
    ("lsmdc", "mv-adapter", p.mv_adapter(MV)),
    ("didemo", "clip4clip", p.didemo),
    ("didemo", "clip-vip", p.rows_of("clip_id", "text", JSONL, True)),
    ("didemo", "mv-adapter", p.mv_adapter(MV)),
    ("didemo", "alpro", p.rows_of("clip_name", "caption", JSONL)),
    ("activitynet", "clip4clip", p.activitynet),
    ("activitynet", "clip-vip", p.rows_of("clip_id", "text", {"train": "train.jsonl", "test": "val1.jsonl"}, True)),
    ("activitynet", "mv-adapter", p.mv_adapter(MV)),
    ("vatex", "owner", p.vatex),
    ("webvid", "frozen", p.webvid),
]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of three splits of the shapes world, in one folder."""
    folder = tmp_path_factory.mktemp("films")
    for split in ("train", "val", "test"):
        ShapesWorld().write_videos(folder, split, 6)
    return folder


@pytest.fixture(scope="module")
def encoded(films: Path) -> dict[Path, torch.Tensor]:
    """Vectors of all videos."""
    samples = [s for part in world(films, False).values() for s in part]
    vectors, failed = encode_videos(load("shapes-tiny", device="cpu"), samples, frames=8)
    assert not failed
    return {s.video: v for s, v in zip(samples, vectors, strict=True)}


def world(films: Path, several: bool) -> dict[str, list[Sample]]:
    """The splits with one caption a video in the test split, or with several everywhere."""
    splits: dict[str, list[Sample]] = {}
    for split, name in zip(THREE, ("train", "val", "test"), strict=True):
        items = ShapesWorld().videos(name)[:6]
        splits[split] = []
        for item in items:
            one = item.captions[0]
            captions = (one, f"again, {one}", "a square") if several else (one,)
            splits[split].append(Sample(item.id, films / f"{item.id}.mp4", captions))
    return splits


def prepared(name: str, films: Path) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """What is written, and what should be read from it."""
    stated = facts()[name]["splits"]
    many, single = world(films, True), world(films, False)
    written = {s: single[s] if stated.get(s, {"mode": "all"})["mode"] == "single" else many[s] for s in THREE}
    expected = {
        s: [replace(x, captions=spoken(x.captions, stated[s]["mode"])) for x in written[s]]
        for s in stated
        if s in THREE
    }
    return written, expected


@pytest.mark.parametrize(("name", "form", "write"), CASES, ids=[f"{n}-{f}" for n, f, _ in CASES])
def test_every_form_gives_back_samples_and_metrics(
    name: str, form: str, write: Callable[..., None], films: Path, encoded: dict[Path, torch.Tensor], tmp_path: Path
) -> None:
    model = load("shapes-tiny", device="cpu")
    written, expected = prepared(name, films)
    write(tmp_path, written)
    found = open_set(name, tmp_path, form=form, videos=films)
    ends = {s: facts()[name]["forms"][form][s].get("end_s") for s in found.splits if s in THREE}
    last = (name, form) == ("lsmdc", "x-pool")  # X-Pool keeps the last sentence of a clip
    splits = [s for s in found.splits if s in THREE]
    for split in splits:
        part = found.part(split)
        should = [
            replace(s, end_s=ends[split], captions=s.captions[-1:] if last else s.captions) for s in expected[split]
        ]
        assert part.samples == should
        whole = facts()[name]["splits"][split]["videos"]
        assert part.complete
        if whole is not None:
            title = facts()[name]["splits"][split].get("title", f"{facts()[name]['title']} {split}")
            assert part.label == f"partial: 6 of {whole} ({title})"
    vectors = torch.stack([encoded[s.video] for s in should])
    read = evaluate_vectors(model, found.part(splits[-1]).samples, vectors, "x")
    direct = evaluate_vectors(model, should, vectors, "x")
    assert (read.t2v, read.v2t, read.stamp) == (direct.t2v, direct.v2t, direct.stamp)


def test_every_form_that_is_stated_was_tried() -> None:
    stated = {(n, form) for n, f in facts().items() for form in f["forms"]}
    tried = {(n, form) for n, form, _ in CASES} | {(n, "alpro") for n in ("msrvtt-qa", "msvd-qa")}
    same = {("msrvtt7k", f) for f in ("x-pool", "mv-adapter", "clip-vip", "alpro")}  # files as those of 9k
    same |= {("msrvtt1ka", f) for f in ("x-pool", "frozen", "clip-vip", "mv-adapter", "alpro")}
    assert stated - tried == same | {("msrvtt-full", "x-pool"), ("webvid10m", "frozen")}


@pytest.mark.parametrize("name", ["msrvtt-qa", "msvd-qa"])
def test_questions_come_back_with_their_accuracies(name: str, films: Path, tmp_path: Path) -> None:
    splits = {}
    for split, name_in_world in zip(THREE, ("train", "val", "test"), strict=True):
        ids = [item.id for item in ShapesWorld().videos(name_in_world)[:6]]
        asked = [q for q in shapes_questions(ShapesWorld(), name_in_world, films) if q.video_id in ids]
        assert len({q.kind for q in asked}) > 3
        keys = {"question": "question", "answer": "answer", "video_id": "video_id", "answer_type": "kind"}
        rows = [{key: getattr(q, own) for key, own in keys.items()} for q in asked]
        p.lines(tmp_path / "txt" / JSONL[split], [json.dumps(r) for r in rows])
        splits[split] = [replace(q, id=f"q{n}") for n, q in enumerate(asked)]
    for split, direct in splits.items():
        assert [q for s in open_set(name, tmp_path, videos=films).part(split).samples for q in s.captions] == [
            q.question for q in direct
        ]
        read = questions_in(
            StageConfig(train_data=f"{name}/{split}", root=str(tmp_path), videos=str(films)), f"{name}/{split}"
        )
        assert read == direct
        given = {q.id: q.answer if n % 3 else "something else" for n, q in enumerate(direct)}
        found = accuracies(read, given)
        assert found == accuracies(direct, given)
        assert 0 < found["accuracy"] < 100
        assert len(found) > 4  # one of each kind of question


def test_the_end_of_a_part_of_a_video_is_where_its_frames_end(
    films: Path, encoded: dict[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes films are shorter than DiDeMo's 31 seconds, so they are cut earlier here."""
    monkeypatch.setitem(facts()["didemo"]["forms"]["clip4clip"]["test"], "end_s", 0.5)
    written, expected = prepared("didemo", films)
    p.didemo(tmp_path, written)
    read = open_set("didemo", tmp_path, form="clip4clip", videos=films).part("test").samples
    direct = [replace(s, end_s=0.5) for s in expected["test"]]
    assert read == direct
    model = load("shapes-tiny", device="cpu")
    cut, whole = (encode_videos(model, s, frames=8)[0] for s in (read, expected["test"]))
    torch.testing.assert_close(whole, torch.stack([encoded[s.video] for s in read]))
    assert (cut - whole).abs().amax(1).min() > 0.01  # other frames are seen
    found = evaluate_vectors(model, read, cut, "x")
    again = evaluate_vectors(model, direct, encode_videos(model, direct, frames=8)[0], "x")
    assert (found.t2v, found.v2t, found.stamp) == (again.t2v, again.v2t, again.stamp)


def test_questions_are_grouped_by_video(films: Path, tmp_path: Path) -> None:
    rows = [{"video_id": "test-across-000a", "question": f"what {n}?", "answer": "a square"} for n in range(2)]
    p.lines(tmp_path / "test.jsonl", [json.dumps(r) for r in rows])
    part = open_set("msrvtt-qa", tmp_path, videos=films).part("test")
    assert [s.captions for s in part.samples] == [("what 0?", "what 1?")]


# ---------------------------------------------------------------------- names and splits


def test_a_missing_or_quarantined_video_makes_a_part_partial(films: Path, tmp_path: Path) -> None:
    written, _ = prepared("msvd", films)
    p.xpool_msvd(tmp_path, {**written, "test": [*written["test"], Sample("gone", Path("gone.mp4"), ("x",))]})
    write_quarantine(tmp_path / "quarantine.jsonl", [(written["test"][0].video, "truncated")])
    part = open_set("msvd", tmp_path, form="x-pool", videos=films).part("test")
    assert part.label == "partial: 5 of 670 (MSVD test)"
    assert (part.missing, part.quarantined, part.listed) == (["gone"], [(written["test"][0].id, "truncated")], 7)
    assert not part.complete


def test_only_the_published_list_has_the_full_name(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, _ = prepared("msvd", films)
    p.xpool_msvd(tmp_path, written)
    found = open_set("msvd", tmp_path, form="x-pool", videos=films)
    stated = facts()["msvd"]["splits"]["test"]
    monkeypatch.setitem(stated, "videos", 6)
    assert found.part("test").label == "another list: 6 videos that are not those of MSVD test"
    monkeypatch.setitem(stated, "videos", 5)
    assert found.part("test").label == "another list: 6 videos instead of 5 (MSVD test)"
    monkeypatch.setitem(stated, "videos", 6)
    monkeypatch.delitem(stated, "ids")
    monkeypatch.delitem(stated, "texts")
    assert found.part("test").label == "partial: 18 of 27763 captions (MSVD test)"
    monkeypatch.setitem(stated, "captions", 18)
    assert found.part("test").label == "MSVD test (as many videos as published)"
    single = open_set("msvd", tmp_path, form="x-pool", videos=films, captions="single").part("test")
    assert single.label.endswith(", captions: single")
    assert {len(s.captions) for s in single.samples} == {1}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["t"] * 3, "partial: 3 of 4 captions (X)"),
        (["t"] * 4, "X (as many videos as published)"),
        (["t"] * 5, "other captions: 5 captions instead of 4 (X)"),
    ],
)
def test_captions_are_counted(texts: list[str], said: str) -> None:
    stated = {"videos": 2, "captions": 4, "mode": "all"}
    assert named("X", ["a", "b"], texts, stated, "all", 2) == said
    assert named("X", ["a", "b"], texts[:2], stated, "single", 2) == "X (as many videos as published), captions: single"
    assert named("X", ["a", "b"], texts[:3], {**stated, "blank": 1}, "all", 2) == "X (as many videos as published)"
    assert named("X", ["a", "b"], texts, {**stated, "captions": None}, "all", 2) == "X (as many videos as published)"


def test_a_set_with_one_caption_of_twenty_is_partial() -> None:
    ids = [f"video{n}" for n in range(7010, 10_000)]
    stated = facts()["msrvtt-full"]["splits"]["test"]
    whole = partial(named, "MSR-VTT full test", ids, stated=stated, mode="all", listed=2990)
    assert whole(texts=ids) == "partial: 2990 of 59800 captions (MSR-VTT full test)"
    assert whole(texts=ids * 20) == "MSR-VTT full test"
    assert whole(texts=(ids * 20)[2:]) == "MSR-VTT full test"  # two videos are known to lack one


def test_questions_are_counted(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"video_id": "test-across-000a", "question": f"what {n}?", "answer": "a square"} for n in range(3)]
    p.lines(tmp_path / "test.jsonl", [json.dumps(r) for r in rows])
    part = open_set("msrvtt-qa", tmp_path, videos=films).part("test")
    assert part.label == "partial: 3 of 72821 questions (MSRVTT-QA test)"
    monkeypatch.setitem(facts()["msrvtt-qa"]["splits"]["test"], "captions", 3)
    part = open_set("msrvtt-qa", tmp_path, videos=films).part("test")
    assert part.label == "MSRVTT-QA test (as many questions as published)"


def test_a_config_reaches_the_readers(films: Path, tmp_path: Path) -> None:
    written, _ = prepared("msrvtt9k", films)
    chosen = [s for s in world(films, True)["train"] if not developing(s.id)]
    wanted = next(f"video{n}" for n in range(10_000) if developing(f"video{n}"))
    (tmp_path / "videos").mkdir()
    for s in [*chosen, *written["test"]]:
        (tmp_path / "videos" / s.video.name).symlink_to(s.video)
    (tmp_path / "videos" / f"{wanted}.mp4").symlink_to(films / "test-across-000a.mp4")
    kept = Sample(wanted, tmp_path, ("a circle",))
    p.clip4clip_msrvtt(tmp_path, {"train": [*chosen, kept], "test": written["test"]})
    pairs = read_pairs(DataConfig(path="msrvtt9k", root=str(tmp_path)), tmp_path)
    assert [s.id for s in pairs.train] == [s.id for s in chosen]
    assert [s.id for s in pairs.validation] == [wanted]
    assert pairs.label == "partial: 6 of 1000 (MSR-VTT 1k-A test)"
    assert pairs.labels == {
        "train": f"partial: {len(chosen) + 1} of 9000 (MSR-VTT 9k train)",
        "development": "partial: 1 of 439 (MSR-VTT 9k development)",
        "test": pairs.label,
    }
    assert list(pairs.notes) == []
    (tmp_path / "videos" / chosen[0].video.name).unlink()
    pairs = read_pairs(DataConfig(path="msrvtt9k", root=str(tmp_path)), tmp_path)
    (note,) = pairs.notes
    assert note.endswith(f"1 videos are missing, the first is {chosen[0].id}")


def test_the_development_draw_does_not_move() -> None:
    drawn = [n for n in range(7010) if developing(f"video{n}")]
    assert (len(drawn), drawn[:5]) == (350, [8, 24, 54, 75, 84])


# ---------------------------------------------------------------------- bad input


def refused(name: str, form: str, root: Path, films: Path, split: str = "train") -> str:
    with pytest.raises(ClipreelError) as e:
        open_set(name, root, form=form, videos=films).part(split)
    assert "\n" not in str(e.value)
    return str(e.value)


def spoil(root: Path, name: str, change: Callable[[str], str]) -> None:
    (root / name).write_text(change((root / name).read_text("utf-8")), "utf-8")


@pytest.mark.parametrize(
    ("name", "form", "write", "file", "change", "said"),
    [
        ("msvd", "x-pool", p.xpool_msvd, "train_list.txt", lambda t: t + "nobody\n", "lists the video 'nobody', and "),
        ("msvd", "x-pool", p.xpool_msvd, "train_list.txt", lambda t: t + t.split()[0] + "\n", "(entries 1 and 7)"),
        ("msvd", "x-pool", p.xpool_msvd, "captions_msvd.json", lambda t: f"[{t}]", "holds a list, and an object is"),
        ("msvd", "x-pool", p.xpool_msvd, "captions_msvd.json", lambda t: t[:-9], "is not JSON"),
        (
            "msvd",
            "x-pool",
            p.xpool_msvd,
            "captions_msvd.json",
            lambda t: t.replace('["', '[[], "'),
            "is [] and not a te",
        ),
        ("msvd", "x-pool", p.xpool_msvd, "train_list.txt", lambda t: "", "lists no videos"),
        ("msrvtt9k", "clip4clip", p.clip4clip_msrvtt, "MSRVTT_data.json", lambda t: "{}", "sentences is None"),
        (
            "msrvtt9k",
            "clip4clip",
            p.clip4clip_msrvtt,
            "MSRVTT_train.9k.csv",
            lambda t: t.replace("video_id", "id"),
            "has no column 'video_id' (its header: 'id'); is it of another --form?",
        ),
        (
            "lsmdc",
            "clip4clip",
            p.lsmdc,
            "LSMDC16_annos_training.csv",
            lambda t: t.replace("\t", ","),
            "separated by ','",
        ),
        (
            "lsmdc",
            "clip4clip",
            p.lsmdc,
            "LSMDC16_annos_training.csv",
            lambda t: "\t" * 5 + "x\n" + t,
            "row has no video",
        ),
        (
            "didemo",
            "clip4clip",
            p.didemo,
            "train_data.json",
            lambda t: '{"a": ' + t + "}",
            "holds an object, and a list",
        ),
        (
            "activitynet",
            "clip4clip",
            p.activitynet,
            "train.json",
            lambda t: t.replace("sentences", "s"),
            "list of sentenc",
        ),
        (
            "webvid",
            "frozen",
            p.webvid,
            "results_2M_train.csv",
            lambda t: t.replace(",", ";"),
            "separated by semicolons",
        ),
        ("webvid", "frozen", p.webvid, "results_2M_train.csv", lambda t: t.replace(",", "|"), "separated by pipes"),
        ("webvid", "frozen", p.webvid, "results_2M_train.csv", lambda t: t + ",x,1,d,1,u\r\n", "videoid is blank"),
    ],
)
def test_bad_annotations_are_one_line(
    name: str,
    form: str,
    write: Callable[..., None],
    file: str,
    change: Callable[[str], str],
    said: str,
    films: Path,
    tmp_path: Path,
) -> None:
    write(tmp_path, prepared(name, films)[0])
    spoil(tmp_path, file, change)
    assert said in refused(name, form, tmp_path, films)


def test_a_video_that_is_twice_in_a_test_list(films: Path, tmp_path: Path) -> None:
    written, _ = prepared("msrvtt9k", films)
    twice = {**written, "test": [*written["test"], written["test"][1]]}
    p.clip4clip_msrvtt(tmp_path, twice)
    said = refused("msrvtt9k", "clip4clip", tmp_path, films, "test")
    assert f"line 8: the video {written['test'][1].id!r} is there twice (the first: " in said
    p.mv_adapter(MV_1KA)(tmp_path / "mv", twice)
    assert "is there 2 times and was published with one" in refused("msrvtt9k", "mv-adapter", tmp_path, films, "test")
    rows = p.rows_of("clip_id", "text", {"train": "train9k.jsonl"})
    rows(tmp_path, written)
    spoil(tmp_path, "txt/train9k.jsonl", lambda t: t.replace("clip_id", "clip"))
    assert "line 1: there is no video, 'clip_id' is None" in refused("msrvtt9k", "clip-vip", tmp_path, films)
    spoil(tmp_path, "txt/train9k.jsonl", lambda t: "[1]")
    said = refused("msrvtt9k", "clip-vip", tmp_path, films)
    assert """is not a JSON object but '[1]'; {"clip_id", "text"}, a line each, is expected""" in said


def test_a_list_without_a_video_to_select_with(films: Path, tmp_path: Path) -> None:
    written, _ = prepared("msrvtt9k", films)
    trained = [s for s in written["train"] if not developing(s.id)]
    p.clip4clip_msrvtt(tmp_path, {**written, "train": trained})
    said = refused("msrvtt9k", "clip4clip", tmp_path, films, "development")
    assert "none of the training videos of msrvtt9k in " in said
    assert said.endswith(
        "MSRVTT_train.9k.csv is among the 5% that are kept to select the weights: is the list cut short?"
    )


def test_a_wrong_encoding_names_its_repair(films: Path, tmp_path: Path) -> None:
    p.lsmdc(tmp_path, prepared("lsmdc", films)[0])
    file = tmp_path / "LSMDC16_annos_training.csv"
    file.write_bytes(file.read_bytes() + "a\t0\t0\t0\t0\tGr\u00fc\u00dfe\n".encode("latin-1"))
    assert "repair: iconv -f WINDOWS-1252" in refused("lsmdc", "clip4clip", tmp_path, films)


def test_a_test_list_that_overlaps_the_training_list_is_refused(films: Path, tmp_path: Path) -> None:
    written, _ = prepared("msvd", films)
    p.xpool_msvd(tmp_path, {**written, "test": [*written["test"], *written["train"][:2]]})
    with pytest.raises(ClipreelError) as e:
        read_pairs(DataConfig(path="msvd", form="x-pool", root=str(tmp_path), videos=str(films)), tmp_path)
    ids = ", ".join(s.id for s in written["train"][:2])
    assert f"the splits train and test share 2 videos ({ids})" in str(e.value)
    with pytest.raises(ClipreelError, match=r"share 1 videos \(b\)"):  # the same file under another id
        check_apart({"train": [Sample("a", tmp_path / "x", ("t",))], "test": [Sample("b", tmp_path / "x", ("t",))]})


def test_no_command_gets_a_test_list_that_overlaps(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, _ = prepared("msvd", films)
    gone = Sample("gone", Path("gone.mp4"), ("x",))  # compared by name, with or without its file
    p.xpool_msvd(tmp_path, {**written, "train": [*written["train"], gone], "test": [*written["test"], gone]})
    found = open_set("msvd", tmp_path, form="x-pool", videos=films)
    with pytest.raises(ClipreelError, match=r"the splits train and test share 1 videos \(gone\)"):
        found.part("test")
    root = ["msvd", "--form", "x-pool", "--root", str(tmp_path)]
    prepare = ["prepare", *root, "--videos", str(films), "--model", "shapes-tiny", "--cache", str(tmp_path / "cache")]
    evaluate = ["evaluate", *root, "--model", "shapes-tiny"]
    for command in (prepare, [*prepare, "--split", "test"], evaluate):
        assert main(command) == 2
        assert "the splits train and test share 1 videos (gone): what is tested" in capsys.readouterr().err
    (tmp_path / "train_list.txt").unlink()
    assert len(open_set("msvd", tmp_path, form="x-pool", videos=films).part("test").samples) == 6


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_read_and_never_run(protocol: int, tmp_path: Path) -> None:
    file, target = tmp_path / "raw-captions.pkl", tmp_path / "touched"
    captions = {"a": [["a", "dog"], "b c"], "b": [["\u00e4"]]}
    file.write_bytes(pickle.dumps(captions, protocol))
    assert read_plain(file) == captions
    for bad, said in [
        ({"a": Attack(target)}, "was not run"),
        (eval, "it asks for "),
        ({"a": {1, 2}, "b": Path}, "it asks for ") if protocol < 4 else ({"b": Path}, "it asks for "),
        (["a"], "not captions: a dict of video ids is expected, and it holds a list"),
        ({1: ["a"]}, "not captions"),
    ]:
        file.write_bytes(pickle.dumps(bad, protocol))
        with pytest.raises(ClipreelError, match=said):
            read_plain(file)
    file.write_bytes(pickle.dumps(captions, protocol)[:-4])
    with pytest.raises(ClipreelError, match="is no readable pickle"):
        read_plain(file)
    assert not target.exists()


def test_a_pickle_that_is_not_captions(films: Path, tmp_path: Path) -> None:
    written, _ = prepared("msvd", films)
    p.pickled(tmp_path, written)
    every = [s.id for samples in written.values() for s in samples]
    for value, said in [
        (3, "are 3 and not a list of texts; get the file again"),
        ([[1]], "it holds [1]; get it again"),
    ]:
        (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(dict.fromkeys(every, value)))
        assert said in refused("msvd", "clip4clip", tmp_path, films)


def test_unknown_words_and_missing_files_say_what_to_do(films: Path, tmp_path: Path) -> None:
    for options, said in [
        ({"name": "msrvtt"}, "there is no data set 'msrvtt'; known are msrvtt9k, "),
        (
            {"name": "msrvtt9k", "root": tmp_path, "form": "csv"},
            "was not published in the form 'csv'; it was in clip4clip",
        ),
        ({"name": "didemo", "root": tmp_path / "no"}, "name it with --root. DiDeMo: 10,464 videos"),
        ({"name": "didemo", "root": tmp_path, "videos": tmp_path / "no"}, "the folder of the videos with --videos"),
    ]:
        with pytest.raises(ClipreelError) as e:
            open_set(**options)
        assert said in str(e.value)
    said = refused("didemo", "clip4clip", tmp_path, films)
    assert f"there is no train_list.txt below {tmp_path}" in said
    assert "LocalizingMoments" in said
    p.didemo(tmp_path, prepared("didemo", films)[0])
    assert "none of the 6 videos of didemo train can be used" in refused("didemo", "clip4clip", tmp_path, tmp_path)
    assert "has no split 'dev'; it has train, validation, test" in refused(
        "didemo", "clip4clip", tmp_path, films, "dev"
    )


def test_two_files_of_one_name_are_not_guessed_between(films: Path, tmp_path: Path) -> None:
    written, _ = prepared("msvd", films)
    p.xpool_msvd(tmp_path, written)
    (tmp_path / "videos" / "more").mkdir(parents=True)
    for name in ("x.avi", "more/x.mp4"):
        (tmp_path / "videos" / name.replace("x", written["train"][0].id)).write_bytes(b"x")
    assert "two files may be the video" in refused("msvd", "x-pool", tmp_path, tmp_path / "videos")
