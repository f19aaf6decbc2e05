"""Sentences of the synthetic datasets: what singles one thing of a scene out.

Every sentence is checked against the whole scene before it is used: exactly one thing fits it,
and no other thing is near the line that decides it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from tfanet.data.scene import Scene, Thing

__all__ = ["SIDES", "Head", "describe", "heads", "with_article"]

_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "big")}
_ANY_SHAPE = ("object", "shape", "thing")
_KINDS = {"name": 0.50, "place": 0.28, "relation": 0.12, "extent": 0.10}


@dataclass(frozen=True)
class Head:
    """A noun phrase without article: each attribute is a value or None for "not said"."""

    size: str | None
    colour: str | None
    shape: str | None

    @property
    def words(self) -> int:
        return sum(part is not None for part in (self.size, self.colour, self.shape))

    def fits(self, thing: Thing) -> bool:
        return (
            self.size in (None, thing.size)
            and self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
        )

    def say(self, rng: np.random.Generator, extent: str = "") -> str:
        size = str(rng.choice(_SIZE_WORDS[self.size])) if self.size else ""
        noun = self.shape or str(rng.choice(_ANY_SHAPE))
        return " ".join(word for word in (extent, size, self.colour, noun) if word)

    def say_several(self, rng: np.random.Generator) -> str:
        """In the plural."""
        phrase = self.say(rng)
        return f"{phrase}es" if phrase.endswith("s") else f"{phrase}s"


def heads(thing: Thing) -> Iterator[Head]:
    """All noun phrases that fit `thing`."""
    for size, colour, shape in product((0, 1), repeat=3):
        yield Head(
            thing.size if size else None,
            thing.colour if colour else None,
            thing.shape if shape else None,
        )


# True, False, or None where the case is too close to call.
_Test = Callable[[Thing], bool | None]


def _beyond(value: float, yes: float, no: float) -> bool | None:
    """True over `yes`, False under `no`, None between."""
    return True if value > yes else False if value < no else None


def _only(target: Thing, rivals: list[Thing], test: _Test) -> bool:
    return test(target) is True and all(test(other) is False for other in rivals)


# The direction, words between two things, words after one.
SIDES: dict[str, tuple[tuple[int, int], tuple[str, ...], tuple[str, ...]]] = {
    "left": ((-1, 0), ("left of", "to the left of"), ("on the left", "at the left")),
    "right": ((1, 0), ("right of", "to the right of"), ("on the right", "at the right")),
    "top": ((0, -1), ("above", "over"), ("at the top", "on top")),
    "bottom": ((0, 1), ("below", "under"), ("at the bottom",)),
}
_SUPERLATIVE = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "lowest"}


def _places(scene: Scene, target: Thing, rivals: list[Thing]) -> Iterator[tuple[str, str]]:
    """(phrase before the noun, phrase after it) for each place that singles the target out."""

    def u(thing: Thing) -> np.ndarray:
        return np.array([thing.x / scene.width, thing.y / scene.height]) - 0.5

    for side, (axis, _, phrases) in SIDES.items():
        here = float(u(target) @ axis)
        if all(here - float(u(other) @ axis) > 0.12 for other in rivals):
            if rivals:
                yield _SUPERLATIVE[side], ""
            if here > 0.06:
                for phrase in phrases:
                    yield "", phrase
    for (down, vertical), (right, horizontal) in product(
        ((-1, "top"), (1, "bottom")), ((-1, "left"), (1, "right"))
    ):

        def corner(thing: Thing, right: int = right, down: int = down) -> bool | None:
            return _beyond(float(min(u(thing) * (right, down))), 0.1, 0.0)

        if _only(target, rivals, corner):
            yield "", f"in the {vertical} {horizontal} corner"
            yield f"{vertical} {horizontal}", ""
    if _only(target, rivals, lambda t: _beyond(-float(np.hypot(*u(t))), -0.13, -0.24)):
        yield "", "in the middle"
        yield "", "in the center"


def _relations(scene: Scene, target: Thing, rivals: list[Thing]) -> Iterator[tuple[str, Thing]]:
    """(preposition, other thing) for each relation that only the target has."""
    size = np.array([scene.width, scene.height])
    for anchor, (axis, phrases, _) in product(scene.things, SIDES.values()):
        if anchor is target:
            continue

        def along(thing: Thing, axis: tuple[int, int] = axis, anchor: Thing = anchor) -> float:
            return float(((thing.x - anchor.x, thing.y - anchor.y) / size) @ axis)

        across = math.hypot(*((target.x - anchor.x, target.y - anchor.y) / size))
        others = [t for t in rivals if t is not anchor]
        # Mostly beside, not mostly above: the target lies within 55 degrees of the direction.
        if along(target) < 0.57 * across:
            continue
        if _only(target, others, lambda t, d=along: _beyond(d(t), 0.12, 0.0)):  # type: ignore[misc]
            for phrase in phrases:
                yield phrase, anchor


# A weight, and what makes the sentence when it is drawn.
_Option = tuple[float, Callable[[np.random.Generator], str]]


def _options(scene: Scene, target: Thing) -> dict[str, list[_Option]]:
    """For each kind of sentence, every form of it that fits `target` alone."""
    found: dict[str, list[_Option]] = {kind: [] for kind in _KINDS}
    names = {
        anchor: [h for h in heads(anchor) if sum(map(h.fits, scene.things)) == 1 and h.words]
        for anchor in scene.things
    }
    for head in heads(target):
        rivals = [t for t in scene.things if t is not target and head.fits(t)]
        if not rivals:
            weight = (0.3, 1.0, 2.0, 1.0)[head.words]
            found["name"].append((weight, lambda rng, h=head: h.say(rng)))  # type: ignore[misc]
        # With rivals the place or the relation decides; without, it only adds to the name.
        weight = (0.7, 1.0, 1.0, 0.5)[head.words] * (1.0 if rivals else 0.35)
        if head.size is None:
            for before, after in _places(scene, target, rivals):

                def place(
                    rng: np.random.Generator, h: Head = head, b: str = before, a: str = after
                ) -> str:
                    return f"{b} {h.say(rng)} {a}".strip()

                found["place"].append((weight, place))
        for phrase, anchor in _relations(scene, target, rivals):
            for name in names[anchor]:

                def relation(
                    rng: np.random.Generator, h: Head = head, p: str = phrase, n: Head = name
                ) -> str:
                    return f"{h.say(rng)} {p} the {n.say(rng)}"

                found["relation"].append((weight / name.words, relation))
        if rivals and head.size is None:
            radii = [t.radius for t in rivals]
            words: tuple[str, ...] = ()
            if target.radius > 1.3 * max(radii):
                words = ("largest", "biggest")
            elif 1.3 * target.radius < min(radii):
                words = ("smallest",)
            for word in words:
                found["extent"].append((1.0, lambda rng, h=head, w=word: h.say(rng, w)))  # type: ignore[misc]
    return found


def with_article(say: Callable[[np.random.Generator], str], rng: np.random.Generator) -> str:
    """What is said, more often than not with "the"."""
    return f"the {say(rng)}" if rng.random() < 0.7 else say(rng)


def describe(scene: Scene, target: Thing, count: int, rng: np.random.Generator) -> list[str]:
    """At most `count` different sentences that fit `target` alone; none where there is none."""
    found = _options(scene, target)
    kinds = [kind for kind, options in found.items() if options]
    if not kinds:
        return []
    shares = np.array([_KINDS[kind] for kind in kinds])
    sentences = []
    for index in rng.choice(len(kinds), size=count, p=shares / shares.sum()):
        options = found[kinds[int(index)]]
        weights = np.array([weight for weight, _ in options])
        say = options[int(rng.choice(len(options), p=weights / weights.sum()))][1]
        sentences.append(with_article(say, rng))
    return list(dict.fromkeys(sentences))
