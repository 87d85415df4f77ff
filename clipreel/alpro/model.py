"""ALPRO: the three encoders, their heads, and the losses of matching, masked words and entities.

Specification alpro.md 2.3 and 3; checked against salesforce/ALPRO on fixtures. The contrastive loss is
`losses.contrastive` with scale 1 / temp. Differs by default where the released code has quirks: samples are kept by
confidence (`keep`), and a loss over nothing is 0 instead of NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.alpro.bert import PAD, Bert, MaskedWords, TextConfig
from clipreel.alpro.timesformer import TimeSformer, VisionConfig
from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.noise import uniform

TEMPERATURES = (0.001, 0.5)
MASKED, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1
KEEP_RULES = ("confidence", "released")


@dataclass(frozen=True)
class AlproConfig:
    """Sizes of all parts; `entities` and `answers` are 0 and `words` is False where there is no such head."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed: int = 256
    words: bool = True
    entities: int = 0
    answers: int = 0


class Alpro(nn.Module):
    """Videos and texts to tokens, to unit vectors, and both together to fused tokens.

    Pixels are normalised (B, T, 3, H, W), ids (B, L) int64 with 0 as padding.
    """

    def __init__(self, config: AlproConfig) -> None:
        super().__init__()
        d = config.text.width
        if config.vision.width != d:
            raise ClipreelError(
                f"widths {config.vision.width} (video) and {d} (text): video tokens enter the fusion encoder as they "
                "are, so both must be equal"
            )
        self.config = config
        self.video, self.text = TimeSformer(config.vision), Bert(config.text)
        self.vision_proj, self.text_proj = nn.Linear(d, config.embed), nn.Linear(d, config.embed)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.itm_head = nn.Linear(d, 2)
        self.mlm = MaskedWords(d, config.text.vocab) if config.words else None
        self.mpm_head = two_layers(d, config.entities) if config.entities else None
        self.classifier = two_layers(d, config.answers) if config.answers else None

    def video_vectors(self, video_tokens: Tensor) -> Tensor:
        """Unit vectors (B, E) of video tokens."""
        return unit(self.vision_proj(video_tokens[:, 0]))

    def text_vectors(self, text_tokens: Tensor) -> Tensor:
        """Unit vectors (B, E) of text tokens."""
        return unit(self.text_proj(text_tokens[:, 0]))

    def match(self, text_tokens: Tensor, text_mask: Tensor, video_tokens: Tensor) -> Tensor:
        """Logits (B, 2) of row-wise pairs; class 1 says that they match."""
        return self.itm_head(self.text.fuse(text_tokens, text_mask, video_tokens, first=True)[:, 0])

    def entity_logits(self, fused_video: Tensor) -> Tensor:
        """(..., M) of fused video tokens or means of them."""
        if self.mpm_head is None:
            raise ClipreelError("this ALPRO has no entity head; take a pre-training checkpoint")
        return self.mpm_head(fused_video)

    def word_logits(self, fused_text: Tensor) -> Tensor:
        """(..., vocab) of fused text tokens."""
        if self.mlm is None:
            raise ClipreelError("this ALPRO has no head for masked words; take a pre-training checkpoint")
        return self.mlm(fused_text, self.text.words)

    def answer_logits(self, video: Tensor, ids: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """(B, A) of row-wise pairs of a video and a question."""
        if self.classifier is None:
            raise ClipreelError("this ALPRO has no answer head; take a VideoQA checkpoint")
        fused = self.text.fuse(self.text.read(ids), ids != PAD, self.video(video, frame_mask), first=True)
        return self.classifier(fused[:, 0])

    @torch.no_grad()
    def clamp(self) -> None:
        """The temperature back into its range; the released code does this before every training step."""
        self.temp.clamp_(*TEMPERATURES)


def two_layers(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, classes))


# ---------------------------------------------------------------------- matching


def negative_probabilities(scores_NN: Tensor, groups_N: Tensor | None = None, block: int | None = None) -> Tensor:
    """How likely row i takes column j as its hard negative: softmax of the scores (already divided by temp) over the
    columns that are another pair, of another group where `groups_N` is given, and of the same block of rows.

    `block` is the batch of one process in the released code, which looks for negatives there only. A row without any
    is all zeros.
    """
    n = len(scores_NN)
    number = torch.arange(n, device=scores_NN.device)
    taken = torch.eye(n, dtype=torch.bool, device=scores_NN.device)
    if groups_N is not None:
        taken = taken | (groups_N[:, None] == groups_N[None])
    if block is not None:
        taken = taken | (number[:, None] // block != number[None] // block)
    p = scores_NN.detach().float().masked_fill(taken, -torch.inf).softmax(1)
    return p.nan_to_num(0.0)


def draw_negatives(p_t2v: Tensor, p_v2t: Tensor) -> tuple[Tensor, Tensor]:
    """A column for every row that has one (else -1): videos for the texts first, then texts for the videos."""

    def draw(p: Tensor) -> Tensor:
        some = p.sum(1) > 0
        chosen = torch.full((len(p),), -1, device=p.device)
        if some.any():
            chosen[some] = torch.multinomial(p[some], 1)[:, 0]
        return chosen

    return draw(p_t2v), draw(p_v2t)


def matching_rows(video_for_text: Tensor, text_for_video: Tensor) -> tuple[Tensor, Tensor]:
    """(text row, video row) of the negative pairs: every text with its video, then every video with its text."""
    number = torch.arange(len(video_for_text), device=video_for_text.device)
    a, b = video_for_text >= 0, text_for_video >= 0
    return torch.cat([number[a], text_for_video[b]]), torch.cat([video_for_text[a], number[b]])


def matching(positive_N2: Tensor, negative_K2: Tensor) -> Tensor:
    """L_vtm: mean cross entropy over the positive and the negative pairs, all of one weight."""
    labels = torch.cat([torch.ones(len(positive_N2)), torch.zeros(len(negative_K2))]).long()
    return F.cross_entropy(torch.cat([positive_N2, negative_K2]).float(), labels.to(positive_N2.device))


# ---------------------------------------------------------------------- masked words


def mask_words(ids: Tensor, mask_id: int, vocab: int, special: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ids with some words hidden, and labels that are -100 elsewhere: each token alone, 15 of 100, of which 80 become
    [MASK], 10 any token of the vocabulary, 10 stay."""
    free = ~torch.isin(ids, torch.tensor(special, device=ids.device))
    chance, what, other = uniform((*ids.shape, 3), ids.device).unbind(-1)
    hidden = (chance < MASKED) & free
    labels = torch.where(hidden, ids, -100)
    any_word = (other * vocab).long()
    seen = torch.where(what < AS_MASK, mask_id, torch.where(what < AS_MASK + AS_RANDOM, any_word, ids))
    return torch.where(hidden, seen, ids), labels


def word_losses(logits_KV: Tensor, labels_BL: Tensor) -> Tensor:
    """(B,) summed cross entropy of the hidden words of each row; logits in row-major order of those words."""
    hidden = labels_BL != -100
    ce = F.cross_entropy(logits_KV.float(), labels_BL[hidden], reduction="none")
    rows = torch.arange(len(labels_BL), device=ce.device)[:, None].expand_as(labels_BL)[hidden]
    return torch.zeros(len(labels_BL), device=ce.device).index_add(0, rows, ce)


# ---------------------------------------------------------------------- entities


def pooled_crop(fused_video: Tensor, outside: Tensor) -> Tensor:
    """(B, D), the mean of the fused patches inside the crop; `fused_video` (B, 1 + N, D), `outside` (B, h, w) is 1 on
    patches that were blacked out."""
    inside = (1 - outside.float()).flatten(1)[..., None]
    return (fused_video[:, 1:] * inside).sum(1) / inside.sum(1).clamp(min=1)


def entity_losses(logits_BM: Tensor, soft_labels_BM: Tensor) -> Tensor:
    """(B,) cross entropy against soft labels."""
    return -(soft_labels_BM * logits_BM.float().log_softmax(1)).sum(1)


def kept(soft_labels_BM: Tensor, rule: str = "confidence", least: float = 0.2) -> Tensor:
    """(B,) which samples count. `confidence` keeps those whose best entity has at least the probability `least`;
    `released` compares the number of the best entity instead, and so drops exactly those whose best is number 0."""
    if rule == "confidence":
        return soft_labels_BM.max(1).values >= least
    if rule == "released":
        return soft_labels_BM.argmax(1) >= least
    raise ClipreelError(f"keep rule {rule!r}: allowed are {', '.join(KEEP_RULES)}")


def mean_of_kept(losses_B: Tensor, keep_B: Tensor) -> Tensor:
    """The mean over the rows that are kept, 0 where none is."""
    return (losses_B * keep_B).sum() / keep_B.sum().clamp(min=1)
