"""Training losses, each a function of the features of the whole (global) batch.

`contrastive` takes rows of any length; all others take unit rows as they are. Those of CLIP-ViP (specification
clip_vip.md 3) are checked against its code with their gradients; the names that it gave them are in `RELEASED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.heads import unit

Scale: TypeAlias = Tensor | float


def contrastive(text_NE: Tensor, video_NE: Tensor, scale: Scale, groups_N: Tensor | None = None) -> Tensor:
    """Symmetric cross entropy of N (text, video) pairs in row order, a scalar in float32.

    Z = scale * t v' with unit rows t, v; loss = (CE(Z) + CE(Z')) / 2, CE(Z) = mean_i -sum_j p_ij log softmax(Z_i)_j.
    Without `groups_N`, p is the identity (specification vop.md 2.4). With it, rows of equal number are the same video
    and share the target: p_ij = 1 / n_i for the n_i rows j of the group of i.

    >>> contrastive(torch.eye(2), torch.eye(2), 100.0).item()
    0.0
    """
    with torch.autocast(text_NE.device.type, enabled=False):
        return paired(scale * unit(text_NE) @ unit(video_NE).T, groups_N)


def paired(logits_NN: Tensor, groups_N: Tensor | None = None) -> Tensor:
    """The same from logits Z of texts (rows) and videos (columns) in pairs, however they were scored.

    >>> paired(100.0 * torch.eye(2)).item()
    0.0
    """
    if groups_N is None:
        target = torch.arange(len(logits_NN), device=logits_NN.device)
        return (F.cross_entropy(logits_NN, target) + F.cross_entropy(logits_NN.T, target)) / 2
    same = (groups_N[:, None] == groups_N[None]).to(logits_NN.dtype)
    share = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits_NN, share) + F.cross_entropy(logits_NN.T, share)) / 2


def missed(logits_WN: Tensor, wrong_W: Tensor) -> Tensor:
    """What one more candidate that is known to be wrong, for W of the N texts, adds to `paired` of all N.

    With logits z_ij of text i to the videos j and w_i to its wrong one, log(sum_j e^z_ij + e^w_i) takes the place of
    log sum_j e^z_ij from text to video: sum_i log(1 + e^(w_i - log sum_j e^z_ij)) / 2N. No other text meets w_i.

    >>> round(6 * missed(torch.zeros(1, 3), torch.zeros(1)).item(), 4)  # log(4 / 3)
    0.2877
    """
    return F.softplus(wrong_W - logits_WN.logsumexp(1)).sum() / (2 * logits_WN.shape[1])


def pairs(x_NE: Tensor, y_NE: Tensor, scale: Scale, groups_N: Tensor | None = None) -> Tensor:
    """CE(Z) + CE(Z') of Z = scale * x y', the sum of both directions and so twice `paired`: P(X, Y)."""
    return 2 * paired(scale * x_NE @ y_NE.T, groups_N)


def two_texts(video_NE: Tensor, first_NE: Tensor, second_NE: Tensor, scale: Scale) -> Tensor:
    """A video against its texts of two sources, each the other's negatives: Q(V; S, C), four cross entropies.

    With A = scale * v s' and G = scale * v c': the texts of other videos of both sources are candidates for a video,
    mean_i [log(e^A_ii + sum_{j != i} (e^A_ij + e^G_ij)) - A_ii] and the same for G_ii; its other text is neither right
    nor wrong. Back to videos, CE(A') + CE(G').
    """
    a, g = scale * video_NE @ first_NE.T, scale * video_NE @ second_NE.T
    own = torch.eye(len(a), dtype=torch.bool, device=a.device)
    target = torch.arange(len(a), device=a.device)
    to_first = F.cross_entropy(torch.cat([a, g.masked_fill(own, -torch.inf)], 1), target)
    to_second = F.cross_entropy(torch.cat([a.masked_fill(own, -torch.inf), g], 1), target + len(a))
    return to_first + to_second + F.cross_entropy(a.T, target) + F.cross_entropy(g.T, target)


def dual_softmax(x_NE: Tensor, y_NE: Tensor, scale: Scale) -> Tensor:
    """CE(Z * p) + CE(Z' * q), Z = scale * x y', where p and q are softmaxes down the columns of Z and of Z'."""
    z = scale * x_NE @ y_NE.T
    target = torch.arange(len(z), device=z.device)
    return F.cross_entropy(z * z.softmax(0), target) + F.cross_entropy(z.T * z.T.softmax(0), target)


def hard_negatives(x_NE: Tensor, y_NE: Tensor, count: int = 15) -> Tensor:
    """Cross entropy of every pair among itself and the `count` most similar wrong ones (all in a smaller batch).

    Both directions are added; Z = x y' is not scaled.
    """
    z = x_NE @ y_NE.T
    wrong = z.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    target = torch.zeros(len(z), dtype=torch.long, device=z.device)
    count = min(count, len(z) - 1)

    def among_hardest(rows: Tensor) -> Tensor:
        return F.cross_entropy(torch.cat([z.diagonal()[:, None], rows.topk(count, 1).values], 1), target)

    return among_hardest(wrong) + among_hardest(wrong.T)


def mil_nce(video_NE: Tensor, texts_NKE: Tensor, temperature: float = 0.07) -> Tensor:
    """One of K texts may be right (MIL-NCE), x_ijk = v_i t_jk / temperature:

    mean_i [log(sum_jk e^x_ijk + sum_{j != i, k} e^x_jik) - log sum_k e^x_iik].
    """
    x = torch.einsum("ie,jke->ijk", video_NE, texts_NKE) / temperature
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    others = x.transpose(0, 1).masked_fill(own[..., None], -torch.inf)
    right = x.diagonal().T.logsumexp(1)
    return (torch.cat([x, others], 2).flatten(1).logsumexp(1) - right).mean()


def triplet(
    video_NE: Tensor, text_NE: Tensor, margin: float = 0.2, measure: str = "cosine", hardest: bool = False
) -> Tensor:
    """Margins of every pair over the wrong ones, both directions added; `hardest` counts the worst of a row only.

    sum_{i != j} [m + Z_ij - Z_ii]+ + [m + Z_ij - Z_jj]+. Z is the dot product, or with `measure` "order"
    -||max(0, t_j - v_i)||. Raises ValueError for another measure.
    """
    if measure not in ("cosine", "order"):
        raise ValueError(f"measure {measure!r}: allowed are cosine, order")
    order = measure == "order"
    z = -(text_NE - video_NE[:, None]).relu().norm(dim=2) if order else video_NE @ text_NE.T
    right = z.diagonal()
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    rows = (margin + z - right[:, None]).relu().masked_fill(own, 0.0)
    columns = (margin + z - right[None]).relu().masked_fill(own, 0.0)
    return (rows.amax(1) if hardest else rows).sum() + (columns.amax(0) if hardest else columns).sum()


# ------------------------------------------------------------------ by name

# of video and text; the first two know which rows are the same video
TWO: Mapping[str, Callable[[Tensor, Tensor, Scale], Tensor]] = {
    "contrastive": lambda v, t, scale: contrastive(t, v, scale),
    "v-s": pairs,
    "dual_softmax": dual_softmax,
    "hard_negatives": lambda v, t, scale: hard_negatives(v, t),
    "triplet": lambda v, t, scale: triplet(v, t),
}
MISSED: Mapping[str, float] = {"contrastive": 1.0, "v-s": 2.0}  # of those, what `missed` is an exact part of
# of videos, their subtitles, single frames and captions of these; "a+b" adds two of them up
FOUR: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor, Scale], Tensor]] = {
    "v-s": lambda v, s, f, c, scale: pairs(v, s, scale),
    "v-c": lambda v, s, f, c, scale: pairs(v, c, scale),
    "f-c": lambda v, s, f, c, scale: pairs(f, c, scale),
    "v-sc": lambda v, s, f, c, scale: two_texts(v, s, c, scale),
    "vf-sc": lambda v, s, f, c, scale: pairs(torch.cat([v, f]), torch.cat([s, c]), scale),
}
RELEASED: Mapping[str, str] = {
    "NCELearnableTempLoss": "v-s",
    "VidImgNCELearnableTempLoss": "vf-sc",
    "VidImgDivideNCELearnableTempLoss": "v-s+f-c",
    "NCELearnableTempLoss_vs_vc": "v-s+v-c",
    "NCELearnableTempLoss_vs_vc_fc": "v-s+v-c+f-c",
    "NCELearnableTempLoss_vsc": "v-sc",
    "NCELearnableTempLoss_vsc_fc": "v-sc+f-c",
    "NCELearnableTempDSLLoss": "dual_softmax",
    "HardNegLoss": "hard_negatives",
    "TripletContrastiveLoss": "triplet",
}


def two_named(name: str) -> str:
    """The name in `TWO` of a loss of video and text, also for a released name; ClipreelError lists those there are."""
    found = RELEASED.get(name, name)
    if found not in TWO:
        raise ClipreelError(f"loss {name!r}: allowed are {', '.join(TWO)}")
    return found


def missed_in(loss: str) -> float:
    """How often `missed` counts in a loss of `TWO`; ClipreelError for one that has no place for it."""
    if (name := two_named(loss)) not in MISSED:
        raise ClipreelError(
            f"loss {name!r} has no place for answers that were judged wrong: take {' or '.join(MISSED)}, or leave the "
            "field 'not' out of the pairs"
        )
    return MISSED[name]


def four_named(name: str) -> tuple[str, ...]:
    """The terms in `FOUR` of a combination such as "v-sc+f-c", also for a released name; else ClipreelError."""
    terms = tuple(RELEASED.get(name, name).split("+"))
    if any(t not in FOUR for t in terms) or len(set(terms)) < len(terms):
        raise ClipreelError(f"loss {name!r}: add up different ones of {', '.join(FOUR)}, such as v-sc+f-c")
    return terms
