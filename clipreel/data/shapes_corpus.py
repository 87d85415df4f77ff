"""Captions to mine entities from: those of the shapes world among sentences about things that no film shows.

A vocabulary of nouns from the web is mostly of things that a given video does not hold. So it is here: the shapes are
the most frequent nouns, and the further down the list one goes, the more of the words are never seen.
"""

from __future__ import annotations

from random import Random

from clipreel.data.shapes import ShapesWorld

NOUNS = """
dog cat horse bird fish cow sheep goat duck hen rabbit mouse frog bee spider lion tiger bear wolf fox monkey
elephant camel snake whale shark turtle man woman boy girl baby child friend teacher doctor nurse farmer driver
cook singer dancer painter writer player runner swimmer rider pilot sailor soldier king queen crowd team band
house door window wall roof floor room kitchen garden street road bridge tower castle church school shop market
office station airport harbour farm field forest tree flower leaf grass bush river lake sea beach island mountain
hill valley desert cave rock stone sand snow ice rain cloud sky sun storm fire smoke car bus truck train plane
boat ship bicycle tractor wagon wheel engine rope chain hammer knife fork spoon plate bowl cup bottle glass pot
pan oven table chair bed sofa lamp mirror clock phone camera computer radio book paper pen letter map box bag
basket coat hat shirt dress shoe glove scarf button needle thread bread cheese butter egg milk tea soup cake apple
orchard lemon grape berry carrot onion potato tomato bean rice salt sugar honey guitar piano drum violin flute
ball bat net kite doll puppet swing ladder fence gate path tent flag candle lantern
""".split()  # noqa: SIM905
SENTENCES = (
    "there is {a} {noun}",
    "one can see {a} {noun}",
    "here is the {noun}",
    "a picture with {a} {noun}",
    "somebody looks at the {noun}",
    "{a} {noun} is here",
)
MOST, LEAST = 400, 2  # sentences about the first noun (divided by its place), and about the last


def corpus(world: ShapesWorld, seed: int = 0) -> list[str]:
    """The training captions and, for every noun of the list, sentences that get fewer down the list; in random order.

    >>> from clipreel.data.entities import mine
    >>> {"circle", "star"} < {word for word, _ in mine(corpus(ShapesWorld()), 10, "places")}
    True
    """
    rng = Random(f"{seed}/corpus")
    found = [caption for item in world.videos("train") for caption in item.captions]
    for place, noun in enumerate(NOUNS):
        a = "an" if noun[0] in "aeiou" else "a"
        count = max(LEAST, MOST // (place + 2))
        found += [rng.choice(SENTENCES).format(a=a, noun=noun) for _ in range(count)]
    rng.shuffle(found)
    return found
