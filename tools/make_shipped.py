"""Makes what is shipped ready to run: a checkpoint's bundle, and the picture to try it on.

    python tools/make_shipped.py tfanet-tiny tfanet/assets

The first argument is a preset with weights, or a checkpoint; both results take the place of those
in the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tfanet.data.draw import draw_scene
from tfanet.data.scene import Scene, Thing

SEED = 4  # of the colours' mixtures and the background
SCENE = Scene(
    480,
    360,
    (
        Thing("circle", "red", "large", 110, 105, 66, 0.0),
        Thing("star", "blue", "large", 250, 120, 80, 0.25),
        Thing("circle", "blue", "small", 395, 85, 44, 0.0),
        Thing("triangle", "red", "small", 105, 275, 54, 0.1),
        Thing("square", "yellow", "large", 380, 250, 74, 0.12),
        Thing("cross", "green", "small", 240, 280, 52, 0.15),
    ),
)


def draw_picture() -> Image.Image:
    return draw_scene(SCENE, np.random.default_rng(SEED))


def main(source: str, folder: str) -> None:
    from tfanet.export import export_bundle
    from tfanet.model.checkpoint import load_model

    draw_picture().save(Path(folder) / "shapes.png", optimize=True)
    name = load_model(source).config.name
    print(export_bundle(source, Path(folder) / name, overwrite=True).path)


if __name__ == "__main__":
    main(*sys.argv[1:])
