"""Vocabularies and checkpoints: every naming, strict errors, folders that load again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import clipreel
from clipreel.alpro.retriever import AlproRetriever, load_alpro, read_words, released, save_alpro
from clipreel.alpro.weights import foreign_names, translate_alpro
from clipreel.alpro.wordpiece import SPECIAL, WordPiece
from clipreel.errors import ClipreelError
from tests.alpro.tiny import FACTS, pixels, retriever, tiny, tokenizer


def official(naming: str = "bert.", **changes: int) -> dict[str, torch.Tensor]:
    """The tensors of a released file, with the parts that nothing needs."""
    model = tiny(**changes)
    names = foreign_names(model.config, naming)
    state = released(model.state_dict(), model.config)
    state = {n.replace("text_encoder.bert.", "text_encoder." + naming): t for n, t in state.items()}
    assert set(state) == {t for theirs in names.values() for t in theirs}
    words = f"text_encoder.{naming}embeddings.word_embeddings.weight"
    return state | {
        "text_encoder.cls.predictions.decoder.weight": state[words],
        "text_encoder.cls.predictions.decoder.bias": state["text_encoder.cls.predictions.bias"],
        f"text_encoder.{naming}embeddings.position_ids": torch.arange(20)[None],
        "visual_encoder.model.head.weight": torch.zeros(400, 24),
        "visual_encoder.model.head.bias": torch.zeros(400),
    }


@pytest.mark.parametrize("naming", ["bert.", ""])
def test_released_and_lavis_names_load_as_the_same_model(naming: str) -> None:
    loaded = translate_alpro(official(naming, entities=5, answers=3), FACTS)
    for name, tensor in tiny(entities=5, answers=3).state_dict().items():
        assert torch.equal(loaded.state[name], tensor), name
    assert (loaded.config.entities, loaded.config.answers, loaded.config.words) == (5, 3, True)


def test_a_file_of_lavis_without_a_head_for_words_loads() -> None:
    state = {n: t for n, t in official("").items() if ".cls." not in n}
    assert translate_alpro(state, FACTS).build().mlm is None


def test_a_prompter_inside_is_loaded_beside() -> None:
    inner = {f"prompter.{n}": t for n, t in official().items()}
    inner["prompter.video_prompt_feat"] = torch.zeros(5, 16)
    loaded = translate_alpro(official(entities=5) | inner, FACTS)
    assert loaded.prompter is not None
    assert loaded.prompter.config.entities == 0


def test_every_tensor_is_accounted_for() -> None:
    state = official()
    query = "text_encoder.bert.encoder.layer.1.attention.self.query.weight"
    with pytest.raises(ClipreelError, match=f"missing: {query}"):
        translate_alpro({n: t for n, t in state.items() if n != query}, FACTS)
    with pytest.raises(ClipreelError, match=r"unexpected: visual_encoder.model.extra"):
        translate_alpro(state | {"visual_encoder.model.extra": torch.zeros(1)}, FACTS)
    with pytest.raises(ClipreelError, match=r"mis-shaped: temp is \(1,\), not \(\)"):
        translate_alpro(state | {"temp": torch.ones(1)}, FACTS)
    with pytest.raises(ClipreelError, match=r"should be a copy of text_encoder.cls.predictions.bias"):
        translate_alpro(state | {"text_encoder.cls.predictions.decoder.bias": torch.ones(31)}, FACTS)
    with pytest.raises(ClipreelError, match="width 24 is not in heads of 64; give vision_heads"):
        translate_alpro(state)
    with pytest.raises(ClipreelError, match=r"missing: visual_encoder.model.patch_embed.proj.weight"):
        translate_alpro({"x": torch.ones(1)})


def test_position_tables_follow_the_image_and_the_frames() -> None:
    loaded = translate_alpro(official(), {**FACTS, "image_size": 64, "frames": 8})
    model = loaded.build()
    assert model.video.pos_embed.shape == (1, 65, 24)
    times = tiny().video.time_embed[0]
    assert torch.equal(model.video.time_embed[0], times.repeat_interleave(2, 0))


def test_load_official_takes_a_file_and_never_runs_it(tmp_path: Path) -> None:
    file = tmp_path / "alpro.pt"
    torch.save({"model": official(answers=2)}, file)
    tokenizer().save(tmp_path)
    (tmp_path / "ans2label.json").write_text(json.dumps({"yes": 1, "no": 0}))
    config = {**FACTS, "tokenizer": tmp_path, "answers": tmp_path / "ans2label.json", "context": 12}
    model = clipreel.load_official("alpro-qa", file, config)
    assert isinstance(model, AlproRetriever)
    assert model.answers == ("no", "yes")
    assert model.sampling.kind == "alpro"
    assert model.ask(pixels(1), "what colour is it ?")[0][0] in model.answers
    with pytest.raises(ClipreelError, match="has no answer head"):
        clipreel.load_official("alpro-qa", official(), FACTS)
    import pickle

    file.write_bytes(pickle.dumps({"model": print}, protocol=2))
    with pytest.raises(ClipreelError, match=r"alpro\.pt"):
        clipreel.load_official("alpro-retrieval", file)


def test_a_saved_folder_loads_as_the_same_model(tmp_path: Path) -> None:
    model = retriever(answers=("red", "blue"), entities=("dog", "cat"))
    again = clipreel.load(save_alpro(model, tmp_path / "m"), device="cpu", dtype="float32")
    assert isinstance(again, AlproRetriever)
    assert (again.space, again.answers, again.entities) == (model.space, model.answers, model.entities)
    assert torch.equal(again.encode_video(pixels(2)), model.encode_video(pixels(2)))
    assert torch.equal(again.encode_text(["a red dog"]), model.encode_text(["a red dog"]))
    with pytest.raises(ClipreelError, match="takes no adapter"):
        clipreel.load(tmp_path / "m", adapter=tmp_path)
    with pytest.raises(ClipreelError, match="image_size cannot be given"):
        clipreel.load(tmp_path / "m", image_size=64)
    with pytest.raises(ClipreelError, match="is no ALPRO of clipreel"):
        load_alpro(tmp_path)


# ---------------------------------------------------------------------- words


def test_wordpieces_are_those_of_bert(tmp_path: Path) -> None:
    tokens = [*SPECIAL, "un", "##aff", "##able", "play", "##ing", "!", "cafe", "你"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    words = WordPiece.from_files(tmp_path)

    def said(text: str) -> list[str]:
        return [tokens[i] for i in words.encode(text)]

    assert said("Unaffable PLAYING!") == ["un", "##aff", "##able", "play", "##ing", "!"]
    assert said("café 你play") == ["cafe", "你", "play"]  # accents go, every Chinese sign stands alone
    assert said("strange") == ["[UNK]"]
    assert words(["play"], 5).tolist() == [[2, 8, 3, 0, 0]]
    assert words(["play play play play"], 4).tolist() == [[2, 8, 8, 3]]
    assert words.encode("play [SEP] play", strip_special=True) == [8, 8]
    assert said("\ud800play") != []


def test_saved_words_are_the_same(tmp_path: Path) -> None:
    words = tokenizer()
    words.save(tmp_path)
    again = WordPiece.from_files(tmp_path)
    assert again.fingerprint == words.fingerprint
    assert torch.equal(again(["a red dog"], 8), words(["a red dog"], 8))
    assert WordPiece.of_words(["other words"]).fingerprint != words.fingerprint


def test_wrong_vocabularies_are_told(tmp_path: Path) -> None:
    with pytest.raises(ClipreelError, match="no vocabulary of BERT at"):
        WordPiece.from_files(tmp_path)
    with pytest.raises(ClipreelError, match=r"it has no \[UNK\]"):
        WordPiece.of_vocabulary(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "dog"])
    with pytest.raises(ClipreelError, match=r"its \[PAD\] is not 0"):
        WordPiece.of_vocabulary(["dog", *SPECIAL])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ClipreelError, match=r"no readable tokenizer.json"):
        WordPiece.from_files(tmp_path)
    (tmp_path / "answers.json").write_text('["red", 3]')
    with pytest.raises(ClipreelError, match="something else than a list of words"):
        read_words(tmp_path / "answers.json")
