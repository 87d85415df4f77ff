"""Tokens of a small made vocabulary in every file form; the real one is checked by the parity fixtures."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clipreel.errors import ClipreelError
from clipreel.retriever import BUILT_IN
from clipreel.tokenizer import END, START, Tokenizer, clean, read_openai, with_specials

MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]


def files(folder: Path) -> Path:
    lines = ["#version: made", *(" ".join(m) for m in MERGES)]
    (folder / "bpe_made.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    vocab, _ = read_openai(folder / "bpe_made.txt.gz")
    other = folder / "hf"
    other.mkdir()
    (other / "vocab.json").write_text(json.dumps(vocab))
    (other / "merges.txt").write_text("\n".join(lines))
    return folder


def test_both_vocabulary_sources_agree(tmp_path: Path) -> None:
    folder = files(tmp_path)
    a, b = Tokenizer.from_files(folder), Tokenizer.from_files(folder / "hf")
    assert a.vocab_size == 512 + len(MERGES) + 2
    assert (a.sot, a.eot) == (a.vocab_size - 2, a.vocab_size - 1)
    for text in ("The red cat", "the  the\tthecat's", "déjà vu 12!?", "", "  ", "漢字 🙂"):
        assert a.encode(text) == b.encode(text)
    assert a.encode("the RED cat") == [513, 517, 515]
    assert a.fingerprint == b.fingerprint


def test_ids_are_cut_padded_and_end_with_the_end(tmp_path: Path) -> None:
    t = Tokenizer.from_files(files(tmp_path))
    ids = t(["the cat", "", "the " * 50], context=6)
    assert ids[0].tolist() == [t.sot, 513, 515, t.eot, 0, 0]
    assert ids[1].tolist() == [t.sot, t.eot, 0, 0, 0, 0]
    assert ids[2].tolist() == [t.sot, 513, 513, 513, 513, t.eot]
    with pytest.raises(ValueError, match="at least 2"):
        t(["x"], context=1)


def test_literal_special_tokens_are_kept_for_parity_and_stripped_for_users(tmp_path: Path) -> None:
    t = Tokenizer.from_files(files(tmp_path))
    text = f"the {END} cat {START}"
    assert t.encode(text) == [513, t.eot, 515, t.sot]
    assert t([text], 8, strip_special=True)[0].tolist()[:4] == [t.sot, 513, 515, t.eot]
    # also where only cleaning makes a special token of it
    for same in (text.upper(), text.replace("<", "&amp;lt;"), text.replace("<", "\uff1c").replace(">", "\uff1e")):
        assert t([same], 8, strip_special=True)[0].tolist()[:4] == [t.sot, 513, 515, t.eot], same
    hf = Tokenizer.from_files(BUILT_IN["shapes-tiny"], mode="hf")
    assert hf([f"a {END} red circle"], 8, strip_special=True)[0].tolist() == hf(["a red circle"], 8)[0].tolist()


def test_any_string_is_a_query() -> None:
    for mode in ("openai", "hf"):
        t = Tokenizer.from_files(BUILT_IN["shapes-tiny"], mode=mode)
        for text in (
            "",
            " \n\t",
            "\0\x1b[31m\x7f",
            "\udcff half a pair",
            "\ud83d\ude42",
            "a " * 10_000,
            "\ufeff\u200b",
        ):
            ids = t([text], 12, strip_special=True)[0].tolist()
            assert ids[0] == t.sot
            assert ids.count(t.eot) == 1
    with pytest.raises(TypeError, match="in a list"):
        t("a red circle")


@given(st.text(st.characters(max_codepoint=0x2FF) | st.sampled_from("'<>|&;’ﬁ 12\n"), max_size=30))
@settings(max_examples=300, deadline=None)
def test_pieces_are_those_of_the_official_pattern(text: str) -> None:
    t = Tokenizer.from_files(BUILT_IN["shapes-tiny"])
    pieces = with_specials.findall(clean(text))
    assume(all(clean(piece) == piece for piece in pieces))  # lower-case letters can look like mojibake again
    assert t.encode(text) == [i for piece in pieces for i in t.encode(piece)]


def test_cleaning() -> None:
    assert clean("  A  Red\n CAT ") == "a red cat"
    assert clean("fish &amp;amp; chips") == "fish & chips"
    assert clean("schÃ¶n") == "schön"


def test_the_built_in_model_has_a_token_for_each_of_its_words() -> None:
    for mode in ("openai", "hf"):
        t = Tokenizer.from_files(BUILT_IN["shapes-tiny"], mode=mode)
        assert len(t.encode("a small red circle moves to the left")) == 8
        assert t.eot == t.vocab_size - 1
        assert len(t.encode("zebra 漢字 Ünïcödé")) > 5


def test_wrong_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ClipreelError, match=r"expected tokenizer\.json"):
        Tokenizer.from_files(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ClipreelError, match="not a readable CLIP vocabulary"):
        Tokenizer.from_files(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "merges": []}}')
    with pytest.raises(ClipreelError, match="has no token"):
        Tokenizer.from_files(tmp_path)
    start, end = f'"{START}": 0', f'"{END}": 1'
    (tmp_path / "tokenizer.json").write_text(f'{{"model": {{"vocab": {{{start}, {end}}}, "merges": ["a b"]}}}}')
    with pytest.raises(ClipreelError, match=r"not a readable CLIP vocabulary .*out of vocabulary"):
        Tokenizer.from_files(tmp_path)
    packed = gzip.compress(b"#version: made\n" + b"a b\n" * 100)
    (tmp_path / "bpe_made.txt.gz").write_bytes(packed[:30])
    with pytest.raises(ClipreelError, match="not a readable CLIP vocabulary"):
        Tokenizer.from_files(tmp_path / "bpe_made.txt.gz")
    folder = tmp_path / "x"
    folder.mkdir()
    with pytest.raises(ClipreelError, match=r"needs tokenizer\.json"):
        Tokenizer.from_files(files(folder), mode="hf")
