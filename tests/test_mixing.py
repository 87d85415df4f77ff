"""One batch of texts for many adapters, from many threads, on one base that nobody writes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import clipreel
from clipreel import mixing
from clipreel.errors import ClipreelError
from clipreel.mixing import encode_mixed
from clipreel.retriever import Retriever
from clipreel.tuners import TUNERS, build

TEXTS = ("a red circle", "first a blue square then a moon moves to the left", "a star", "a small cyan ring above a bar")


@pytest.fixture(scope="module")
def base() -> Retriever:
    return clipreel.load("shapes-tiny", device="cpu")


@pytest.fixture(scope="module")
def adapted(base: Retriever) -> dict[str, Retriever]:
    """Every method on one base, each away from its start."""
    found = {"plain": base}
    for seed, name in enumerate(TUNERS):
        torch.manual_seed(seed)
        tuner = build(name, base.clip).eval().requires_grad_(False)
        for p in tuner.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        found[name] = base.adapted(tuner, adapter=name)
    return found


def test_every_method_in_one_batch_is_each_by_itself(adapted: dict[str, Retriever]) -> None:
    requests = [(m, t) for t in TEXTS for m in adapted.values()]
    mixed = encode_mixed(requests)
    for row, (model, text) in zip(mixed, requests, strict=True):
        torch.testing.assert_close(row, model.encode_text([text])[0], atol=2e-6, rtol=0)


def test_methods_that_can_share_a_pass_do(adapted: dict[str, Retriever], monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    run = mixing.one_pass
    monkeypatch.setattr(mixing, "one_pass", lambda r, s: passes.append(len(r)) or run(r, s))
    together = ("vop", "vop_p", "vop_f", "text_prompts")
    encode_mixed([(adapted[n], t) for n in together for t in TEXTS])
    assert passes == [len(together) * len(TEXTS)]
    passes.clear()
    # side branches and low ranks leave the words where they are, prompts do not; biases are weights
    encode_mixed([(adapted[n], "a") for n in ("lora", "adapter_ffn", "plain", "vop", "bias", "proj")])
    assert sorted(passes) == [1, 1, 1, 3]


def test_threads_do_not_meet(adapted: dict[str, Retriever]) -> None:
    models = list(adapted.values())
    alone = [m.encode_text(TEXTS) for m in models]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(i, pool.submit(models[i].encode_text, TEXTS)) for _ in range(3) for i in range(len(models))]
        jobs += [(0, pool.submit(lambda: encode_mixed([(models[0], t) for t in TEXTS]))) for _ in range(3)]
        for i, job in jobs:
            torch.testing.assert_close(job.result(), alone[i], atol=2e-6, rtol=0)


def test_different_bases_are_refused(adapted: dict[str, Retriever]) -> None:
    other = clipreel.load("shapes-tiny", device="cpu")
    with pytest.raises(ClipreelError, match="not on one base"):
        encode_mixed([(adapted["vop"], "a"), (other, "a")])
    with pytest.raises(ClipreelError, match="no texts"):
        encode_mixed([])
