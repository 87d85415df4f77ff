"""What a competent user would write with transformers' CLIPModel: prompts as tokens, texts padded to 77, torch's AdamW.

The mathematics of VoP, F+C and full tuning (specification vop.md 2-4), for benchmarks/training.py to compare with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

JOINT, GENERAL, PROMPTS = 4, 4, 8  # joint layers and general prompts of F+C, prompts of each layer


class Plain(nn.Module):
    """`method` is vop, vop_fc or full. `losses(frames_BTCHW, ids_BL)` is the symmetric contrastive loss."""

    def __init__(self, method: str, frames: int) -> None:
        super().__init__()
        self.method = method
        self.model = CLIPModel(CLIPConfig(attn_implementation="sdpa"))
        vision, text = self.model.config.vision_config, self.model.config.text_config
        if method == "full":
            return
        self.model.requires_grad_(False)
        self.alone = vision.num_hidden_layers - (JOINT if method == "vop_fc" else 0)
        counts = [GENERAL if method == "vop_fc" and i < self.alone else PROMPTS for i in range(12)]
        self.video_prompts = nn.ParameterList(0.02 * torch.randn(n, vision.hidden_size) for n in counts)
        self.text_prompts = nn.ParameterList(0.02 * torch.randn(PROMPTS, text.hidden_size) for _ in counts)
        if method == "vop_fc":
            d = vision.hidden_size
            self.lstm = nn.LSTM(d, d, batch_first=True, bidirectional=True)
            self.fc = nn.Linear(2 * d, (PROMPTS - GENERAL) * d)
            self.frame_position = nn.Parameter(torch.zeros(frames, d))

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def forward(self, frames: Tensor, ids: Tensor) -> Tensor:
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=frames.device).view(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=frames.device).view(3, 1, 1)
        pixels = (frames.float() / 255 - mean) / std
        if self.method == "full":
            z = self.model.get_image_features(pixels.flatten(0, 1)).pooler_output.unflatten(0, frames.shape[:2])
            t = self.model.get_text_features(ids, attention_mask=mask_of(ids)).pooler_output
        else:
            z, t = self.video(pixels), self.text(ids)
        v = F.normalize(F.normalize(z.float(), dim=-1).mean(1), dim=-1)
        logits = self.model.logit_scale.exp() * F.normalize(t.float(), dim=-1) @ v.T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def prompts(self, i: int, x: Tensor, frames: int) -> Tensor:
        """The prompts of every frame in layer i, (B T, 8, D)."""
        general = self.video_prompts[i].expand(len(x), -1, -1)
        if self.method == "vop":
            return general
        seen, _ = self.lstm(x[:, 0].unflatten(0, (-1, frames)))
        return torch.cat([general, self.fc(seen).view(len(x), PROMPTS - GENERAL, -1)], 1)

    def video(self, pixels: Tensor) -> Tensor:
        tower, (B, T) = self.model.vision_model, pixels.shape[:2]
        x = tower.embeddings(pixels.flatten(0, 1))
        for i, layer in enumerate(tower.encoder.layers):
            if i < self.alone:
                x = torch.cat([x[:, :1], self.prompts(i, x, T), x[:, 1 + (PROMPTS if i else 0) :]], 1)
                x = layer(tower.pre_layrnorm(x) if i == 0 else x, None)
                continue
            if i == self.alone:
                x = torch.cat([x[:, :1], x[:, 1 + PROMPTS :]], 1).unflatten(0, (B, T))
                x = (x + self.frame_position[:, None]).flatten(1, 2)
            x = layer(torch.cat([self.video_prompts[i].expand(B, -1, -1), x], 1), None)[:, PROMPTS:]
        cls = x[:, 0].unflatten(0, (B, T)) if self.method == "vop" else x.unflatten(1, (T, -1))[:, :, 0]
        return self.model.visual_projection(tower.post_layernorm(cls))

    def text(self, ids: Tensor) -> Tensor:
        tower = self.model.text_model
        x = tower.embeddings.token_embedding(ids)
        for i, layer in enumerate(tower.encoder.layers):
            prompts = self.text_prompts[i].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], prompts, x[:, 1 + (PROMPTS if i else 0) :]], 1)
            if i == 0:
                x = x + tower.embeddings.position_embedding.weight
            x = layer(x, None, is_causal=True)
        x = tower.final_layer_norm(x)
        return self.model.text_projection(x[torch.arange(len(x)), ids.argmax(1) + PROMPTS])


def mask_of(ids: Tensor) -> Tensor:
    """The attention mask that the processor gives beside padded ids."""
    return (torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(1, keepdim=True)).long()


class PlainLoop:
    """`step(batch)`: forward, backward, clip, AdamW."""

    def __init__(self, plain: Plain, device: torch.device, dtype: torch.dtype) -> None:
        self.plain, self.device, self.dtype = plain.to(device), device, dtype
        self.params = list(plain.trained().values())
        self.optimiser = torch.optim.AdamW(self.params, lr=1e-5, weight_decay=0.2, eps=1e-6)

    def loss(self, frames: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.plain(frames.to(self.device), ids.to(self.device))

    def step(self, frames: Tensor, ids: Tensor) -> None:
        self.loss(frames, ids).backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
