"""The ids of the official tokenizer on real and nasty captions, and those of tokenizer.json where they differ."""

import json
from pathlib import Path

from clipreel.tokenizer import Tokenizer
from tests.parity.realdata import clip_vocabulary


def check(path: Path) -> None:
    folder = clip_vocabulary(path)
    openai = Tokenizer.from_files(folder)
    parts = Tokenizer.from_files(folder / "vocab.json")
    hf = Tokenizer.from_files(folder / "tokenizer.json", mode="hf")
    data = json.loads(path.read_text("utf-8"))
    assert (openai.sot, openai.eot, openai.vocab_size) == (data["sot"], data["eot"], data["vocab_size"])
    assert data["cases"]
    wrong = []
    for case in data["cases"]:
        text = case["text"]
        if openai.encode(text) != case["encode"] or parts.encode(text) != case["encode"]:
            wrong.append(("encode", text))
        for n in (77, 32):
            rule = [data["sot"], *case["encode"][: n - 2], data["eot"]]
            wanted = case.get(f"ids_{n}", rule)
            if openai([text], n)[0].tolist() != wanted + [0] * (n - len(wanted)):
                wrong.append((f"ids_{n}", text))
        wanted = case.get("hf_ids_77", case.get("ids_77", [data["sot"], *case["encode"][:75], data["eot"]]))
        if hf([text], 77)[0].tolist() != wanted + [0] * (77 - len(wanted)):
            wrong.append(("hf_ids_77", text))
    assert not wrong, f"{len(wrong)} of {len(data['cases'])} cases differ: {wrong[:5]}"
