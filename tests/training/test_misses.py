"""Answers that were judged wrong: one more candidate of their text, exactly, however the rows are spread."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipreel.clip import Clip
from clipreel.data.misses import read_misses
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.heads import build_head, unit
from clipreel.losses import contrastive, paired
from clipreel.training.batches import WRONG, Augment, Loader
from clipreel.training.checkpoint import read_whole
from clipreel.training.engine import fit
from clipreel.training.microbatch import Passes, gradients
from clipreel.training.order import Order
from clipreel.training.pairs import DataConfig, read_pairs
from clipreel.training.recipe import HeadRecipe
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess
from tests.training.test_batches import equal, joined
from tests.training.tiny import CONFIG, Memory, Sides, tiny_config, tiny_recipe, weights
from tests.training.worker import run


def silent(text: str) -> None:
    pass


# ------------------------------------------------------------------ the loss

SCALE = 5.0


def features(rows: int, of: list[int] | None = None) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Unit vectors, and what they are made of; the last texts are those of the rows `of`."""
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(rows, 24, generator=g).requires_grad_() for _ in range(2)]
    texts = [*range(rows - len(of or [])), *(of or [])]
    return {"video": unit(made[0]), "text": unit(made[1])[texts]}, made


def by_hand(found: dict[str, torch.Tensor], groups: torch.Tensor, of: list[int], scale: float) -> torch.Tensor:
    """The definition: a column for each wrong video, which only its own text sees."""
    n = len(groups) - len(of)
    z = scale * found["text"][:n] @ found["video"].T
    for column, row in enumerate(of, n):
        others = torch.arange(n) != row
        z = z.index_put((torch.arange(n)[others], torch.tensor(column)), torch.tensor(-1e9))
    right = (groups[:n, None] == groups).float()
    to_video = -(right / right.sum(1, keepdim=True) * z.log_softmax(1)).sum(1).mean()
    return (to_video + F.cross_entropy(z[:, :n].T, right[:, :n] / right[:, :n].sum(1, keepdim=True))) / 2


@pytest.mark.parametrize(("loss", "times"), [("contrastive", 1), ("v-s", 2)])
def test_a_wrong_video_is_one_more_column_of_its_text_alone(loss: str, times: int) -> None:
    recipe = tiny_recipe(loss=loss)
    with torch.no_grad():
        recipe.log_scale.fill_(SCALE).log_()
    groups, of = torch.tensor([0, 1, 1, 2, WRONG, WRONG]), [3, 1]
    (ours, leaves), (theirs, others) = features(6, of), features(6, of)
    found, wanted = recipe.losses(ours, groups)[0][loss], times * by_hand(theirs, groups, of, SCALE)
    torch.testing.assert_close(found, wanted)
    grads = torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, others)
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


def test_without_wrong_answers_losses_and_gradients_are_bit_for_bit_the_former() -> None:
    recipe, groups = tiny_recipe(), torch.tensor([0, 1, 1, 2])
    (ours, leaves), (theirs, others) = features(4), features(4)
    found = recipe.losses(ours, groups)[0]["contrastive"]
    wanted = contrastive(theirs["text"], theirs["video"], recipe.log_scale.exp(), groups)
    grads = torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, others)
    assert torch.equal(found, wanted)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_head_scores_the_wrong_video_with_its_text() -> None:
    torch.manual_seed(0)
    clip = Clip(CONFIG)
    for name in ("x_pool", "tight_transf"):
        recipe = HeadRecipe(clip, Sides(), Preprocess(size=16), build_head(name, clip))
        recipe.train(False)
        g = torch.Generator().manual_seed(0)
        found = {"frames": torch.randn(5, 2, 24, generator=g), "text": torch.randn(5, 24, generator=g)}
        found["text"][4] = found["text"][1]
        groups = torch.tensor([0, 1, 2, 3, WRONG])
        scores = recipe.head(found["text"], found["frames"])
        z = recipe.log_scale.exp() * scores if recipe.head.cosine else scores
        plain = paired(z[:4, :4])
        more = (z[1].logsumexp(0) - z[1, :4].logsumexp(0)) / 8
        torch.testing.assert_close(recipe.losses(found, groups)[0]["contrastive"], plain + more)
        own = {n: x[:4] for n, x in found.items()}
        assert torch.equal(recipe.losses(own, groups[:4])[0]["contrastive"], plain)


def test_losses_without_a_place_for_them_say_so() -> None:
    with pytest.raises(ClipreelError, match=r"'triplet' has no place for answers .* take contrastive or v-s"):
        tiny_recipe(loss="triplet").losses(features(3)[0], torch.tensor([0, 1, WRONG]))


# ------------------------------------------------------------------ the loop


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    batch, found = Memory(misses=True).batch(0), []
    assert batch.groups.tolist() == [1, 1, 2, 3, 4, WRONG, WRONG]
    for rows in (7, 2):  # pieces with pairs, with both, and with wrong rows alone
        recipe = tiny_recipe()
        params = recipe.trained()
        losses, _ = gradients(recipe, batch, 0, Passes(list(params.values()), torch.device("cpu"), rows, nullcontext))
        found.append((losses["contrastive"], {n: p.grad for n, p in params.items()}))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
    assert all(g.any() for n, g in found[0][1].items() if "up" in n)
    plain = tiny_recipe()
    own = plain(batch.rows(0, 5))[0]["contrastive"]
    assert found[0][0] > own


@pytest.mark.parametrize(("size", "micro"), [(2, "auto"), (3, 2)])
def test_several_processes_give_the_numbers_of_one(tmp_path: Path, size: int, micro: int | str) -> None:
    sizes = (7, 5, 2)
    fit(tiny_recipe(), Memory(sizes, misses=True), tiny_config(), tmp_path / "one", say=silent)
    wanted = read_whole(tmp_path / "one" / "last.safetensors")[0]
    runs = run(size, tmp_path / "many", sizes=sizes, misses=True, config={"micro_batch": micro})
    assert [code for code, _ in runs] == [0] * size, runs
    found = read_whole(tmp_path / "many" / "last.safetensors")[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    fit(tiny_recipe(), Memory(sizes), tiny_config(), tmp_path / "other", say=silent)
    other = read_whole(tmp_path / "other" / "last.safetensors")[0]
    assert not all(torch.allclose(other[n], x, atol=1e-4) for n, x in wanted.items())


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    config = tiny_config(micro_batch=3)
    wanted, recipe = tiny_recipe(0.3), tiny_recipe(0.3)
    fit(wanted, Memory(misses=True), config, tmp_path / "whole", say=silent)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_recipe(0.3), Memory(hook=stop, misses=True), config, tmp_path / "run", say=silent)
    assert fit(recipe, Memory(misses=True), config, tmp_path / "run", say=silent).resumed_from == 2
    assert all(torch.equal(p, weights(wanted)[n]) for n, p in weights(recipe).items())


# ------------------------------------------------------------------ the batches

TEXTS = [Sample(f"s{n}", Path(f"{n}.mp4"), (f"{n} 0", f"{n} 1")) for n in range(6)]
MISSES = {
    "0 0": [Sample("w0", Path("w.mp4"), (), 0.0, 1.0), Sample("s3", Path("3.mp4"), ())],
    "2 1": [Sample("w1", Path("w.mp4"), (), 1.0, 2.0)],
    "9 9": [Sample("none", Path("none.mp4"), ())],  # nothing is trained on with this text
}
STORED = {id: np.full((3, 3, 8, 8), n, np.uint8) for n, id in enumerate([*(s.id for s in TEXTS), "w0", "w1"])}


def words(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[int(w) for w in t.split()] for t in texts])


def loader(misses: dict[str, list[Sample]] | None, **options: object) -> Loader:
    options = {"sampling": Sampling("tsn_random_index", 2), "augment": Augment((0.3, 1.0), flip=0.5), **options}
    return Loader(Order(TEXTS, "pairs", batch=5, seed=1), STORED, words, misses=misses, **options)


def test_a_wrong_moment_stands_behind_the_pairs_whenever_its_text_is_trained_on() -> None:
    made, plain, seen = loader(MISSES), loader(None), set()
    for step in range(30):
        whole, without = made.batch(step), plain.batch(step)
        n = len(without)
        assert equal(whole.rows(0, n), without)  # pairs and their random numbers are the same
        assert len(whole) == made.batch_rows(step)
        asked = [tuple(i) for i in without.ids.tolist()]
        assert [tuple(i) for i in whole.ids[n:].tolist()] == [a for a in asked if a in ((0, 0), (2, 1))]
        assert set(whole.groups[n:].tolist()) <= {WRONG}
        for row, (ids, name) in enumerate(zip(whole.ids[n:].tolist(), whole.names[n:], strict=True), n):
            assert name in {m.id for m in MISSES[f"{ids[0]} {ids[1]}"]}
            assert (whole.frames[row] == int(STORED[name][0, 0, 0, 0])).all()
            seen.add(name)
    assert seen == {"w0", "s3", "w1"}


def test_processes_share_the_rows_and_every_step_is_what_it_was() -> None:
    alone, again = loader(MISSES), loader(MISSES)
    for step in (4, 0, 2, 1):
        parts = [loader(MISSES, rank=r, world=3).batch(step) for r in range(3)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert equal(joined(parts), alone.batch(step))
        assert equal(again.batch(step), alone.batch(step))


def test_misses_without_frames_are_named() -> None:
    with pytest.raises(ClipreelError, match="the first: 'gone'"):
        loader({"0 0": [Sample("gone", Path("gone.mp4"), ())]})


# ------------------------------------------------------------------ the file


def written(folder: Path, *rows: dict) -> Path:
    for row in rows:
        for part in (row, *[x for x in row.get("not") or [] if isinstance(x, dict)]):
            if isinstance(part.get("video"), str) and "gone" not in part["video"]:
                (folder / part["video"]).touch()
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_parts_that_a_caption_does_not_describe(tmp_path: Path) -> None:
    wrong = [{"video": "b.mp4", "start": 1, "end": 2}, {"video": "c.mp4"}]
    file = written(
        tmp_path,
        {"video": "a.mp4", "captions": ["a dog", "a cat"], "not": wrong[:1]},
        {"video": "b.mp4", "start": 1, "end": 2, "id": "mine", "caption": "a bird"},
        {"video": "d.mp4", "caption": "a dog", "not": wrong},
    )
    found = read_misses(file, read_samples(file))
    assert {t: [m.id for m in moments] for t, moments in found.items()} == {"a dog": ["mine", "c"], "a cat": ["mine"]}
    assert found["a dog"][0] == Sample("mine", tmp_path / "b.mp4", (), 1.0, 2.0)
    (tmp_path / "pairs.csv").write_text(
        'video,caption,not\na.mp4,a dog,"[{""video"": ""c.mp4"", ""end"": 3}]"\nb.mp4,a bird,\n'
    )
    found = read_misses(tmp_path / "pairs.csv", read_samples(tmp_path / "pairs.csv"))
    assert [m.id for m in found.pop("a dog")] == ["c@0-3"]
    assert not found


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([{"video": "a.mp4", "start": 1, "end": 2}], "line 2, 'not' 1: 'a@1-2' is an answer to 'a dog' and none"),
        ([{"video": "gone.mp4"}], "line 2, 'not' 1: there is no video"),
        ([{"video": "c.mp4"}, {"start": 2}], "line 2, 'not' 2: there is no 'video'"),
        ([{"video": "b.mp4", "start": 3, "end": 2}], "'not' 1: end 2 is not after start 3"),
        ("b.mp4", "line 2: not ['b.mp4'] is no list of parts"),
        ({"video": "b.mp4"}, "line 2: not {'video': 'b.mp4'} is no list of parts"),
        ([{"video": "taken.mp4"}], "'not' 1: the id 'taken' of this part is taken by another one"),
    ],
)
def test_bad_ones_are_one_line(tmp_path: Path, wrong: object, said: str) -> None:
    first = {"video": "a.mp4", "start": 1, "end": 2, "caption": "a dog"}
    file = written(tmp_path, first, {"video": "b.mp4", "id": "taken", "caption": "a dog", "not": wrong})
    samples = read_samples(file)
    with pytest.raises(ClipreelError) as e:
        read_misses(file, samples)
    assert said in str(e.value)


def test_no_video_is_carried_from_one_part_into_another(tmp_path: Path) -> None:
    rows = [{"video": f"{n}.mp4", "caption": f"text {n}"} for n in range(60)]
    for n, row in enumerate(rows):
        row["not"] = [{"video": f"{(n + 1) % 60}.mp4"}, {"video": f"other{n}.mp4", "start": 0, "end": 1}]
    file = written(tmp_path, *rows)
    pairs = read_pairs(DataConfig(path=str(file)), tmp_path)
    parts = [{s.video for s in p} for p in (pairs.train, pairs.validation, pairs.held_out)]
    known = parts[0] | parts[1] | parts[2]
    used: list[set[Path]] = []
    for part, misses in ((pairs.train, pairs.misses.trained), (pairs.held_out, pairs.misses.held_out)):
        own = {s.video for s in part}
        assert set(misses) <= {c for s in part for c in s.captions}
        used.append({m.video for moments in misses.values() for m in moments})
        assert used[-1] & known <= own
        assert used[-1] - known  # videos that no caption describes are drawn by name
    assert not used[0] & used[1]
    assert pairs.misses.marked == 120
    assert 0 < sum(map(len, pairs.misses.trained.values())) < 120
