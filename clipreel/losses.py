"""Training losses, each a function of the features of the whole (global) batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreel.heads import unit


def contrastive(text_NE: Tensor, video_NE: Tensor, scale: Tensor | float, groups_N: Tensor | None = None) -> Tensor:
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
