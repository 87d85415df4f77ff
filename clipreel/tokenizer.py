"""CLIP's byte-pair tokens from either vocabulary source, exactly as OpenAI's code or as transformers makes them.

Specification core.md 2; checked on the fixtures of openai/CLIP and of tokenizer.json. Mode "openai" (default) cleans
with ftfy as the official tokenizer does; mode "hf" does what tokenizer.json says. They differ on mojibake, HTML
entities, ligatures and the like, so results name the mode. Letters that are younger than the Unicode tables of
`tokenizers` may be split otherwise than by the tables of `regex`, which the official code uses.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import regex
import torch
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as BPE
from torch import Tensor

from clipreel.errors import ClipreelError

START, END = "<|startoftext|>", "<|endoftext|>"
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
MERGES_USED = 49152 - 256 - 2  # OpenAI reads this many merges of its file and ignores the rest
MODES = ("openai", "hf")
# text on which cleaning is known to do nothing but collapse blanks and lower the case
PLAIN_ASCII = re.compile(r"[\t\n\x20-\x25\x27-\x7e]*")
specials = regex.compile(rf"{re.escape(START)}|{re.escape(END)}", regex.IGNORECASE)
with_specials = regex.compile(f"{specials.pattern}|{PIECES}", regex.IGNORECASE)


def clean(text: str) -> str:
    """What OpenAI's tokenizer does to a text before it looks at words."""
    if not PLAIN_ASCII.fullmatch(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


class Tokenizer:
    """Texts to ids. `sot` and `eot` are the ids of the start and end token.

    >>> from clipreel.retriever import BUILT_IN
    >>> Tokenizer.from_files(BUILT_IN["shapes-tiny"])(["a red circle"], context=6).shape
    torch.Size([1, 6])
    """

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], hf_spec: str | None, mode: str) -> None:
        if mode not in MODES:
            raise ClipreelError(f"tokenizer mode {mode!r}: allowed are {', '.join(MODES)}")
        if mode == "hf" and hf_spec is None:
            raise ClipreelError("tokenizer mode 'hf' needs tokenizer.json; vocab and merges alone give mode 'openai'")
        for special in (START, END):
            if special not in vocab:
                raise ClipreelError(f"the vocabulary has no token {special}; is it a CLIP vocabulary?")
        self.mode, self.vocab_size = mode, len(vocab)
        self.sot, self.eot = vocab[START], vocab[END]
        # a list, because the order of merges is their rank
        self._identity = json.dumps([mode, sorted(vocab.items(), key=lambda kv: kv[1]), merges])
        self._hf_spec = hf_spec
        if mode == "hf":
            self._bpe = BPE.from_str(hf_spec or "")
            self._bpe.no_truncation()
            self._bpe.no_padding()
        else:
            self._bpe = BPE(models.BPE(vocab, merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
            self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(f"(?i:{PIECES})"), behavior="removed", invert=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )

    @classmethod
    def from_files(cls, source: str | Path, mode: str = "openai") -> Tokenizer:
        """The tokenizer of a folder or file: tokenizer.json, vocab.json + merges.txt, or OpenAI's bpe_*.txt.gz."""
        path = find_vocabulary(Path(source))
        if path is None:
            raise ClipreelError(
                f"no vocabulary at {source}: expected tokenizer.json, vocab.json with merges.txt, or "
                "bpe_simple_vocab_16e6.txt.gz"
            )
        try:
            if path.name.endswith(".gz"):
                return cls(*read_openai(path), None, mode)
            if path.name == "vocab.json":
                vocab = json.loads(path.read_text("utf-8"))
                return cls(vocab, read_merges(path.with_name("merges.txt").read_text("utf-8")), None, mode)
            spec = path.read_text("utf-8")
            model = json.loads(spec)["model"]
            merges = [pair(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
            return cls(model["vocab"], merges, spec, mode)
        except ClipreelError:
            raise
        except Exception as e:  # gzip, json and tokenizers each have their own types for a damaged file
            raise ClipreelError(f"{path} is not a readable CLIP vocabulary ({e}); fetch it again") from e

    @cached_property
    def fingerprint(self) -> str:
        """Identity of vocabulary, merges and mode."""
        return hashlib.blake2b(self._identity.encode(), digest_size=8).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the vocabulary in the layout of transformers: tokenizer.json where it came so, else its two files."""
        if self._hf_spec is not None:
            (folder / "tokenizer.json").write_text(self._hf_spec, "utf-8")
            return
        _, vocab, merges = json.loads(self._identity)
        (folder / "vocab.json").write_text(json.dumps(dict(vocab), ensure_ascii=False), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")

    def encode(self, text: str, *, strip_special: bool = False) -> list[int]:
        """The ids of a text without start and end token, not cut. `strip_special`: see `__call__`."""
        if self.mode == "hf":
            text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text
            text = specials.sub(" ", text) if strip_special else text
            return self._bpe.encode(text, add_special_tokens=False).ids
        text = clean(text)
        if strip_special:  # after cleaning, which can make special tokens of entities and wide characters
            text = specials.sub(" ", text)
        if START not in text and END not in text:
            return self._bpe.encode(text).ids
        ids: list[int] = []
        for piece in with_specials.findall(text):  # OpenAI's pattern decides where a literal special token counts
            ids += [{START: self.sot, END: self.eot}[piece]] if piece in (START, END) else self._bpe.encode(piece).ids
        return ids

    def __call__(self, texts: Sequence[str], context: int = 77, *, strip_special: bool = False) -> Tensor:
        """Ids (N, context) int64: start, text, end, then zeros. A longer text is cut and still ends with the end token.

        `strip_special` takes literal start and end tokens out of the texts, where they would cut a user's query.
        """
        if isinstance(texts, str):
            raise TypeError("a tokenizer takes a list of texts; put the single text in a list")
        if context < 2:
            raise ValueError(f"context {context}: at least 2, for the start and the end token")
        ids = torch.zeros(len(texts), context, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            words = [self.sot, *self.encode(text, strip_special=strip_special)[: context - 2], self.eot]
            row[: len(words)] = torch.tensor(words)
        return ids


def find_vocabulary(path: Path) -> Path | None:
    """The vocabulary file that a path means or a folder contains."""
    if path.is_file():
        return path
    if not path.is_dir():
        return None
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return path / "vocab.json"
    return next(iter(sorted(path.glob("bpe_*.txt.gz"))), None)


def read_merges(text: str) -> list[tuple[str, str]]:
    lines = text.split("\n")
    return [pair(line.split()) for line in lines[1:] if line.strip()]  # the first line is a header


def pair(parts: Sequence[str]) -> tuple[str, str]:
    """One merge; ValueError where it is not of two symbols."""
    first, second = parts
    return first, second


def read_openai(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of OpenAI's file: byte symbols, the same at a word's end, merges, start, end."""
    merges = read_merges(gzip.decompress(path.read_bytes()).decode("utf-8"))[:MERGES_USED]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges
