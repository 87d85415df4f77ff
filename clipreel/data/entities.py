"""The most frequent nouns of captions, the vocabulary of ALPRO's prompter (specification alpro.md 1).

The authors' script is not released. With spaCy and one of its English models, words that it tags as nouns are counted;
without, nouns are found by where they stand: the only word between a determiner and a function word, the last one in
front of a verb, or the last one of a phrase behind a preposition. Such seeds then mark the nouns of longer phrases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clipreel.errors import ClipreelError

SPACY_MODELS = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg")


def listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = listed(
    "a an the one two three four five six seven eight nine ten some many several his her their its my our your this "
    "that these those another each every no any few both all"
)
PREPOSITIONS = listed(
    "of in on at to from with by for into onto over under behind beside near above below across through around along "
    "between against toward towards off out up down inside outside after before"
)
OTHER = listed(
    "and or but while as then than so if when where who which what how is are was were be being been am do does did "
    "has have had can could will would shall should may might must not it he she they we you i him them us me there "
    "here first very also"
)
SINGULAR = listed("a an one this that another each every")
SIDES = listed("left right top bottom middle center centre upper lower")  # of a picture: no entity
VERB = re.compile(r".{3,}(ing|[^siu]s)")  # behind a noun, which is singular where it is to end in s
SELDOM = re.compile(r".{3,}(ing|ly)")  # words that may close a phrase without being its noun; "ring" is short


def mine(captions: Sequence[str], most: int = 1000, tagger: str = "auto") -> list[tuple[str, int]]:
    """The `most` frequent nouns with their counts, equal counts in order of the alphabet.

    `tagger` is "spacy", "places" (by where words stand) or "auto", spaCy where it is installed with a model. Raises
    ClipreelError where no noun is found.
    """
    if tagger not in ("auto", "spacy", "places"):
        raise ClipreelError(f"tagger {tagger!r}: allowed are auto, spacy, places")
    if most < 1:
        raise ClipreelError(f"{most} entities: ask for at least 1")
    model = spacy_model() if tagger != "places" else None
    if model is None and tagger == "spacy":
        raise ClipreelError(
            f"spaCy is not installed with a model of English ({SPACY_MODELS[0]}); install both, or take --tagger places"
        )
    counts: Counter[str] = Counter(by_spacy(captions, model) if model is not None else by_places(captions))
    if not counts:
        raise ClipreelError(f"no noun was found in {len(captions)} captions; are they English sentences?")
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def spacy_model() -> Any:
    """A model of spaCy, None where there is none."""
    try:
        import spacy
    except ImportError:
        return None
    return next((spacy.load(name) for name in SPACY_MODELS if spacy.util.is_package(name)), None)


def by_spacy(captions: Iterable[str], model: Any) -> Iterator[str]:
    for doc in model.pipe(captions, disable=["ner", "parser"]):
        yield from (t.lemma_.lower() for t in doc if t.pos_ == "NOUN" and t.text.isalpha())


def by_places(captions: Sequence[str]) -> Iterator[str]:
    """Nouns of all captions, one for each phrase. A plural counts for its singular where that occurs too."""
    phrases = [phrase for caption in captions for phrase in noun_phrases(caption)]
    seeds = Counter(words[-1] for words, pure in phrases if pure)
    for words, pure in phrases:
        known = [w for w in words if seeds[singular(w, seeds)]]
        word = words[-1] if pure or not known else max(known, key=lambda w: (seeds[singular(w, seeds)], words.index(w)))
        if pure or known:
            yield singular(word, seeds)


def noun_phrases(caption: str) -> Iterator[tuple[list[str], bool]]:
    """(words, pure): what stands between a determiner and the next function word or verb, or the end of a sentence. It
    is pure, and so ends with a noun, where it is a single word, where a verb follows, and at the end of a sentence
    behind a preposition."""
    for sentence in re.split(r"[.,;:!?]", caption.lower()):
        words = re.findall(r"[a-z]+", sentence)
        for i, word in enumerate(words):
            if word not in DETERMINERS:
                continue
            rest = words[i + 1 :]
            stop = next((n for n, w in enumerate(rest) if w in DETERMINERS | PREPOSITIONS | OTHER), len(rest))
            behind = i > 0 and words[i - 1] in PREPOSITIONS and stop == len(rest)
            verb = next((n for n, w in enumerate(rest[:stop]) if n and is_verb(w, word)), None)
            phrase = [w for w in rest[: verb or stop] if len(w) > 1 and w not in SIDES]
            if phrase:
                yield phrase, bool(verb) or len(phrase) == 1 or (behind and not SELDOM.fullmatch(phrase[-1]))


def is_verb(word: str, determiner: str) -> bool:
    """Whether a word that is not the first behind a determiner is likely a verb: moving, or catches behind a dog."""
    return bool(VERB.fullmatch(word)) and (word.endswith("ing") or determiner in SINGULAR)


def singular(word: str, known: Counter[str]) -> str:
    for ending, repair in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and known[word.removesuffix(ending) + repair]:
            return word.removesuffix(ending) + repair
    return word


def write_entities(path: Path, found: Sequence[tuple[str, int]]) -> None:
    """One entity and its count on each line, the form that ALPRO's code reads. ClipreelError where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{word} {count}\n" for word, count in found), "utf-8")
    except OSError as e:
        raise ClipreelError(f"the vocabulary {path} cannot be written ({e.strerror}); give another --out") from e
