"""TimeSformer and BERT in two halves: masks, drop path, sizes, limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clipreel.alpro.bert import Bert, TextConfig
from clipreel.alpro.timesformer import TimeSformer, VisionConfig, dropped, resized_positions, resized_rows
from clipreel.errors import ClipreelError
from tests.alpro.tiny import config, pixels, tiny, tokenizer


def test_a_batch_is_its_rows_and_padded_frames_change_nothing() -> None:
    video = tiny().video
    both = pixels(2)
    torch.testing.assert_close(video(both), torch.cat([video(both[:1]), video(both[1:])]), atol=1e-5, rtol=0)
    mask = torch.tensor([[True, True, True, False]] * 2)
    other = both.clone()
    other[:, 3] = 9.0
    torch.testing.assert_close(video(both, mask), video(other, mask), atol=1e-5, rtol=0)
    assert (video(both, mask) - video(both)).abs().max() > 1e-3
    everything = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(video(both, everything), video(both), atol=1e-5, rtol=0)


def test_the_order_of_frames_matters_and_one_frame_works() -> None:
    video, frames = tiny().video, pixels(1)
    assert (video(frames) - video(frames.flip(1))).abs().max() > 1e-3
    assert video(frames[:, :1]).shape == (1, 17, 24)


def test_a_start_is_a_vit_of_each_frame() -> None:
    """Times and temporal outputs are zero, so equal frames give what one of them gives, in any number and order."""
    torch.manual_seed(0)
    video = TimeSformer(config().vision).eval()
    frames = pixels(1)
    torch.testing.assert_close(video(frames), video(frames.flip(1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(video(frames[:, :1].repeat(1, 4, 1, 1, 1)), video(frames[:, :1]), atol=1e-5, rtol=0)


def test_recomputing_changes_no_gradient() -> None:
    grads = []
    for again in (False, True):
        model = tiny()
        model.video.checkpointing = model.text.checkpointing = again
        ids = tokenizer()(["a red dog", "a blue cat moves"], 8)
        model.match(model.text.read(ids), ids != 0, model.video(pixels(2))).square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for n, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][n], msg=n)


def test_drop_path_drops_whole_parts_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(200, 3, 5, 2)
    kept = dropped(x, 0.25, True, (1, 3))
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(kept, kept[:, :1, :, :1].expand_as(kept))  # one draw for all frames and channels of a patch
    assert not torch.equal(kept, kept[:, :, :1].expand_as(kept))
    assert abs(kept.mean().item() - 1) < 0.1
    assert dropped(x, 0.25, False, (1,)) is x


def test_tables_are_resized_by_the_nearest_row() -> None:
    times = torch.arange(4.0).view(1, 4, 1)
    assert resized_rows(times, 8).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resized_rows(times, 4) is times
    positions = torch.arange(5.0).view(1, 5, 1)  # a class row and a grid of 2 x 2
    assert resized_positions(positions, 16).flatten().tolist() == [0, *[n for n in range(1, 5) for _ in range(4)]]
    with pytest.raises(ClipreelError, match="15 patches are no square grid"):
        resized_positions(positions, 15)


def test_more_frames_than_the_table_take_the_times_nearest_to_them() -> None:
    """The documented rule; 8 frames of a model of 4 are what a model with the table of 8 makes of them."""
    video, frames = tiny().video, pixels(1, frames=8)
    longer = TimeSformer(replace(video.config, frames=8)).eval()
    state = video.state_dict()
    longer.load_state_dict({**state, "time_embed": resized_rows(state["time_embed"], 8)})
    torch.testing.assert_close(video(frames), longer(frames))


def test_padding_is_not_seen_in_either_half() -> None:
    text, ids = tiny().text, tokenizer()(["a red dog"], 8)
    read = text.read(ids)
    longer = text.read(torch.nn.functional.pad(ids, (0, 4)))
    torch.testing.assert_close(longer[:, :5], read[:, :5], atol=1e-5, rtol=0)
    video = torch.randn(1, 6, 24)
    short = text.fuse(read[:, :5], torch.ones(1, 5), video)
    torch.testing.assert_close(text.fuse(read, ids != 0, video)[:, 8:], short[:, 5:], atol=1e-5, rtol=0)


def test_the_first_token_alone_is_the_first_of_all() -> None:
    text, video = tiny().text, torch.randn(2, 6, 24)
    ids = tokenizer()(["a red dog", "a cat"], 8)
    read = text.read(ids)
    alone = text.fuse(read, ids != 0, video, first=True)
    assert alone.shape == (2, 1, 24)
    torch.testing.assert_close(alone, text.fuse(read, ids != 0, video)[:, :1], atol=1e-5, rtol=0)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ClipreelError, match="21 tokens: this model reads at most 20"):
        tiny().text.read(torch.ones(1, 21, dtype=torch.long))
    with pytest.raises(ClipreelError, match="at least 1 of 8 x 8"):
        tiny().video(torch.zeros(1, 4, 3, 4, 32))
    with pytest.raises(ClipreelError, match="multiple of the 5 heads"):
        TimeSformer(replace(VisionConfig(), heads=5))
    with pytest.raises(ClipreelError, match="text_layers 13 lie from 1 to 12"):
        Bert(TextConfig(text_layers=13))
    with pytest.raises(ClipreelError, match="both must be equal"):
        type(tiny())(replace(config(), text=replace(config().text, width=32)))
