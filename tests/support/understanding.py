"""What the sentences of the synthetic datasets mean, read by rules of their own.

Nothing here knows how the sentences were made.
"""

from __future__ import annotations

import math
import re

from tfanet.data.scene import COLOURS, SHAPES, Scene, Thing

ANY = ("object", "shape", "thing")
SIZES = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
RELATIONS = {
    "to the left of": (-1, 0),
    "left of": (-1, 0),
    "to the right of": (1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "over": (0, -1),
    "below": (0, 1),
    "under": (0, 1),
}
PLACES = {
    "leftmost": (-1, 0),
    "rightmost": (1, 0),
    "topmost": (0, -1),
    "lowest": (0, 1),
    "on the left": (-1, 0),
    "at the left": (-1, 0),
    "on the right": (1, 0),
    "at the right": (1, 0),
    "at the top": (0, -1),
    "on top": (0, -1),
    "at the bottom": (0, 1),
}


def named(phrase: str, things: tuple[Thing, ...]) -> list[Thing]:
    """All things that "[size] [colour] noun" fits."""
    *adjectives, noun = phrase.split()
    found = [t for t in things if noun in ANY or t.shape == noun]
    for word in adjectives:
        if word in SIZES:
            found = [t for t in found if t.size == SIZES[word]]
        else:
            assert word in COLOURS, phrase
            found = [t for t in found if t.colour == word]
    return found


def understood(sentence: str, scene: Scene) -> Thing:
    """The thing a reader of plain English would take, by the nearest plain meaning."""
    text = re.sub(r"^the ", "", sentence)
    for words, (dx, dy) in RELATIONS.items():
        if f" {words} the " in text:
            head, anchor_name = text.split(f" {words} the ")
            (anchor,) = named(anchor_name, scene.things)
            beyond = [
                t
                for t in named(head, scene.things)
                if t is not anchor
                and dx * (t.x - anchor.x) / scene.width + dy * (t.y - anchor.y) / scene.height > 0
            ]
            (found,) = beyond
            return found
    for vertical, horizontal in ((v, h) for v in ("top", "bottom") for h in ("left", "right")):
        corner = rf"^{vertical} {horizontal} | in the {vertical} {horizontal} corner$"
        if re.search(corner, text):
            right, down = horizontal == "right", vertical == "bottom"
            (found,) = [
                t
                for t in named(re.sub(corner, "", text), scene.things)
                if (t.x > scene.width / 2) == right and (t.y > scene.height / 2) == down
            ]
            return found
    for words in (" in the middle", " in the center"):
        if text.endswith(words):
            return min(
                named(text.removesuffix(words), scene.things),
                key=lambda t: math.hypot(t.x / scene.width - 0.5, t.y / scene.height - 0.5),
            )
    for words, (dx, dy) in PLACES.items():
        if text.startswith(f"{words} ") or text.endswith(f" {words}"):
            return max(
                named(text.replace(words, ""), scene.things),
                key=lambda t: dx * t.x / scene.width + dy * t.y / scene.height,
            )
    for word, sign in (("largest", 1), ("biggest", 1), ("smallest", -1)):
        if text.startswith(f"{word} "):
            return max(named(text.removeprefix(word), scene.things), key=lambda t: sign * t.radius)
    (found,) = named(text, scene.things)
    return found


NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
SIDES = {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1)}
SIDES |= {"at the left": (-1, 0), "at the right": (1, 0), "at the bottom": (0, 1)}


def singular(noun: str) -> str | None:
    """The noun that this is the plural of; None where it is no plural."""
    nouns = {f"{n}es" if n.endswith("s") else f"{n}s": n for n in (*SHAPES, *ANY)}
    return nouns.get(noun)


def beside(words: str, things: list[Thing], scene: Scene) -> list[Thing]:
    """Those of the things whose centre is in that half of the picture."""
    dx, dy = SIDES[words]
    return [
        t for t in things if dx * (t.x / scene.width - 0.5) + dy * (t.y / scene.height - 0.5) > 0
    ]


def meant(sentence: str, scene: Scene) -> set[Thing]:
    """All things that a reader of plain English would take; none where nothing fits."""
    everything = set(scene.things)
    if sentence == "everything":
        return everything
    if found := re.match(r"^(everything|all things) (but|except) the (.+)$", sentence):
        return everything - meant(f"the {found[3]}", scene)
    if found := re.match(r"^the (.+) and the (.+)$", sentence):
        one, two = meant(f"the {found[1]}", scene), meant(f"the {found[2]}", scene)
        assert len(one) == len(two) == 1, sentence
        return one | two
    if found := re.match(r"^every (.+)$", sentence):
        return set(named(found[1], scene.things))
    place = next((words for words in SIDES if sentence.endswith(f" {words}")), "")
    bare = sentence.removesuffix(f" {place}") if place else sentence
    *words, noun = bare.split()
    one = singular(noun)
    if one is not None:
        quantity = None
        while words and words[0] in ("all", "the", "both", *NUMBERS):
            word = words.pop(0)
            quantity = 2 if word == "both" else NUMBERS.get(word, quantity)
        things = named(" ".join([*words, one]), scene.things)
        things = beside(place, things, scene) if place else things
        # "The two stars" where there are three would name none of them, or all.
        assert quantity in (None, len(things)) or not things, sentence
        return set(things)
    fitting = named(re.sub("^the ", "", bare), scene.things) if is_name(bare) else None
    if fitting == [] or (fitting and place and not beside(place, fitting, scene)):
        return set()
    return {understood(sentence, scene)}


def is_name(phrase: str) -> bool:
    """Whether it says no more than size, colour and shape."""
    known = {"the", *SIZES, *COLOURS, *SHAPES, *ANY}
    return set(phrase.split()) <= known
