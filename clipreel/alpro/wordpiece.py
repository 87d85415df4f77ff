"""BERT's WordPiece tokens from vocab.txt or tokenizer.json, as the `tokenizers` library makes them.

Specification alpro.md 3 and 4: [CLS] text [SEP], then padding 0; a longer text is cut and still ends with [SEP].
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Words
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from clipreel.alpro.bert import PAD
from clipreel.errors import ClipreelError
from clipreel.tokenizer import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
literal = re.compile("|".join(map(re.escape, SPECIAL)), re.IGNORECASE)
FILES = ("tokenizer.json", "vocab.txt")


class WordPiece(Tokenizer):
    """Texts to ids; `sot`, `eot`, `mask`, `unknown` are the ids of [CLS], [SEP], [MASK], [UNK].

    >>> WordPiece.of_words(["a red dog"])(["a red cat"], context=6).tolist()
    [[2, 5, 7, 1, 3, 0]]
    """

    def __init__(self, spec: str) -> None:
        try:
            data = json.loads(spec)
            vocab: dict[str, int] = data["model"]["vocab"]
            wrong = data["model"].get("type", "WordPiece") != "WordPiece"
            self._bpe = Words.from_str(spec)
        except Exception as e:  # json and tokenizers each have their own types for a damaged file
            raise ClipreelError(f"no readable tokenizer.json ({str(e)[:120]}); fetch it again") from e
        missing = [s for s in SPECIAL if s not in vocab]
        if wrong or missing or vocab["[PAD]"] != PAD:
            what = f"it has no {missing[0]}" if missing else "it is of another kind, or its [PAD] is not 0"
            raise ClipreelError(f"this is no WordPiece vocabulary of BERT: {what}; take that of bert-base-uncased")
        self._bpe.no_truncation()
        self._bpe.no_padding()
        self.unknown, self.sot, self.eot, self.mask = (vocab[s] for s in SPECIAL[1:])
        self.special = tuple(sorted(vocab[s] for s in SPECIAL))
        self.mode, self.vocab_size, self.spec = "wordpiece", max(vocab.values()) + 1, spec
        self._identity = json.dumps([self.mode, data["model"], data.get("normalizer"), data.get("pre_tokenizer")])

    @classmethod
    def of_vocabulary(cls, tokens: Sequence[str], lowercase: bool = True) -> WordPiece:
        """The tokenizer of a list of tokens in order of their ids, made as BERT's."""
        vocab = {token: i for i, token in enumerate(tokens)}
        made = Words(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return cls(made.to_str())

    @classmethod
    def of_words(cls, texts: Iterable[str]) -> WordPiece:
        """A vocabulary of whole words of these texts, the frequent first: for models trained from nothing."""
        split = pre_tokenizers.BertPreTokenizer()
        found = Counter(w for text in texts for w, _ in split.pre_tokenize_str(text.lower()))
        words = sorted(found, key=lambda w: (-found[w], w))
        return cls.of_vocabulary([*SPECIAL, *words])

    @classmethod
    def from_files(cls, source: str | Path, mode: str = "wordpiece") -> WordPiece:
        """The tokenizer of a folder or file: tokenizer.json or vocab.txt. Only bert-base-cased keeps capitals, and a
        vocab.txt does not say so; vocabularies with capitals are taken for cased."""
        path = Path(source)
        if path.is_dir():
            path = next((path / f for f in FILES if (path / f).is_file()), path)
        if not path.is_file():
            raise ClipreelError(
                f"no vocabulary of BERT at {source}: expected {' or '.join(FILES)} of bert-base-uncased"
            )
        try:
            text = path.read_text("utf-8")
        except (OSError, ValueError) as e:
            raise ClipreelError(f"{path} cannot be read as UTF-8 ({e}); fetch it again") from e
        if path.suffix == ".json":
            return cls(text)
        tokens = text.removesuffix("\n").split("\n")
        cased = any(t != t.lower() for t in tokens if t not in SPECIAL)
        return cls.of_vocabulary(tokens, lowercase=not cased)

    def save(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text(self.spec, "utf-8")

    def encode(self, text: str, *, strip_special: bool = False) -> list[int]:
        """The ids of a text without [CLS] and [SEP], not cut. `strip_special` takes literal special tokens out."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text
        text = literal.sub(" ", text) if strip_special else text
        return self._bpe.encode(text, add_special_tokens=False).ids

    def __call__(self, texts: Sequence[str], context: int = 40, *, strip_special: bool = False) -> Tensor:
        """Ids (N, context) int64: [CLS], text, [SEP], padding."""
        return super().__call__(texts, context, strip_special=strip_special)
