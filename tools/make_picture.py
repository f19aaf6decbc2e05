"""Draws docs/images/masks.svg, at the top of README: one scene, four sentences, four masks.

    python tools/make_picture.py

The scene is made of the shapes of the synthetic dataset. The masks are what `tfanet-tiny`, as it
ships, answers: their borders are traced, nothing is retouched. `tests/test_pictures.py` compares
the file with new answers by areas, so that no processor's rounding matters.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np
from imports import ROOT
from PIL import Image, ImageDraw

from tfanet.data.scene import Scene, Thing
from tfanet.runtime import Predictor
from tfanet.runtime.polygons import polygons
from tfanet.runtime.shipped import shipped_bundle

PICTURE = ROOT / "docs" / "images" / "masks.svg"
SCENE = Scene(
    192,
    144,
    (
        Thing("circle", "red", "small", 34, 76, 17, 0),
        Thing("star", "yellow", "large", 86, 90, 33, 0.15),
        Thing("circle", "red", "small", 158, 104, 18, 0),
        Thing("square", "blue", "small", 146, 36, 21, 0.12),
        Thing("triangle", "green", "small", 38, 30, 18, -0.1),
    ),
)
GROUND = "#d3e0f5"
FILLS = {"red": "#e2343a", "yellow": "#f7d03c", "blue": "#3468e2", "green": "#34a054"}
# A sentence, the thing that it means, and the colour of its mask's border.
SENTENCES = (
    ("the red circle left of the star", 0, "#5eead4"),
    ("the biggest thing", 1, "#f9a8d4"),
    ("the rightmost circle", 2, "#fde68a"),
    ("the thing in the top right corner", 3, "#a5f3fc"),
)
ENLARGED = 6  # pixels of the picture that the model is given, for one unit of the scene
PANEL, GAP, MARGIN, CAPTION = 276, 20, 24, 58  # of the drawing, in its own units
SCALE = PANEL / SCENE.width


def draw() -> Image.Image:
    """The scene as the model is given it: RGB, `ENLARGED` times the scene's size."""
    picture = Image.new("RGB", (SCENE.width * ENLARGED, SCENE.height * ENLARGED), GROUND)
    for thing in SCENE.things:
        corners = [(float(x), float(y)) for x, y in thing.outline() * ENLARGED - 0.5]
        ImageDraw.Draw(picture).polygon(corners, fill=FILLS[thing.colour])
    return picture


def answers(predictor: Predictor) -> list[np.ndarray]:
    """For each sentence, the model's mask (H, W) of bools at the size of `draw`."""
    picture = draw()
    return [predictor(picture, sentence).mask for sentence, _, _ in SENTENCES]


def border(mask: np.ndarray) -> np.ndarray:
    """The longest border of a mask (H, W), as corners (n, 2) in units of the scene, smoothed."""
    corners = max(polygons(mask), key=len)
    sides = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    steps = np.concatenate(
        [np.linspace(a, b, np.abs(b - a).max(), endpoint=False) for a, b in sides]
    )
    # The mean of the steps near each one takes the stairs out.
    near = 2 * ENLARGED + 1
    around = np.pad(steps, ((near // 2, near // 2), (0, 0)), mode="wrap")
    smooth = np.lib.stride_tricks.sliding_window_view(around, near, axis=0).mean(-1)
    return smooth[::ENLARGED] / ENLARGED


def path(corners: np.ndarray) -> str:
    """Of corners in units of the scene, the data of a closed SVG path in those of the drawing."""
    return "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in corners * SCALE) + "Z"


def svg(borders: list[np.ndarray]) -> str:
    """The whole drawing: a dark card, readable on white and on black pages alike."""
    tall = SCENE.height * SCALE
    width = 2 * MARGIN + len(SENTENCES) * PANEL + (len(SENTENCES) - 1) * GAP
    height = 2 * MARGIN + tall + CAPTION
    listed = ", ".join(f'"{sentence}"' for sentence, _, _ in SENTENCES)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(f"One picture and four masks: {listed}")}</title>',
        "<style>text { font: italic 15px ui-sans-serif, -apple-system, 'Segoe UI', Roboto, "
        "'Noto Sans', 'DejaVu Sans', sans-serif; fill: #e6edf3; text-anchor: middle }</style>",
        "<defs>",
        f'<clipPath id="panel"><rect width="{PANEL}" height="{tall:g}" rx="10"/></clipPath>',
        '<filter id="glow" x="-30%" y="-30%" width="160%" height="160%">'
        '<feGaussianBlur stdDeviation="5"/></filter>',
        f'<g id="scene"><rect width="{PANEL}" height="{tall:g}" fill="{GROUND}"/>',
        *(
            f'<path d="{path(thing.outline())}" fill="{FILLS[thing.colour]}"/>'
            for thing in SCENE.things
        ),
        "</g>",
        "</defs>",
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="16" '
        'fill="#10161f" stroke="#2b3644"/>',
    ]
    for n, ((sentence, _, colour), corners) in enumerate(zip(SENTENCES, borders, strict=True)):
        left = MARGIN + n * (PANEL + GAP)
        lines += [
            f'<g transform="translate({left:g} {MARGIN})"><g clip-path="url(#panel)">',
            f'<clipPath id="inside{n}"><path id="mask{n}" d="{path(corners)}"/></clipPath>',
            f'<use href="#scene"/><rect width="{PANEL}" height="{tall:g}" fill="#0b1220" '
            'fill-opacity="0.66"/>',
            f'<use href="#mask{n}" fill="none" stroke="{colour}" stroke-width="10" '
            'filter="url(#glow)"/>',
            f'<use href="#scene" clip-path="url(#inside{n})"/>',
            f'<use href="#mask{n}" fill="none" stroke="{colour}" stroke-width="2.5" '
            'stroke-linejoin="round"/>',
            "</g>",
            f'<rect y="{tall + 18:g}" width="{PANEL}" height="38" rx="19" fill="#1b2430" '
            f'stroke="{colour}" stroke-opacity="0.45"/>',
            f'<text x="{PANEL / 2:g}" y="{tall + 42:g}">“{escape(sentence)}”</text>',
            "</g>",
        ]
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    masks = answers(Predictor(shipped_bundle("tfanet-tiny")))
    PICTURE.write_text(svg([border(mask) for mask in masks]))


if __name__ == "__main__":
    main()
