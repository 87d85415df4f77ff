"""Numbers for vectors that you already have, with the protocol they were made under. Usage: python examples/evaluate.py

Two videos have two captions each, and the first of them cannot be told from the second: the tie is counted as such.
"""

import torch
from torch.nn.functional import normalize

from clipreel.evaluation.metrics import Result, evaluate
from clipreel.evaluation.protocol import Stamp
from clipreel.evaluation.report import protocol, table


def main() -> Result:
    videos = normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), dim=1)
    texts = normalize(torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.0, 0.3], [0.8, 0.2, 0.0], [0.1, 1.0, 0.0]]), dim=1)
    text_to_video = torch.tensor([0, 0, 1, 2])
    result = evaluate(texts, videos, text_to_video, v2t="video", stamp=Stamp(split="three films", frames="8 uniform"))
    print(table({"my model": result}))
    print(protocol(result))
    return result


if __name__ == "__main__":
    main()
