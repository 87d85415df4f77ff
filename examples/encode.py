"""A video and texts to vectors, and how well they match. Usage: python examples/encode.py VIDEO TEXT ..."""

import sys

import torch

import clipreel
from clipreel.video.decode import read_frames


def main(video: str, *texts: str, source: str = "shapes-tiny") -> torch.Tensor:
    model = clipreel.load(source)  # or "openai/clip-vit-base-patch32", a folder, a file
    frames = read_frames(video, model.sampling)  # uint8 pixels and the second at which each is shown
    vector = model.encode_video(model.preprocess(frames.pixels)[None])  # (1, E), length one
    cosines = (model.encode_text(texts) @ vector.T)[:, 0]
    for cosine, text in sorted(zip(cosines.tolist(), texts, strict=True), reverse=True):
        print(f"{cosine:.3f}  {text}")
    return cosines


if __name__ == "__main__":
    main(*sys.argv[1:])
