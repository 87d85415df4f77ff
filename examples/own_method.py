"""A method of your own in thirty lines: four prompts per frame in every block of the video tower, trained on one batch.

The base stays as it is; only the tuner's tensors get gradients. Usage: python examples/own_method.py
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import clipreel
from clipreel.data.shapes import ShapesWorld
from clipreel.patterns import Layout
from clipreel.sites import LayerTuner, Tuner


class FramePrompts(LayerTuner):
    """Tokens that stand behind CLS in every frame of one block, and leave after it."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(0.02 * torch.randn(count, width))

    def before(self, x_BSD: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        globals_, frames = layout.split(x_BSD)
        prompts = self.prompts.expand(*frames.shape[:2], -1, -1)
        return layout.join(globals_, torch.cat([frames[:, :, :1], prompts, frames[:, :, 1:]], 2))

    def after(self, x_BSD: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        globals_, frames = layout.split(x_BSD)
        return layout.join(globals_, torch.cat([frames[:, :, :1], frames[:, :, 1 + len(self.prompts) :]], 2))


class Prompted(Tuner):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([FramePrompts(4, width) for _ in range(layers)])

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        return self.layers[index] if tower == "vision" else None


def main(steps: int = 10, videos: int = 8, frames: int = 4) -> list[float]:
    torch.manual_seed(0)
    model = clipreel.load("shapes-tiny", device="cpu")
    items = ShapesWorld().videos("train")[:videos]
    films = [torch.from_numpy(i.scene.render(model.preprocess.size, frames)) for i in items]
    pixels = torch.stack([model.preprocess(f) for f in films])
    texts = model.encode_text([i.captions[0] for i in items]).clone()  # a normal tensor, not one of inference mode
    tuner = Prompted(model.clip.config.vision.layers, model.clip.config.vision.width)
    optimiser = torch.optim.AdamW(tuner.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        vectors = normalize(model.clip.encode_video(pixels, tuner).mean(1), dim=1)
        scores = model.clip.logit_scale.exp() * texts @ vectors.T
        right = torch.arange(videos)
        loss = (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        print(f"step {step}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
