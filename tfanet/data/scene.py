"""Scenes of the synthetic dataset: which things stand where."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["COLOURS", "FEW", "MANY", "SHAPES", "Crowd", "Scene", "Thing", "make_scene"]

# Each colour is any mixture of its three anchors, so no exact value gives a name away.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (200, 30, 35), (225, 60, 55)),
    "green": ((0, 255, 0), (0, 128, 0), (60, 165, 70)),
    "blue": ((0, 0, 255), (40, 90, 215), (30, 50, 150)),
    "yellow": ((255, 255, 0), (240, 215, 40), (250, 235, 90)),
    "orange": ((255, 165, 0), (245, 125, 20), (250, 145, 50)),
    "purple": ((128, 0, 128), (150, 70, 190), (110, 40, 150)),
    "white": ((255, 255, 255), (240, 240, 240), (250, 248, 240)),
    "black": ((0, 0, 0), (35, 35, 35), (25, 25, 40)),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
# Radius of the circle around a thing, as a share of the picture's shorter side.
_RADII = {"small": (0.125, 0.15), "large": (0.195, 0.23)}


@dataclass(frozen=True)
class Thing:
    """One object: its three attributes, its centre (x, y) and radius in pixels, its rotation."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    def outline(self) -> np.ndarray:
        """Corners in pixels, (n, 2) float64, clockwise on the screen."""
        if self.shape == "circle":
            turns, radii = np.arange(40) / 40, np.ones(40)
        elif self.shape == "star":
            turns, radii = np.arange(10) / 10, np.where(np.arange(10) % 2, 0.46, 1.0)
        elif self.shape == "cross":
            arm, far = 0.36, math.sqrt(1 - 0.36**2)
            turn = math.atan2(arm, far) / (2 * math.pi)
            offsets = np.array([-turn, turn, 0.125])
            turns = (np.arange(4)[:, None] / 4 + offsets).ravel()
            radii = np.tile([1.0, 1.0, arm * math.sqrt(2)], 4)
        else:
            corners = {"triangle": 3, "square": 4}[self.shape]
            start = 0.125 if self.shape == "square" else 0.0
            turns, radii = start + np.arange(corners) / corners, np.ones(corners)
        angles = 2 * math.pi * turns - math.pi / 2 + self.angle
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.array([self.x, self.y]) + self.radius * radii[:, None] * unit


@dataclass(frozen=True)
class Scene:
    """A picture's size in pixels and the things in it; no two of them touch."""

    width: int
    height: int
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Crowd:
    """How many things there are, and what they have in common: numbers and their shares."""

    numbers: tuple[int, ...]
    shares: tuple[float, ...]
    common: tuple[float, float, float]  # of a colour, of a shape, of nothing


# A common colour leaves the shape to tell things apart, the harder of the two to see.
FEW = Crowd((2, 3, 4), (0.15, 0.45, 0.4), (0.4, 0.1, 0.5))
# For sentences that mean several of them.
MANY = Crowd((3, 4, 5), (0.35, 0.45, 0.2), (0.15, 0.15, 0.7))


def make_scene(rng: np.random.Generator, crowd: Crowd = FEW) -> Scene:
    """So many things, of one colour, of one shape, or of a mixture; fewer where none finds room."""
    width, height = (int(n) for n in rng.integers(136, 193, size=2))
    side = min(width, height)
    wanted = int(rng.choice(crowd.numbers, p=crowd.shares))
    common = str(rng.choice(["colour", "shape", "nothing"], p=crowd.common))
    things: list[Thing] = []
    for _ in range(60):
        if len(things) == wanted:
            break
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
        size = "small" if rng.random() < 0.5 else "large"
        if things and common == "colour":
            left = sorted(set(SHAPES) - {t.shape for t in things})
            shape, colour = str(rng.choice(left)), things[0].colour
            size = things[0].size if rng.random() < 0.5 else size
        elif things and common == "shape":
            shape = things[0].shape
        elif things:
            model = things[int(rng.integers(len(things)))]
            share = rng.random()
            shape = model.shape if share < 0.35 else shape
            colour = model.colour if share < 0.15 or 0.35 <= share < 0.60 else colour
        radius = rng.uniform(*_RADII[size]) * side
        # A circle of equal radius covers far more than a star: bring the areas nearer.
        radius *= {"circle": 0.88, "star": 1.12}.get(shape, 1.0)
        margin = radius + 2
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if all(math.hypot(x - t.x, y - t.y) > radius + t.radius + 3 for t in things):
            # A square on its corner would be called a diamond.
            tilt = {"square": 0.26, "triangle": 0.5, "cross": 0.3}.get(shape, 0.6)
            angle = 0.0 if rng.random() < 0.4 else rng.uniform(-tilt, tilt)
            things.append(Thing(shape, colour, size, x, y, radius, angle))
    return Scene(width, height, tuple(things))
