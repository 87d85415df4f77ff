"""Every loss on a case by hand and by a property; the released ones with gradients are parity fixtures."""

import math

import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.losses import (
    FOUR,
    RELEASED,
    TWO,
    contrastive,
    dual_softmax,
    four_named,
    hard_negatives,
    mil_nce,
    pairs,
    triplet,
    two_named,
    two_texts,
)

EYE = torch.eye(3)
# the loss of a row with one right answer at 1 and two wrong ones at 0
ROW = math.log(math.e + 2) - 1


def rows(n: int = 4, seed: int = 0) -> torch.Tensor:
    return unit(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)))


def test_three_by_three_by_hand() -> None:
    assert pairs(EYE, EYE, 1.0).item() == pytest.approx(2 * ROW)
    assert contrastive(5 * EYE, EYE, 1.0).item() == pytest.approx(ROW)
    # both sources give two wrong texts to each video: four at 0
    assert two_texts(EYE, EYE, EYE, 1.0).item() == pytest.approx(2 * (math.log(math.e + 4) - 1) + 2 * ROW)
    p = math.e / (math.e + 2)
    assert dual_softmax(EYE, EYE, 1.0).item() == pytest.approx(2 * (math.log(math.exp(p) + 2) - p))
    assert hard_negatives(EYE, EYE, 1).item() == pytest.approx(2 * (math.log(math.e + 1) - 1))
    assert hard_negatives(EYE, EYE, 9).item() == pytest.approx(2 * ROW)
    # K = 1: a row and a column share the right pair
    assert mil_nce(EYE, EYE[:, None], 1.0).item() == pytest.approx(math.log(math.e + 4) - 1)
    assert triplet(EYE, EYE, 1.5).item() == pytest.approx(12 * 0.5)
    assert triplet(EYE, EYE, 1.5, hardest=True).item() == pytest.approx(6 * 0.5)
    assert triplet(EYE, EYE, 1.5, "order").item() == pytest.approx(12 * 0.5)
    assert triplet(EYE, EYE, 0.5).item() == 0


def test_shared_targets_of_one_video() -> None:
    text, video = rows(), rows(seed=1)
    alone = pairs(text, video, 10.0)
    torch.testing.assert_close(pairs(text, video, 10.0, torch.arange(4)), alone)
    # two captions of one video, which meet the same video twice: both answers are equally right
    twice = pairs(EYE, torch.stack([EYE[0], EYE[0], EYE[1]]), 1.0, torch.tensor([0, 0, 1]))
    to_video = (math.log(2 * math.e + 1) - 1 + math.log(math.e + 2) + math.log(3)) / 3
    to_text = (2 * (math.log(math.e + 2) - 0.5) + math.log(math.e + 2)) / 3
    assert twice.item() == pytest.approx(to_video + to_text, rel=1e-5)


def test_two_texts_leave_the_other_text_of_a_video_alone() -> None:
    """Moving a video's caption towards the video changes nothing for its subtitle."""
    video, subtitle, caption = rows(), rows(seed=1), rows(seed=2)

    def subtitle_part(c: torch.Tensor) -> torch.Tensor:
        a, g = 10 * video @ subtitle.T, 10 * video @ c.T
        total = a[0].exp().sum() + g[0, 1:].exp().sum()
        return total.log() - a[0, 0]

    closer = caption.clone()
    closer[0] = video[0]
    torch.testing.assert_close(subtitle_part(caption), subtitle_part(closer))
    by_hand = sum(
        (10 * video[i] @ subtitle.T).exp().sum().add((10 * video[i] @ caption.T).exp().sum()).sub(o.exp()).log() - r
        for i in range(4)
        for o, r in (
            (10 * video[i] @ caption[i], 10 * video[i] @ subtitle[i]),
            (10 * video[i] @ subtitle[i], 10 * video[i] @ caption[i]),
        )
    )
    target = torch.arange(4)
    back = sum(torch.nn.functional.cross_entropy(10 * t @ video.T, target) for t in (subtitle, caption))
    torch.testing.assert_close(two_texts(video, subtitle, caption, 10.0), by_hand / 4 + back)


@pytest.mark.parametrize("name", [n for n in TWO if n != "triplet"])
def test_losses_of_two_prefer_right_pairs(name: str) -> None:
    x = rows()
    right, wrong = TWO[name](x, x, torch.tensor(10.0)), TWO[name](x, x.roll(1, 0), torch.tensor(10.0))
    assert right < wrong


@pytest.mark.parametrize("name", list(FOUR))
def test_losses_of_four_do_not_know_the_order_of_rows(name: str) -> None:
    every, order = [rows(seed=i) for i in range(4)], torch.tensor([2, 0, 3, 1])
    a, b = FOUR[name](*every, 10.0), FOUR[name](*(x[order] for x in every), 10.0)
    torch.testing.assert_close(a, b)


def test_names_and_released_names() -> None:
    assert two_named("HardNegLoss") == "hard_negatives"
    assert four_named("NCELearnableTempLoss_vsc_fc") == ("v-sc", "f-c")
    assert four_named("v-s+v-c+f-c") == ("v-s", "v-c", "f-c")
    for name in RELEASED:
        assert (RELEASED[name] in TWO) or four_named(name)
    for wrong in ("v-x", "v-s+v-s", ""):
        with pytest.raises(ClipreelError, match="different ones of v-s, v-c"):
            four_named(wrong)
    with pytest.raises(ClipreelError, match="allowed are contrastive, v-s"):
        two_named("l2")
    with pytest.raises(ValueError, match="allowed are cosine, order"):
        triplet(EYE, EYE, measure="l1")
