"""Captions by small random captioners of two kinds: stored, continued, refused, left out; and one that is trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipreel.cli import main
from clipreel.data.captioner import Captioner, caption_videos, spoken
from clipreel.data.captions import read_captions
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.training.shapes_captioner import build, named, tokenizer
from clipreel.training.shapes_captioner import main as train
from clipreel.video.decode import read_frames
from clipreel.video.sampling import Sampling

SIDES = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
QUESTION = "What does the image describe ?"
WORDS = ["a red circle and a blue square", "an orange ring", "a large green star left of a small heart"]


def blip(folder: Path) -> Path:
    """A BLIP that was never trained."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    words = tokenizer(WORDS)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "encoder_hidden_size": 32, "max_position_embeddings": 64, "projection_dim": 16}
    ends = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config=tower | text | ends,
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        initializer_range=1.0,
    )
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[:4] = -100.0  # it writes words, never an end
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words).save_pretrained(folder)
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: bsd-3-clause\n---\n# A card\n")
    return folder


def git(folder: Path) -> Path:
    torch.manual_seed(1)
    model, processor = build(tokenizer(WORDS))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def florence(folder: Path) -> Path:
    """A Florence-2, which has to be asked."""
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(2)
    plain = tokenizer([*WORDS, QUESTION])
    ends = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    words = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, extra_special_tokens={"image_token": "<image>"}, **ends
    )
    four = {"embed_dim": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "num_groups": (1, 2, 2, 2), "depths": (1, 1, 1, 1)}
    layers = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDES.items()}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = {"model_type": "bart", "vocab_size": len(words), "d_model": 16, "max_position_embeddings": 64}
    config = Florence2Config(
        vision_config=four | {"window_size": 2, "projection_dim": 16, "max_position_embeddings": 8},
        text_config=text | layers | ids | {"decoder_start_token_id": 3, "forced_eos_token_id": None},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        **ids,
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.forced_eos_token_id = None
    model.generation_config.suppress_tokens = [0, 1, 2, 3, len(words) - 1]
    model.save_pretrained(folder)
    square = {"height": 64, "width": 64}
    eye = CLIPImageProcessor(size=square, do_center_crop=False, image_seq_length=2 * 2 + 1)
    Florence2Processor(eye, words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return ShapesWorld().write_videos(tmp_path_factory.mktemp("films"), "val", count=5)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner(str(blip(tmp_path_factory.mktemp("blip"))), words=4)


@pytest.mark.parametrize("kind", [blip, git, florence])
def test_a_batch_is_captioned_as_its_images(kind: Any, tmp_path: Path, films: list[Sample]) -> None:
    made = Captioner(str(kind(tmp_path)), words=5)
    images = [read_frames(s.video, Sampling("uniform", 1)).pixels[0].numpy() for s in films[:3]]
    said = made(images)
    assert said == [made([image])[0] for image in images]
    known = {w for c in [*WORDS, QUESTION] for w in c.split()}
    assert all(len(text.split()) <= 5 and set(text.split()) <= known for text in said)
    assert any(said)
    assert made.prompt == ("<CAPTION>" if kind is florence else "")
    assert made.licence == ("bsd-3-clause" if kind is blip else "unknown")


class Told(Captioner):
    """Says what it is told to, of images known by their first grey level."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts, self.name, self.licence, self.words, self.prompt = texts, "told", "mit", 16, ""
        self.weights = "none"
        self.asked: list[int] = []

    def __call__(self, images: Any) -> list[str]:
        self.asked.append(len(images))
        return [self.texts[int(image[0, 0, 0])] for image in images]


def test_what_is_said_of_several_frames_stands_once() -> None:
    stack = np.stack([np.full((2, 2, 3), n, np.uint8) for n in (1, 2, 1, 3)])
    told = Told({1: "a dog", 2: "a cat", 3: ""})
    sample = Sample("s", Path("s.mp4"), ())
    assert spoken(told, [(sample, stack), (sample, stack[:1]), (sample, stack[3:])]) == ["a dog. a cat", "a dog", ""]
    assert told.asked == [6]


def test_a_line_a_video_and_a_run_that_goes_on(captioner: Captioner, films: list[Sample], tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    first = caption_videos(films[:3], captioner, out, batch=2)
    assert (first.made, first.kept) == (3 - len(first.skipped), 0)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0].keys() == {"id", "caption", "model", "weights", "licence", "words", "prompt", "frames"}
    assert (rows[0]["model"], rows[0]["licence"]) == (captioner.name, "bsd-3-clause")
    assert "/" not in captioner.name  # no path of this machine
    whole = out.read_bytes()
    out.write_bytes(whole + b'{"id": "half')  # killed while writing
    second = caption_videos(films, captioner, out, batch=2)
    assert (second.made + len(second.skipped), second.kept) == (5 - first.made, first.made)
    assert out.read_bytes().startswith(whole)
    assert read_captions(out).keys() == {s.id for s in films} - {Path(p).stem for p, _ in second.skipped}
    one_by_one = tmp_path / "one.jsonl"
    caption_videos(films, captioner, one_by_one, batch=1, workers=1)
    assert read_captions(one_by_one) == read_captions(out)
    with pytest.raises(ClipreelError, match="line 1 was made with frames 1 and not 2; name another --out"):
        caption_videos(films, captioner, out, frames=2)
    out.write_text("[1]\n")
    with pytest.raises(ClipreelError, match="is no file of captions"):
        caption_videos(films, captioner, out)


def test_captions_are_gone_on_with_from_another_place_and_from_old_files(films: list[Sample], tmp_path: Path) -> None:
    here = blip(tmp_path / "blip")
    made, out = Captioner(str(here), words=4), tmp_path / "c.jsonl"
    caption_videos(films[:2], made, out)
    shutil.copytree(here, tmp_path / "elsewhere" / "moved")
    moved = Captioner(str(tmp_path / "elsewhere" / "moved"), words=4)
    assert (moved.name, moved.weights) == ("moved", made.weights)
    assert caption_videos(films[:2], moved, out).made == 0
    row = json.loads(out.read_text().splitlines()[0])
    old = {k: v for k, v in row.items() if k != "weights"} | {"model": str(tmp_path / "gone" / "blip")}
    out.write_text(json.dumps(old) + "\n")
    assert caption_videos(films[:1], made, out).kept == 1
    with pytest.raises(ClipreelError, match="line 1 was made with model 'blip' and not 'moved'"):
        caption_videos(films[:1], moved, out)
    with torch.no_grad():
        next(made.model.parameters()).add_(1)
    made.model.save_pretrained(here)
    other = Captioner(str(here), words=4)
    out.write_text(json.dumps(row) + "\n")
    with pytest.raises(ClipreelError, match=f"made with weights '{made.weights}' and not '{other.weights}'"):
        caption_videos(films[:1], other, out)


def test_the_middle_frame_is_captioned(films: list[Sample], tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    class Looks(Told):
        def __call__(self, images: Any) -> list[str]:
            seen.extend(images)
            return ["something"] * len(images)

    assert caption_videos(films[:1], Looks({}), tmp_path / "c.jsonl").made == 1
    every = read_frames(films[0].video, Sampling("middles", 24)).pixels
    assert np.array_equal(seen[0], every[12])


def test_videos_without_a_caption_are_named(films: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    samples = [Sample("broken", broken, ()), *films[:2]]
    level = int(read_frames(films[0].video, Sampling("uniform", 1)).pixels[0, 0, 0, 0])
    told = Told({level: "", **{n: "a thing" for n in range(256) if n != level}})
    found = caption_videos(samples, told, tmp_path / "c.jsonl")
    assert (str(broken), "not-video") in found.skipped
    assert (str(films[0].video), "the captioner says nothing") in found.skipped
    assert found.made == 3 - len(found.skipped)
    assert caption_videos([samples[0]], told, tmp_path / "d.jsonl").skipped == [(str(broken), "not-video")]


def test_captioners_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ClipreelError, match=r"cannot be loaded as an image captioner .*--download"):
        Captioner("nobody/no-such-captioner")
    with pytest.raises(ClipreelError, match="there is no folder"):
        Captioner(str(tmp_path / "none"))
    with pytest.raises(ClipreelError, match="cannot be loaded as an image captioner"):
        Captioner("clipreel/models/shapes-tiny/" if Path("clipreel/models").is_dir() else str(tmp_path))
    with pytest.raises(ClipreelError, match="words 0: give at least 1"):
        Captioner(str(tmp_path), words=0)
    (tmp_path / "README.md").write_text("no front matter")
    for name in ("frames", "batch", "workers"):
        with pytest.raises(ClipreelError, match="give at least 1"):
            caption_videos([], Told({}), tmp_path / "c.jsonl", **{name: 0})


def test_the_trained_captioner_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "captioner"
    train(["--out", str(folder), "--steps", "2", "--asked", "4", "--threads", "1"])
    losses = [json.loads(line)["loss"] for line in (folder / "training.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert json.loads((folder / "measured.json").read_text())["steps"] == 2
    ShapesWorld().write_videos(tmp_path / "films", "val", count=2)
    (tmp_path / "films" / "annotations.jsonl").unlink()  # a folder of videos alone
    capsys.readouterr()
    out = tmp_path / "c.jsonl"
    command = ["caption", str(tmp_path / "films"), "--model", str(folder), "--out", str(out), "--device", "cpu"]
    code = main([*command, "--json", "--words", "3"])
    said = json.loads(capsys.readouterr().out)
    assert said["licence"] == "apache-2.0"
    assert said["made"] + len(said["skipped"]) == 2
    assert code == (0 if said["made"] == 2 else 1 if said["made"] else 2)
    assert all(len(c.split()) <= 3 for c in (read_captions(out) if said["made"] else {}).values())
    (tmp_path / "empty").mkdir()
    assert main(["caption", str(tmp_path / "empty"), "--model", str(folder), "--out", str(out)]) == 2
    assert "holds neither annotations nor videos" in capsys.readouterr().err
    assert named("a large red circle and an orange ring") == ["circle", "orange", "red", "ring"]
