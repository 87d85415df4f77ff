"""Ranks against brute force over every order of ties, by hand, and in blocks of any size."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipreel.evaluation import similarity
from clipreel.evaluation.metrics import evaluate, evaluate_similarity, measures
from clipreel.evaluation.ranks import merged, order_blind, rank, rank_texts, rank_videos
from clipreel.evaluation.similarity import ROWS, Cosine, Dense, DualSoftmax, QueryBank, Transposed, pieces

INF = torch.inf


def brute(scores: list[float], positives: set[int], k: int) -> tuple[float, float]:
    """(mean rank of the first positive, share of orders with one in the first k) over all orders of equal scores."""
    clean = [-INF if s != s else s for s in scores]
    levels = sorted(set(clean), reverse=True)
    groups = [[i for i, s in enumerate(clean) if s == level] for level in levels]
    ranks = []
    for orders in itertools.product(*[list(itertools.permutations(g)) for g in groups]):
        line = [i for g in orders for i in g]
        ranks.append(1 + next(n for n, i in enumerate(line) if i in positives))
    return sum(ranks) / len(ranks), sum(r <= k for r in ranks) / len(ranks)


values = st.sampled_from([0.0, 0.5, 1.0, float("nan")])


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=4, max_size=4), st.integers(0, 3), st.integers(1, 4))
def test_text_ranks_are_brute_force(row: list[float], truth: int, k: int) -> None:
    # the other rows give every video a caption and do not matter here
    ranks = rank_texts(Dense(torch.tensor([row])), torch.tensor([truth]))
    mean, hit = brute(row, {truth}, k)
    assert ranks.expected().item() == pytest.approx(mean)
    assert ranks.hit_rate(k).item() == pytest.approx(hit)


@settings(max_examples=40, deadline=None)
@given(st.lists(values, min_size=10, max_size=10), st.integers(1, 5))
def test_video_ranks_with_several_captions_are_brute_force(entries: list[float], k: int) -> None:
    scores, truth = torch.tensor(entries).view(5, 2), torch.tensor([0, 0, 1, 1, 1])
    ranks = rank_videos(Dense(scores), truth, "caption")
    for v in range(2):
        column = scores[:, v].tolist()
        own = {t for t in range(5) if truth[t] == v}
        best = max((-INF if column[t] != column[t] else column[t]) for t in own)
        # captions of the video never compete with its best one
        kept = [t for t in range(5) if t not in own or (column[t] == best) or (best == -INF)]
        mean, hit = brute([column[t] for t in kept], {kept.index(t) for t in own if t in kept}, k)
        assert ranks.expected()[v].item() == pytest.approx(mean)
        assert ranks.hit_rate(k)[v].item() == pytest.approx(hit)


def test_three_by_three_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.3, 0.8], [0.5, 0.4, 0.5]])
    result = evaluate_similarity(scores)
    # text 0 is first; text 1 ties for second; text 2 ties for first
    assert result.t2v["R@1"] == pytest.approx(100 * (1 + 0 + 0.5) / 3)
    assert result.t2v["MnR"] == pytest.approx((1 + 2.5 + 1.5) / 3)
    assert result.t2v["tied"] == 2
    assert result.t2v["pessimistic"]["R@1"] == pytest.approx(100 / 3)
    # columns: 0.9 first; 0.3 behind 0.4; 0.5 behind 0.8
    assert result.v2t["R@1"] == pytest.approx(100 / 3)
    assert result.v2t["MdR"] == 2.0


def test_collapsed_model_is_at_chance() -> None:
    result = evaluate_similarity(torch.full((50, 50), 0.3))
    assert result.t2v["R@1"] == pytest.approx(2.0)
    assert result.t2v["pessimistic"]["R@1"] == 0.0


def test_unread_video_counts_as_missed() -> None:
    texts = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    videos = texts.clone()
    videos[3] = torch.nan
    result = evaluate(texts, videos)
    assert result.t2v["R@10"] == pytest.approx(95.0)
    assert result.t2v["queries"] == 20
    assert result.non_finite == 20
    assert result.failed_videos == (3,)
    # the video itself, asked for its caption, is at chance
    assert result.v2t["R@1"] == pytest.approx(95.0 + 5 / 20)
    texts[5, 2] = torch.inf
    assert evaluate(texts, videos).failed_texts == (5,)


def random_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    videos = torch.nn.functional.normalize(torch.randn(23, 6, generator=g), dim=1)
    truth = torch.cat([torch.arange(23), torch.randint(0, 23, (40,), generator=g)])
    texts = videos[truth] + 0.7 * torch.randn(63, 6, generator=g)
    # exact ties: coarse values whose products are exact
    return (texts * 4).round() / 4, (videos * 4).round() / 4, truth


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 100), (100, 3), (2048, 4096)])
@pytest.mark.parametrize("protocol", ["caption", "video"])
def test_blocks_of_any_size_count_the_same(size: tuple[int, int], protocol: str) -> None:
    texts, videos, truth = random_case()
    whole, lazy = Dense(texts @ videos.T), Cosine(texts, videos)
    for ours, plain in (
        (rank_texts(lazy, truth, *size), rank_texts(whole, truth)),
        (rank_videos(lazy, truth, protocol, *size), rank_videos(whole, truth, protocol)),
    ):
        assert torch.equal(ours.above, plain.above)
        assert torch.equal(ours.tied, plain.tied)
        assert torch.equal(ours.best, plain.best)
    assert (rank_texts(whole, truth).tied > 0).any()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_both_directions_at_once_are_each_alone_in_any_order_of_items(data: st.DataObject) -> None:
    seed, rows, columns = (data.draw(st.integers(*r)) for r in ((0, 99), (1, 80), (1, 30)))
    protocol = data.draw(st.sampled_from(["caption", "video"]))
    texts, videos, truth = random_case(seed)
    g = torch.Generator().manual_seed(seed)
    t, v = torch.randperm(63, generator=g), torch.randperm(23, generator=g)
    videos[seed % 23] = torch.nan
    together = rank(Cosine(texts[t], videos[v]), v.argsort()[truth[t]], True, protocol, rows, columns)
    scores = Dense(texts @ videos.T)
    for ours, alone, order in zip(
        together, (rank_texts(scores, truth), rank_videos(scores, truth, protocol)), (t, v), strict=True
    ):
        assert torch.equal(ours.above, alone.above[order])
        assert torch.equal(ours.tied, alone.tied[order])
        assert torch.equal(ours.best, alone.best[order])
        assert ours.gallery == alone.gallery


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(1, 60))
def test_pieces_cover_and_are_even(length: int, step: int) -> None:
    found = pieces(length, step)
    assert [i for p in found for i in range(p.start, p.stop)] == list(range(length))
    sizes = {p.stop - p.start for p in found}
    assert not sizes or (max(sizes) <= step and max(sizes) - min(sizes) <= 1)


def test_equal_captions_tie_across_blocks() -> None:
    # one row more than a block holds: a remainder of one row would go through another kernel
    g = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(ROWS + 1, 64, generator=g), dim=1)
    texts[-1] = texts[0]
    ranks = rank_videos(Cosine(texts, texts), torch.arange(ROWS + 1))
    assert ranks.tied[[0, -1]].tolist() == [1, 1]
    assert ranks.tied.sum() == 2


@pytest.mark.parametrize("processing", [{}, {"dual_softmax": "softmax"}, {"dual_softmax": "product"}, "banks"])
def test_small_blocks_and_no_memory_change_no_rank(
    processing: dict[str, str] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, videos, truth = random_case(5)
    options = {"text_bank": texts[:9], "video_bank": videos[:5]} if processing == "banks" else processing
    whole = evaluate(texts, videos, truth, **options)
    monkeypatch.setattr(similarity, "KEPT", 0)
    monkeypatch.setattr(similarity.blocks, "__defaults__", (10, 7))
    again = evaluate(texts, videos, truth, **options)
    assert again.to_dict() == whole.to_dict()


def test_equal_strings_as_one_positive() -> None:
    truth = torch.tensor([0, 1, 1, 2])
    pairs = merged(truth, ["a dog", "a cat", "a dog", "a bird"])
    assert list(zip(pairs.texts.tolist(), pairs.videos.tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 1), (2, 0), (2, 1), (3, 2)
    ]  # fmt: skip
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.5, 0.4, 0.3], [0.1, 0.9, 0.2], [0.0, 0.8, 0.8]])
    result = evaluate_similarity(scores, truth, merge_identical_texts=["a dog", "a cat", "a dog", "a bird"])
    assert result.merged is not None
    # by hand: text 0 is missed alone and found when both dogs are right; text 1 second; text 3 ties for first
    assert result.t2v["R@1"] == pytest.approx(100 * (0 + 0 + 1 + 0.5) / 4)
    assert result.merged["t2v"]["R@1"] == pytest.approx(100 * (1 + 0 + 1 + 0.5) / 4)
    # video 1: its best caption ties with text 0 alone, and text 0 is its own when merged
    assert result.v2t["R@1"] == pytest.approx(100 * (0 + 0.5 + 1) / 3)
    assert result.merged["v2t"]["R@1"] == pytest.approx(100 * (0 + 1 + 1) / 3)
    with pytest.raises(ValueError, match="4 texts have a video, but 1 strings"):
        merged(truth, ["a"])


def test_released_dual_softmax_ranks_both_directions_by_one_matrix() -> None:
    s = torch.tensor([[-0.30, -0.10], [0.2, -0.4]])
    # the documented trap: -0.30 shrinks to nothing and beats -0.10
    assert evaluate_similarity(s, torch.tensor([1, 0]), dual_softmax="product").t2v["R@1"] == 50.0
    assert evaluate_similarity(s, torch.tensor([1, 0]), dual_softmax="softmax").t2v["R@1"] == 100.0
    positive = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)).double() + 0.1
    plain, released = evaluate_similarity(positive), evaluate_similarity(positive, dual_softmax="released", factor=5)
    assert released.v2t == plain.v2t
    assert released.v2t != evaluate_similarity(positive, dual_softmax="product", factor=5).v2t


def test_video_protocol_is_the_best_caption_of_each_video() -> None:
    texts, videos, truth = random_case(1)
    scores = texts @ videos.T
    grouped = torch.stack([scores[truth == u].max(0).values for u in range(23)])
    plain = rank_videos(Dense(grouped), torch.arange(23))
    ours = rank_videos(Dense(scores), truth, "video")
    assert torch.equal(ours.expected(), plain.expected())


def test_dual_softmax_forms_and_its_twin() -> None:
    texts, videos, truth = random_case(2)
    s = (texts @ videos.T).double() / 10
    everything = slice(0, 63), slice(0, 23)
    p = (100 * s).softmax(0)
    torch.testing.assert_close(DualSoftmax(Dense(s), "product").block(*everything), s * p)
    torch.testing.assert_close(DualSoftmax(Dense(s), "softmax").block(*everything).exp(), p)
    twin = Transposed(DualSoftmax(Transposed(Dense(s)), "product")).block(*everything)
    torch.testing.assert_close(twin, s * (100 * s).softmax(1))
    result = evaluate(texts, videos, truth, dual_softmax="softmax")
    assert result.stamp.transductive
    assert "softmax" in result.stamp.post_processing


def test_query_bank_dynamic_and_static() -> None:
    texts, videos, _ = random_case(3)
    s, bank = (texts @ videos.T).double() / 10, torch.randn(9, 23, generator=torch.Generator().manual_seed(4)).double()
    z = torch.logsumexp(20 * bank, 0)
    static = QueryBank(Dense(s), Dense(bank), dynamic=False).block(slice(0, 63), slice(0, 23))
    torch.testing.assert_close(static, 20 * s - z)
    dynamic = QueryBank(Dense(s), Dense(bank))
    chosen = torch.isin(s.argmax(1), bank.argmax(1).unique())
    assert torch.equal(dynamic.normalised, chosen)
    assert 0 < chosen.sum() < 63
    torch.testing.assert_close(dynamic.block(slice(0, 63), slice(0, 23))[~chosen], s[~chosen])
    huge = QueryBank(Dense(s * 1e4), Dense(bank * 1e4), dynamic=False).block(slice(0, 63), slice(0, 23))
    assert huge.isfinite().all()
    bank[:, 3] = torch.nan
    assert (QueryBank(Dense(s), Dense(bank), dynamic=False).block(slice(0, 63), slice(0, 23))[:, 3] == -INF).all()


def test_order_blind_bound_of_pairs_and_singles() -> None:
    t2v, v2t = (measures(r) for r in order_blind(["a", "a", "b", "b", "c"]))
    assert t2v["R@1"] == pytest.approx(60.0)
    assert v2t["R@1"] == pytest.approx(60.0)
    assert t2v["R@5"] == 100.0


def test_wrong_use_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="give text_to_video"):
        evaluate(torch.eye(3), torch.eye(3)[:2])
    with pytest.raises(ValueError, match="video 2 has no caption"):
        evaluate(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="text 1 is not"):
        evaluate(torch.eye(3), torch.eye(3), torch.tensor([0, 7, 1]))
    with pytest.raises(ValueError, match="allowed are caption"):
        evaluate(torch.eye(3), torch.eye(3), v2t="clip")
    with pytest.raises(ValueError, match="allowed are softmax, product, released"):
        evaluate(torch.eye(3), torch.eye(3), dual_softmax="both")
    with pytest.raises(ValueError, match=r"\+inf"):
        evaluate_similarity(torch.full((3, 3), torch.inf))
    with pytest.raises(ValueError, match="the bank is empty"):
        evaluate(torch.eye(3), torch.eye(3), text_bank=torch.empty(0, 3))
    with pytest.raises(ValueError, match="scores for 2 videos, the matrix for 3"):
        evaluate_similarity(torch.eye(3), bank=torch.eye(2))
    with pytest.raises(ValueError, match="choose one"):
        evaluate(torch.eye(3), torch.eye(3), dual_softmax="product", text_bank=torch.eye(3))
