"""Draws a scene of the synthetic dataset: backgrounds, fills, outlines, noise, anti-aliasing."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tfanet.data.scene import COLOURS, Scene

__all__ = ["draw_scene"]


def _mixture(colour: str, rng: np.random.Generator) -> np.ndarray:
    """A float64 (3,) RGB value that the colour's name fits."""
    value = rng.dirichlet([0.7, 0.7, 0.7]) @ np.array(COLOURS[colour], dtype=np.float64)
    return np.clip(value + rng.normal(0, 4, 3), 0, 255)


def _background_colour(taken: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The first of random colours, most of them dull, that stands off all of `taken`."""
    best, best_distance = np.full(3, 128.0), -1.0
    for _ in range(40):
        grey = rng.choice([255.0, 20.0, rng.uniform(40, 245)], p=[0.2, 0.07, 0.73])
        tint = rng.normal(0, 1, 3) * rng.choice([0.0, 12.0, 45.0], p=[0.4, 0.4, 0.2])
        value = np.clip(grey + tint, 0, 255)
        distance = min(float(np.linalg.norm(value - other)) for other in taken)
        if distance > best_distance:
            best, best_distance = value, distance
        if distance > 95:
            break
    return best


def _background(
    width: int, height: int, base: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """(height, width, 3) float64: plain, gradient, clouds, stripes, checks or grain."""
    kind = rng.choice(["plain", "gradient", "clouds", "stripes", "checks", "grain"], p=_SHARES)
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    if kind == "plain":
        pattern = np.zeros((height, width))
    elif kind == "clouds":
        cells = rng.normal(0, 1, (int(rng.integers(3, 12)), int(rng.integers(3, 12))))
        small = Image.fromarray(cells.astype(np.float32), mode=None)
        pattern = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) * 0.7
    elif kind == "grain":
        pattern = rng.normal(0, 0.6, (height, width))
    else:
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 40)
        along = (x * np.cos(angle) + y * np.sin(angle)) / period
        across = (y * np.cos(angle) - x * np.sin(angle)) / period
        if kind == "gradient":
            pattern = (along - along.mean()) / np.abs(along - along.mean()).max()
        elif kind == "stripes":
            pattern = np.sign(np.sin(2 * np.pi * along)) * 0.6
        else:
            pattern = np.where((np.floor(along) + np.floor(across)) % 2, 0.6, -0.6)
    tint = 1 + 0.4 * rng.normal(0, 1, 3)
    return base + strength * pattern[:, :, None] * tint


_SHARES = [0.30, 0.16, 0.20, 0.12, 0.10, 0.12]


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture, RGB, scene.width x scene.height."""
    colours = [_mixture(thing.colour, rng) for thing in scene.things]
    base = _background_colour(colours, rng)
    canvas = _background(scene.width, scene.height, base, rng.uniform(8, 30), rng)
    scale = 1 if rng.random() < 0.2 else 3
    outlined = rng.random() < 0.25
    for thing, colour in zip(scene.things, colours, strict=True):
        cover = Image.new("L", (scene.width * scale, scene.height * scale))
        # Pillow takes whole numbers as pixel centres.
        corners = [(float(px), float(py)) for px, py in thing.outline() * scale - 0.5]
        ImageDraw.Draw(cover).polygon(corners, fill=255)
        if scale > 1:
            cover = cover.resize((scene.width, scene.height), Image.Resampling.BOX)
        alpha = np.asarray(cover, dtype=np.float64)[:, :, None] / 255
        fill = np.broadcast_to(colour, canvas.shape)
        if rng.random() < 0.3:
            across, down = rng.normal(0, 10, 2) / thing.radius
            x, y = np.arange(scene.width)[None], np.arange(scene.height)[:, None]
            fill = fill + (across * (x - thing.x) + down * (y - thing.y))[:, :, None]
        if outlined:
            inner = cover.filter(ImageFilter.MinFilter(3))
            edge = alpha - np.asarray(inner, dtype=np.float64)[:, :, None] / 255
            fill = fill * (1 - 0.8 * edge)
        canvas = canvas * (1 - alpha) + fill * alpha
    canvas = canvas + rng.normal(0, 1, canvas.shape) * rng.choice([0.0, 3.0, 8.0])
    picture = Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8))))
    return picture
