"""ALPRO's stages on the training loop: what they train, that they learn, exact micro-batches and resume, quirks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clipreel.alpro.prompter import Prompter
from clipreel.errors import ClipreelError
from clipreel.training.alpro import STAGES, AlproRecipe, QaRecipe
from clipreel.training.batches import Batch
from clipreel.training.checkpoint import read_whole
from clipreel.training.distributed import world
from clipreel.training.engine import fit
from clipreel.training.log import read_log
from clipreel.training.microbatch import Passes, gradients
from clipreel.training.mixed import Mixed
from clipreel.training.recipe import Recipe
from clipreel.video.transforms import Preprocess
from tests.alpro.tiny import SIZE, tiny, tokenizer
from tests.training import worker
from tests.training.tiny import Memory, tiny_config

ENTITIES = ("dog", "cat", "circle")
CAPTIONS = ["a red dog moves left", "a blue cat moves right", "a red circle", "a blue square moves", "the dog"]
FRAMES = 2


def batch(rows: int = 5, step: int = 0) -> Batch:
    g = torch.Generator().manual_seed(step)
    frames = torch.randint(0, 256, (rows, FRAMES, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    frames[-1] = frames[-1, :1]  # an image
    ids = tokenizer()([CAPTIONS[i % len(CAPTIONS)] for i in range(rows)], 10)
    return Batch(frames, ids, torch.arange(rows), tuple(f"q{i}" for i in range(rows)))


class Batches(Memory):
    """The same few rows in every step, so that they can be learned."""

    def batch(self, step: int) -> Any:
        self.hook(step)
        return batch(self.batch_rows(step))


class Shared(Batches):
    """The same, split evenly over the processes."""

    def batch(self, step: int) -> Any:
        whole, here = super().batch(step), world()
        share = -(-len(whole) // here.size)
        return whole.rows(here.rank * share, min((here.rank + 1) * share, len(whole)))


def stage(name: str, **options: Any) -> AlproRecipe:
    entities = len(ENTITIES) if name == "pretrain" else 0
    changes = {k: options.pop(k) for k in ("dropout", "drop_path") if k in options}
    prompter = Prompter(tiny(7), tokenizer(), ENTITIES) if entities else None
    model = tiny(entities=entities, **changes)
    return AlproRecipe(
        model, Preprocess(SIZE), tokenizer(), STAGES[name], **{"prompter": prompter, "keep": "released", **options}
    )


def qa(**options: Any) -> QaRecipe:
    labels = {f"q{i}": i for i in range(4)}  # the answer of q4 is outside the vocabulary
    changes = {k: options.pop(k) for k in ("dropout", "drop_path") if k in options}
    return QaRecipe(tiny(answers=4, **changes), Preprocess(SIZE), labels, **options)


def recipe_of(name: str, **options: Any) -> Recipe:
    return qa(**options) if name == "qa" else stage(name, **options)


@pytest.mark.parametrize("name", [*STAGES, "qa"])
def test_gradients_reach_exactly_what_is_trained(name: str) -> None:
    recipe = recipe_of(name)
    losses, _ = recipe(batch())
    assert set(losses) == ({"answers"} if name == "qa" else set(STAGES[name]))
    sum(losses.values()).backward()
    reached = {n for n, p in recipe.model.named_parameters() if p.grad is not None}
    assert reached == set(recipe.trained())


@pytest.mark.parametrize("name", [*STAGES, "qa"])
def test_a_few_rows_are_learned(name: str, tmp_path: Path) -> None:
    recipe, losses = recipe_of(name), []
    config = tiny_config(steps=25, checkpoint_every=25)
    outcome = fit(recipe, Batches((5,)), config, tmp_path, say=lambda text: None)
    log = (outcome.folder / "log.jsonl").read_text().splitlines()
    import json

    losses = [row["loss"] for row in map(json.loads, log) if "loss" in row]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


@pytest.mark.parametrize("name", [*STAGES, "qa"])
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str, recompute: bool) -> None:
    """With dropout, drop path, hidden words and crops; those of a row are its own."""
    found = []
    for micro in (2, 5):
        recipe = recipe_of(name, dropout=0.1, drop_path=0.2)
        recipe.train(True)
        if recompute:
            recipe.recompute()
        params = recipe.trained()
        passes = Passes(list(params.values()), torch.device("cpu"), micro, lambda: torch.autocast("cpu", enabled=False))
        losses, _ = gradients(recipe, batch(), 3, passes)
        found.append((losses, {n: p.grad for n, p in params.items()}))
    for n, loss in found[0][0].items():
        torch.testing.assert_close(loss, found[1][0][n], atol=1e-6, rtol=1e-5)
    for n, grad in found[0][1].items():
        torch.testing.assert_close(grad, found[1][1][n], atol=1e-6, rtol=1e-3, msg=n)


def test_micro_batches_draw_the_same_words_and_crops_in_both_passes() -> None:
    """With dropout, masks and crops: the second pass must be the first again, or the gradient is of another loss."""
    recipe = stage("pretrain", dropout=0.1, drop_path=0.2)
    recipe.train(True)
    params = recipe.trained()
    passes = Passes(list(params.values()), torch.device("cpu"), 2, lambda: torch.autocast("cpu", enabled=False))
    first, again = (passes.encode(recipe, batch().rows(0, 2), 3) for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    other = passes.encode(recipe, batch().rows(0, 2), 4)
    assert not torch.equal(first["word_losses"], other["word_losses"])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = stage("pretrain", dropout=0.1), stage("pretrain", dropout=0.1)
    config = tiny_config(steps=6, checkpoint_every=3)
    fit(whole, Batches((5,)), config, tmp_path / "a", say=lambda text: None)

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cut, Batches((5,), stop), config, tmp_path / "b", say=lambda text: None)
    fresh = stage("pretrain", dropout=0.1)
    outcome = fit(fresh, Batches((5,)), config, tmp_path / "b", say=lambda text: None)
    assert outcome.resumed_from == 3
    for n, p in whole.trained().items():
        assert torch.equal(p, fresh.trained()[n]), n


def test_nothing_kept_costs_nothing() -> None:
    recipe = stage("pretrain", keep="confidence")
    assert recipe.prompter is not None
    recipe.prompter.get_buffer("video").zero_()  # every entity equally likely: 1/3 is sure enough, so make it 1/6
    recipe.prompter.get_buffer("image").zero_()
    sure, report = recipe(batch())
    assert report["kept"] == 1
    assert sure["pem"] > 0
    features = recipe.encode(batch()) | {"kept": torch.zeros(5)}
    losses, report = recipe.losses(features, torch.arange(5))
    assert losses["pem"] == 0
    assert report["kept"] == 0
    assert torch.isfinite(sum(losses.values()))


def test_how_sure_the_prompter_must_be_is_an_option() -> None:
    for least, share in ((0.0, 1.0), (0.999, 0.0)):
        recipe = stage("pretrain", keep="confidence", keep_least=least)
        assert recipe(batch())[1]["kept"] == share


def test_images_get_the_prompts_for_images() -> None:
    recipe = stage("pretrain")
    assert recipe.prompter is not None
    seen: list[torch.Tensor] = []
    forward = recipe.prompter.forward
    recipe.prompter.forward = lambda crops, is_image, mask: seen.append(is_image) or forward(crops, is_image, mask)
    recipe.encode(batch())
    assert seen[0].tolist() == [False, False, False, False, True]


def test_captions_of_one_video_are_no_negatives_of_each_other() -> None:
    features = stage("retrieval").encode(batch())
    groups = torch.tensor([0, 0, 1, 1, 1])
    chosen: list[torch.Tensor] = []
    for same_video in ("right", "wrong"):
        recipe = stage("retrieval", same_video=same_video)
        pairs = []
        for seed in range(20):
            torch.manual_seed(seed)
            match = recipe.model.match

            def watch(text, mask, video, match=match, pairs=pairs):  # which video meets which text
                pairs.append(torch.cdist(video[:, 0], features["video_tokens"][:, 0]).argmin(1))
                return match(text, mask, video)

            recipe.model.match = watch
            recipe.losses(features, groups)
            recipe.model.match = match
        chosen.append(torch.stack(pairs)[:, :5])
    assert (groups[chosen[0]] != groups).all()
    assert (groups[chosen[1]] == groups).any()


def test_a_batch_of_one_video_has_no_negatives() -> None:
    recipe = stage("retrieval")
    losses, _ = recipe(Batch(batch().frames, batch().ids, torch.zeros(5, dtype=torch.long), batch().names))
    assert torch.isfinite(losses["vtm"])


@pytest.mark.parametrize("micro", ["auto", 2])
def test_two_processes_give_the_numbers_of_one_and_share_the_negative_pairs(tmp_path: Path, micro: int | str) -> None:
    """With dropout. Of 5 rows: 10 negative pairs, 5 on each process; the last step has one row, and no pair."""
    sizes, options = [5, 4, 1], {"dropout": 0.1, "drop_path": 0.2}
    recipe = stage("retrieval", **options)
    fit(recipe, Shared(tuple(sizes)), tiny_config(), tmp_path / "one", say=lambda text: None)
    settings = {"stage": "retrieval", "options": options, "sizes": sizes, "micro_batch": micro}
    runs = worker.run(2, tmp_path / "two", alpro=settings)
    assert [code for code, _ in runs] == [0, 0], runs
    for _, said in runs:
        assert "judged [5, 4, 0, 5, 4, 0]" in said
    found = read_whole(tmp_path / "two" / "last.safetensors")[0]
    for name, p in recipe.trained().items():
        torch.testing.assert_close(found[name], p.detach(), atol=1e-5, rtol=1e-4, msg=name)
    one, two = ([row["loss"] for row in read_log(tmp_path / n) if row["kind"] == "train"] for n in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-5)


def test_the_released_quirk_freezes_attention_and_mlp() -> None:
    free, frozen = qa(), qa(frozen_attention=True)
    held = set(free.trained()) - set(frozen.trained())
    assert held
    assert all(n.startswith("video.blocks.") for n in held)
    assert {n.split(".")[3] for n in held} == {"attn", "temporal_attn", "mlp"}


def test_an_answer_outside_the_vocabulary_is_not_trained_on() -> None:
    recipe = qa()
    losses, report = recipe(batch())
    without, _ = recipe(batch().rows(0, 4))
    torch.testing.assert_close(losses["answers"], without["answers"])
    assert report["accuracy"] <= 80


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keep": "often"}, "keep rule 'often': allowed are confidence, released"),
        ({"same_video": "maybe"}, "allowed are right, wrong"),
        ({"terms": ("vtc", "xyz")}, "losses .'xyz'.: allowed are vtc, vtm, mlm, pem"),
        ({"terms": ("pem",)}, "needs a prompter"),
    ],
)
def test_wrong_settings_are_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ClipreelError, match=said):
        AlproRecipe(tiny(), Preprocess(SIZE), tokenizer(), **change)
    with pytest.raises(ClipreelError, match="class 9 of 4 answers"):
        QaRecipe(tiny(answers=4), Preprocess(SIZE), {"q0": 9})


def test_mixed_data_takes_one_source_a_step_and_all_of_each() -> None:
    class Numbers(Memory):
        def __init__(self, name: str) -> None:
            super().__init__((3,))
            self.name = name

        def batch(self, step: int) -> Any:
            return self.name, step

    mixed = Mixed([Numbers("videos"), Numbers("images")], seed=3)
    got = [mixed.batch(step) for step in range(3000)]
    videos = [step for name, step in got if name == "videos"]
    assert videos == list(range(len(videos)))
    assert [s for n, s in got if n == "images"] == list(range(3000 - len(videos)))
    assert 1400 < len(videos) < 1600
    assert Mixed([Numbers("videos"), Numbers("images")], seed=3).batch(2900) == got[2900]
    assert [b for _, b, _ in mixed.stream(10, 15)] == got[10:15]
