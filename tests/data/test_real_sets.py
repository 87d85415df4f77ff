"""The published annotation files and real MSR-VTT videos of --realdata: counts, duplicates and hashes of core.md 4."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from clipreel.cli import main
from clipreel.data.doctor import read_log
from clipreel.data.forms import caption_table, ids_of, list_and_captions, webvid
from clipreel.data.sets import DEVELOPMENT, developing, facts, identity, named, open_set
from tests.data import published as p

NUMBERS = {"gt_7348": 7348, "gt_7732": 7732, "gt_9474": 9474, "pred_7375": 7375, "pred_8807": 8807}


def texts(captions: dict[str, list[str]]) -> list[str]:
    return [f"{i}\t{c}" for i, said in captions.items() for c in said]


def check(name: str, split: str, captions: dict[str, list[str]]) -> None:
    """Counts and hashes are those that the package holds, and so the part has the full name."""
    stated = facts()[name]["splits"][split]
    assert (len(captions), sum(map(len, captions.values()))) == (stated["videos"], stated["captions"])
    title = stated.get("title", f"{facts()[name]['title']} {split}")
    assert named(title, list(captions), texts(captions), stated, stated["mode"], len(captions)) == title
    changed = {i: [c + "!" for c in said] for i, said in captions.items()}
    if "texts" in stated:
        said = named(title, list(changed), texts(changed), stated, stated["mode"], len(changed))
        assert said == f"other captions on the videos of {title}"


def test_the_lists_of_msrvtt(real_annotations: Path) -> None:
    folder = real_annotations / "msrvtt"
    nine, seven = ids_of(folder / "MSRVTT_train.9k.csv"), ids_of(folder / "MSRVTT_train.7k.csv")
    test = caption_table([folder / "MSRVTT_JSFUSION_test.csv"]).captions
    check("msrvtt9k", "test", test)
    for name, ids in (("msrvtt9k", nine), ("msrvtt7k", seven)):
        stated = facts()[name]["splits"]
        assert (len(ids), identity(ids)) == (stated["train"]["videos"], stated["train"]["ids"])
        drawn = [i for i in ids if developing(i)]
        assert (len(drawn), identity(drawn)) == (stated[DEVELOPMENT]["videos"], stated[DEVELOPMENT]["ids"])
    assert set(nine) | set(test) == {f"video{n}" for n in range(10_000)}
    assert not set(nine) & set(test)
    assert set(seven) < set(nine)
    assert set(seven) == {f"video{n}" for n in range(7010)}
    assert all(int(i.removeprefix("video")) >= 7010 for i in test)
    repeated = [n for n in Counter(c[0] for c in test.values()).values() if n > 1]
    assert (len(repeated), sum(repeated)) == (4, 9)


def test_the_official_splits_of_msrvtt() -> None:
    for split, first, last in (("train", 0, 6513), ("validation", 6513, 7010), ("test", 7010, 10_000)):
        stated = facts()["msrvtt-full"]["splits"][split]
        assert stated["ids"] == identity(f"video{n}" for n in range(first, last))
        assert stated["captions"] == 20 * stated["videos"] == 20 * (last - first)


def test_the_lists_and_captions_of_msvd(real_annotations: Path) -> None:
    folder = real_annotations / "msvd"
    seen: dict[str, set[str]] = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        captions = list_and_captions([folder / f"{name}_list.txt", folder / "captions_msvd.json"]).captions
        check("msvd", split, captions)
        seen[split] = set(captions)
    assert len(set.union(*seen.values())) == sum(map(len, seen.values())) == 1970
    assert min(map(len, captions.values())) == 21
    assert max(map(len, captions.values())) == 81
    rows = [(i, c) for i, said in captions.items() for c in said]
    owners: dict[str, set[str]] = {}
    for i, c in rows:
        owners.setdefault(c, set()).add(i)
    shared = {c for c, of in owners.items() if len(of) > 1}
    assert (len(shared), sum(c in shared for _, c in rows)) == (961, 4372)
    assert len(rows) - len(set(rows)) == 3730


def test_the_sample_of_webvid(real_annotations: Path) -> None:
    found = webvid([real_annotations / "webvid_sample.csv"])
    assert len(found.captions) == 20
    assert found.names["1053841541"] == "027701_027750/1053841541.mp4"
    assert found.captions["5641526"] == ["Horse grazing - seperated on green screen"]


@pytest.fixture
def five(real_annotations: Path, tmp_path: Path) -> Path:
    """The real videos under their names in MSR-VTT, beside the real annotations: a root of msrvtt1ka."""
    (tmp_path / "videos").mkdir()
    for name, number in NUMBERS.items():
        (tmp_path / "videos" / f"video{number}.mp4").symlink_to(real_annotations.parent / f"clips/msrvtt/{name}.mp4")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").symlink_to(real_annotations / "msrvtt" / "MSRVTT_JSFUSION_test.csv")
    return tmp_path


def test_five_of_a_thousand_are_a_partial_set_with_their_real_captions(five: Path) -> None:
    part = open_set("msrvtt1ka", five).part("test")
    assert part.label == "partial: 5 of 1000 (MSR-VTT 1k-A test)"
    assert len(part.missing) == 995
    said = {s.id: s.captions for s in part.samples}
    assert said["video7348"] == ("a girl is talking about relationships",)
    assert said["video8807"] == ("a couple dancing doing salsa",)


def test_the_real_list_survives_every_other_form(real_annotations: Path, tmp_path: Path) -> None:
    with open(real_annotations / "msrvtt" / "MSRVTT_JSFUSION_test.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "video7348.mp4").symlink_to(real_annotations.parent / "clips/msrvtt/gt_7348.mp4")
    (tmp_path / "test1ka.jsonl").write_text(
        "".join(json.dumps({"clip_id": r["video_id"], "text": r["sentence"]}) + "\n" for r in rows)
    )
    p.dump(tmp_path / "c4c_test_jsfusion.json", [{"vid": r["video_id"], "caption": r["sentence"]} for r in rows])
    p.lines(tmp_path / "test.jsonl", [json.dumps({"clip_name": r["video_id"], "caption": r["sentence"]}) for r in rows])
    for form in ("clip-vip", "mv-adapter", "alpro"):
        part = open_set("msrvtt1ka", tmp_path, form=form).part("test")
        assert part.label == "partial: 1 of 1000 (MSR-VTT 1k-A test)"
        assert part.samples[0].captions == ("a girl is talking about relationships",)


def test_real_videos_go_through_doctor_prepare_and_evaluation(
    five: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["msrvtt1ka", "--root", str(five)]
    assert main(["doctor", *root, "--out", str(tmp_path / "out"), "--model", "shapes-tiny", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    kinds = Counter(f["kind"] for f in report["findings"])
    assert kinds == {"missing": 995}
    assert report["quarantined"] == 0
    assert report["forecast"]["videos"] == 5
    seen = {Path(s.path).stem: s for s in read_log(tmp_path / "out" / "seen.jsonl")}
    frames = {"video7348": 900, "video8807": 420, "video9474": 360, "video7375": 275, "video7732": 675}
    assert {name: s.frames for name, s in seen.items()} == frames
    prepare = ["prepare", *root, "--model", "shapes-tiny", "--cache", str(tmp_path / "cache"), "--json"]
    assert main(prepare) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 5
    assert main(["evaluate", *root, "--model", "shapes-tiny", "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert "note: partial: 5 of 1000 (MSR-VTT 1k-A test): 995 videos are missing" in said.err
    assert result["stamp"]["split"] == "partial: 5 of 1000 (MSR-VTT 1k-A test)"
    assert (result["t2v"]["queries"], result["t2v"]["gallery"], result["skipped"]) == (5, 5, [])
