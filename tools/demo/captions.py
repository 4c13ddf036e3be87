"""Captions of the demo's clips: combinations, those that are held out, and wordings."""

from itertools import product
from typing import NamedTuple

import numpy as np
from world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

MAX_LENGTH = 32  # tokens, the end mark included
HELD_OUT_SEED = 17
HELD_OUT_COUNT = 11  # of the 108 triples of colour, shape and motion; each on every background


class Combination(NamedTuple):
    colour: str
    shape: str
    motion: str
    background: str


ATTRIBUTES = Combination._fields
VALUES = Combination(tuple(COLOURS), tuple(SHAPES), MOTIONS, tuple(BACKGROUNDS))


def _words(text: str) -> list[str]:
    return text.split(", ")


# Words outside the small world. The text encoder reads them, so that a later training can give
# them a meaning.
OTHER_WORDS = Combination(
    _words("white, black, gray, pink, cyan, brown, gold, silver, turquoise, crimson, striped"),
    _words(
        "cross, ring, star, heart, hexagon, pentagon, diamond, ellipse, rectangle, arrow, moon, "
        "cat, fish, house, letter, line, spiral"
    ),
    _words(
        "spins, bounces, stays still, jumps, wobbles, turns around, flies away, blinks, zigzags"
    ),
    _words("red, green, blue, yellow, purple, orange, brown, cyan, striped, starry, golden"),
)

# A name that is listed twice is used more often. The first name of a motion is the plain one.
_SHAPE_NAMES = {"circle": _words("circle, circle, disk"), "square": _words("square, square, box")}
_MOTION_NAMES = {
    "grows": _words("grows, grows, grows larger, gets bigger, gets larger, expands, is growing"),
    "shrinks": _words(
        "shrinks, shrinks, shrinks away, gets smaller, becomes smaller, is shrinking"
    ),
    "up": _words("moves up, moves up, goes up, moves upward, is moving up, rises, slides up"),
    "down": _words(
        "moves down, moves down, goes down, moves downward, is moving down, falls, slides down"
    ),
    "right": _words(
        "moves right, moves right, goes right, moves to the right, is moving right, "
        "slides right, drifts to the right, travels right"
    ),
    "left": _words(
        "moves left, moves left, goes left, moves to the left, is moving left, "
        "slides left, drifts to the left, travels left"
    ),
}
_SENTENCES = (
    "{a colour} {shape} {motion} on {a background} background",
    "{a colour} {shape} {motion} on {a background} background",
    "{a colour} {shape} {motion}, {background} background",
    "{colour} {shape} {motion}, {background} background",
    "the {colour} {shape} {motion} on {a background} background",
    "on {a background} background, {a colour} {shape} {motion}",
    "{background} background, {a colour} {shape} {motion}",
    "{a colour} {shape} {motion} in front of {a background} background",
    "{a colour} {shape} {motion} over {a background} backdrop",
    "{a background} background and {a colour} {shape} that {motion}",
)
_OPENINGS = (
    "a video of ",
    "a short clip: ",
    "an animation of ",
    "a simple animation where ",
    "we see ",
    "here, ",
)


def combinations() -> list[Combination]:
    """All 432 combinations."""
    return [Combination(*values) for values in product(*VALUES)]


def held_out_triples() -> set[tuple[str, str, str]]:
    """The colour, shape and motion triples that no training clip or caption shows.

    They are drawn from a fixed seed until every value is held out about equally often, so that
    each value is tested.
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    triples = list(product(VALUES.colour, VALUES.shape, VALUES.motion))
    while True:
        chosen = [
            triples[index] for index in rng.choice(len(triples), HELD_OUT_COUNT, replace=False)
        ]
        counts = [[sum(t[axis] == v for t in chosen) for v in VALUES[axis]] for axis in range(3)]
        if all(max(count) - min(count) <= 1 for count in counts):
            return set(chosen)


def split_combinations() -> tuple[list[Combination], list[Combination]]:
    """Splits the combinations into those to train on and those held out."""
    hidden = held_out_triples()
    seen = [c for c in combinations() if c[:3] not in hidden]
    return seen, [c for c in combinations() if c[:3] in hidden]


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def _fill(sentence: str, colour: str, shape: str, motion: str, background: str) -> str:
    words = {"colour": colour, "shape": shape, "motion": motion, "background": background}
    words |= {"a colour": _article(colour), "a background": _article(background)}
    return sentence.format_map(words)


def plain_caption(combination: Combination) -> str:
    """The plain caption, such as `a red circle moves right on a white background`."""
    motion = _MOTION_NAMES[combination.motion][0]
    return _fill(
        _SENTENCES[0], combination.colour, combination.shape, motion, combination.background
    )


def caption(combination: Combination, rng: np.random.Generator) -> str:
    """A random wording; in a quarter of the cases the plain caption."""
    if rng.random() < 0.25 and combination.motion in _MOTION_NAMES:
        return plain_caption(combination)
    shape = rng.choice(_SHAPE_NAMES.get(combination.shape, (combination.shape,)))
    motion = rng.choice(_MOTION_NAMES.get(combination.motion, (combination.motion,)))
    background = combination.background
    if background == "gray" and rng.random() < 0.3:
        background = "grey"
    text = _fill(rng.choice(_SENTENCES), combination.colour, shape, motion, background)
    if rng.random() < 0.25:
        text = rng.choice(_OPENINGS) + text
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.3 else "")


def with_other_words(combination: Combination, rng: np.random.Generator) -> Combination:
    """Replaces about a quarter of the words by words from outside the small world."""
    pairs = zip(combination, OTHER_WORDS, strict=True)
    return Combination(
        *(str(rng.choice(other)) if rng.random() < 0.25 else value for value, other in pairs)
    )
