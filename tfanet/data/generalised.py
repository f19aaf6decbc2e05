"""Sentences of the generalised dataset: for one thing of a scene, for several, for none.

Every sentence is checked against the whole scene before it is used: it means exactly its targets,
and no thing is near the line that decides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np

from tfanet.data.scene import COLOURS, SHAPES, Scene, Thing
from tfanet.data.sentences import SIDES, Head, describe, heads, with_article

__all__ = ["SHARES", "Meaning", "meanings"]

SHARES = {"one": 0.45, "several": 0.35, "none": 0.20}
_SENTENCES = 2  # at most, for the same targets
_SEVERAL = {"all": 0.45, "pair": 0.25, "except": 0.20, "side": 0.10}
_NONE = {"swapped": 0.35, "near": 0.20, "absent": 0.20, "plural": 0.15, "side": 0.10}
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
# A thing is on a side where it is this far from the middle, as a share of the picture.
_CLEAR = 0.08

# Indices of things, in order, and the sentences that mean them; no index: they mean nothing.
Meaning = tuple[tuple[int, ...], list[str]]
_Say = Callable[[np.random.Generator], str]
_Option = tuple[float, tuple[int, ...], _Say]  # weight, targets


def _fitting(head: Head, scene: Scene) -> tuple[int, ...]:
    return tuple(n for n, thing in enumerate(scene.things) if head.fits(thing))


def _along(thing: Thing, axis: tuple[int, int], scene: Scene) -> float:
    """How far a thing is from the middle in a direction, in shares of the picture."""
    return (thing.x / scene.width - 0.5) * axis[0] + (thing.y / scene.height - 0.5) * axis[1]


def _said_heads(scene: Scene) -> list[Head]:
    """All noun phrases that fit something in the scene, in a fixed order."""
    return list(dict.fromkeys(head for thing in scene.things for head in heads(thing)))


def _all(head: Head, number: int) -> _Say:
    """Every way to say that all things are meant that the head fits."""

    def say(rng: np.random.Generator) -> str:
        forms = ["all the {}", "all {}", "the {}", f"the {_NUMBERS[number]} {{}}"]
        if number == 2:
            forms += ["both {}", "both {}"]
        if not head.words:
            forms = ["all the {}", "everything"]
        elif rng.random() < 0.15:
            return f"every {head.say(rng)}"
        return str(rng.choice(forms)).format(head.say_several(rng))

    return say


def _several(scene: Scene) -> dict[str, list[_Option]]:
    """For each kind of sentence, every form of it that means two things or more."""
    found: dict[str, list[_Option]] = {kind: [] for kind in _SEVERAL}
    names: dict[int, list[Head]] = {}
    everything = range(len(scene.things))
    for head in _said_heads(scene):
        there = _fitting(head, scene)
        if len(there) == 1 and head.words:
            names.setdefault(there[0], []).append(head)
        if len(there) > 1:
            found["all"].append(((0.3, 2.0, 1.0, 0.3)[head.words], there, _all(head, len(there))))
        rest = tuple(n for n in everything if n not in there)
        if len(rest) > 1 and head.words in (1, 2):

            def but(rng: np.random.Generator, h: Head = head, one: bool = len(there) == 1) -> str:
                start = rng.choice(["everything but", "everything except", "all things but"])
                return f"{start} the {h.say(rng) if one else h.say_several(rng)}"

            found["except"].append((1 / head.words, rest, but))
        for axis, _, phrases in SIDES.values():
            on, off = _divided(there, axis, scene)
            # Without one elsewhere the place would only be added to "all".
            if len(on) > 1 and off and len(on) + len(off) == len(there) and head.size is None:

                def beside(rng: np.random.Generator, h: Head = head, p: str = phrases[0]) -> str:
                    start = rng.choice(["the", "all the", "all"])
                    return f"{start} {h.say_several(rng)} {p}"

                found["side"].append((1.0, on, beside))
    for a, b in combinations(sorted(names), 2):
        for first, second in product(names[a], names[b]):

            def pair(rng: np.random.Generator, one: Head = first, two: Head = second) -> str:
                said = [f"the {one.say(rng)}", f"the {two.say(rng)}"]
                return " and ".join(said[:: int(rng.choice([1, -1]))])

            found["pair"].append((1 / (first.words * second.words), (a, b), pair))
    return found


def _divided(
    indices: Sequence[int], axis: tuple[int, int], scene: Scene
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those clearly on the side of the axis, and those clearly not."""
    place = {n: _along(scene.things[n], axis, scene) for n in indices}
    on = tuple(n for n in indices if place[n] > _CLEAR)
    return on, tuple(n for n in indices if place[n] < 0)


def _none(scene: Scene) -> dict[str, list[_Say]]:
    """For each kind of sentence, every form of it that means nothing in the scene."""
    found: dict[str, list[_Say]] = {kind: [] for kind in _NONE}
    sizes, colours = (None, "small", "large"), (None, *COLOURS)
    things = scene.things
    for head in map(Head, *zip(*product(sizes, colours, (None, *SHAPES)), strict=True)):
        if not head.words or _fitting(head, scene):
            continue
        size, colour = Head(head.size, None, None), Head(None, head.colour, None)
        said = [p for p in (size, colour, Head(None, None, head.shape)) if p.words]
        # The most that one thing has of what is said; and how much of it is in the scene at all.
        nearest = max(sum(part.fits(thing) for part in said) for thing in things)
        present = sum(any(map(part.fits, things)) for part in said)
        if head.size is None and head.words == 2 and present == 2:
            kind = "swapped"
        elif head.words > 1 and nearest == head.words - 1:
            kind = "near"
        elif head.size is None and not present:
            kind = "absent"
        else:
            continue
        found[kind].append(lambda rng, h=head: with_article(h.say, rng))  # type: ignore[misc]
        if head.size is None:

            def plural(rng: np.random.Generator, h: Head = head) -> str:
                return f"{rng.choice(['all the', 'all', 'the', 'the two'])} {h.say_several(rng)}"

            found["plural"].append(plural)
    for head in _said_heads(scene):
        there = _fitting(head, scene)
        for axis, _, phrases in SIDES.values():
            elsewhere = all(_along(things[n], axis, scene) < -_CLEAR for n in there)
            if head.words and head.size is None and elsewhere:
                found["side"].append(
                    lambda rng, h=head, p=phrases[0]: f"{with_article(h.say, rng)} {p}"  # type: ignore[misc]
                )
    return found


def _kinds(
    options: dict[str, list[_Option]] | dict[str, list[_Say]],
    shares: dict[str, float],
    rng: np.random.Generator,
) -> Iterator[str]:
    """Kinds that have options, drawn by their shares, for as long as is asked."""
    kinds = [kind for kind in shares if options[kind]]
    weights = np.array([shares[kind] for kind in kinds])
    while kinds:
        yield kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]


def _drawn(options: list[_Option], rng: np.random.Generator) -> tuple[tuple[int, ...], _Say]:
    weights = np.array([weight for weight, *_ in options])
    return options[int(rng.choice(len(options), p=weights / weights.sum()))][1:]


def _mean_several(
    scene: Scene, taken: set[tuple[int, ...]], rng: np.random.Generator
) -> Meaning | None:
    found = {k: [o for o in v if o[1] not in taken] for k, v in _several(scene).items()}
    kind = next(_kinds(found, _SEVERAL, rng), None)
    if kind is None:
        return None
    targets, say = _drawn(found[kind], rng)
    same = {k: [o for o in v if o[1] == targets] for k, v in found.items()}
    sentences = [say(rng)]
    for kind, _ in zip(_kinds(same, _SEVERAL, rng), range(_SENTENCES - 1), strict=False):
        sentences.append(_drawn(same[kind], rng)[1](rng))
    return targets, list(dict.fromkeys(sentences))


def meanings(scene: Scene, kinds: Sequence[str], rng: np.random.Generator) -> list[Meaning] | None:
    """For each of `kinds` (of `SHARES`) different targets, with one or two sentences.

    None where the scene has not so many; what means nothing is said once.
    """
    found: list[Meaning] = []
    taken: set[tuple[int, ...]] = set()
    said: set[str] = set()
    for kind in kinds:
        meaning: Meaning | None = None
        if kind == "one":
            for index in rng.permutation(len(scene.things)):
                targets = (int(index),)
                if targets not in taken and meaning is None:
                    sentences = describe(scene, scene.things[index], 3, rng)[:_SENTENCES]
                    meaning = (targets, sentences) if sentences else None
        elif kind == "several":
            meaning = _mean_several(scene, taken, rng)
        else:
            options = _none(scene)
            drawn = zip(_kinds(options, _NONE, rng), range(_SENTENCES), strict=False)
            new = [options[k][int(rng.integers(len(options[k])))](rng) for k, _ in drawn]
            new = [sentence for sentence in dict.fromkeys(new) if sentence not in said]
            meaning = ((), new) if new else None
        if meaning is None:
            return None
        taken.add(meaning[0])
        said.update(meaning[1])
        found.append(meaning)
    return found
