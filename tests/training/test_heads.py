"""Training a head with the loop: over a frozen CLIP, with a tuner, in micro-batches."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipreel.clip import Clip
from clipreel.heads import HEADS, build_head
from clipreel.sites import Tuner
from clipreel.training.engine import fit
from clipreel.training.microbatch import Passes, gradients
from clipreel.training.recipe import HeadRecipe, RetrievalRecipe
from clipreel.video.transforms import Preprocess
from tests.training.tiny import CONFIG, Memory, Sides, tiny_config, weights

TRAINED = [n for n in HEADS if n not in ("mean", "top_frames", "soft_frames")]


def recipe_of(name: str, tuner: Tuner | None = None, **options: object) -> HeadRecipe:
    torch.manual_seed(0)
    clip, tuner = Clip(CONFIG), tuner or Tuner()
    head = build_head(name, clip)
    return HeadRecipe(clip, tuner, Preprocess(size=16), head, **options)


def test_the_mean_as_a_head_is_the_plain_recipe() -> None:
    torch.manual_seed(1)
    tuner = Sides()
    recipe, batch = recipe_of("mean", tuner), Memory().batch(0)
    plain = RetrievalRecipe(recipe.clip, tuner, Preprocess(size=16))
    (ours, report), (theirs, wanted) = recipe(batch), plain(batch)
    torch.testing.assert_close(ours["contrastive"], theirs["contrastive"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(report["in_batch_R@1"], wanted["in_batch_R@1"])


@pytest.mark.parametrize("name", TRAINED)
def test_a_head_learns_pairs_by_heart(name: str) -> None:
    recipe, g = recipe_of(name), torch.Generator().manual_seed(0)
    recipe.train(False)
    features = {"frames": torch.randn(7, 2, 24, generator=g), "text": torch.randn(7, 24, generator=g)}
    optimiser = torch.optim.AdamW(recipe.trained().values(), lr=3e-3)
    found = []
    for _ in range(60):
        losses, report = recipe.losses(features, torch.arange(7))
        optimiser.zero_grad()
        losses["contrastive"].backward()
        optimiser.step()
        found.append(losses["contrastive"].item())
    assert found[-1] < 0.5 * found[0]
    assert report["in_batch_R@1"] > 80


def test_the_loop_trains_the_head_and_leaves_clip_alone(tmp_path: Path) -> None:
    recipe = recipe_of("seq_transf")
    before, clip = weights(recipe), [p.clone() for p in recipe.clip.parameters()]
    assert set(before) == {f"head.{n}" for n, _ in recipe.head.named_parameters()}
    fit(recipe, Memory(), tiny_config(), tmp_path)
    after = weights(recipe)
    assert not any(torch.equal(before[n], p) for n, p in after.items())
    assert all(torch.equal(a, b) for a, b in zip(clip, recipe.clip.parameters(), strict=True))


@pytest.mark.parametrize("name", ["seq_transf", "x_pool"])
def test_micro_batches_give_the_gradient_of_the_whole(name: str) -> None:
    batch, found = Memory().batch(3), []
    for rows in (7, 2):
        recipe = recipe_of(name, Sides(0.2), train_scale=True)
        recipe.train(True)  # the tuner drops by row, X-Pool's head in the loss of all rows
        with torch.no_grad():
            for p in recipe.tuner.parameters():
                p.fill_(0.02)
        params = recipe.trained()
        passes = Passes(list(params.values()), torch.device("cpu"), rows, nullcontext)
        losses, _ = gradients(recipe, batch, 0, passes)
        found.append((losses["contrastive"], {n: p.grad for n, p in params.items()}))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
    assert {"logit_scale"} < set(found[0][1])
    assert any(n.startswith("sides.") and g.any() for n, g in found[0][1].items())


def test_a_mask_reaches_the_head() -> None:
    recipe, batch = recipe_of("seq_transf"), Memory().batch(0)
    batch.frames[0, 1] = 255
    mask = torch.ones(batch.frames.shape[:2], dtype=torch.bool)
    mask[0, 1] = False
    masked = replace(batch, frame_mask=mask)
    first = recipe(masked)[0]["contrastive"]
    masked.frames[0, 1] = 0
    torch.testing.assert_close(recipe(masked)[0]["contrastive"], first)
    assert not torch.allclose(recipe(batch)[0]["contrastive"], first)
