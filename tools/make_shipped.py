"""Makes what is shipped ready to run: a checkpoint's bundle, and the picture to try it on.

    python tools/make_shipped.py runs/tiny/model.safetensors

They take the place of those in tfanet/assets; so does a file of the weights that the bundle's
graphs do not hold as they are.
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


def main(checkpoint: str) -> None:
    import torch
    from safetensors.torch import save_file

    from tfanet.export import export_bundle
    from tfanet.model.checkpoint import load_model
    from tfanet.model.shipped import graph_weights, rest_of
    from tfanet.runtime.shipped import SHIPPED, shipped_picture
    from tfanet.weights import read_safetensors

    draw_picture().save(shipped_picture(), optimize=True)
    preset = load_model(checkpoint).config.name
    bundle = export_bundle(checkpoint, SHIPPED / preset, overwrite=True)
    tensors, facts = read_safetensors(Path(checkpoint))
    held = graph_weights(bundle.path)
    rest = {
        name: value
        for name, value in tensors.items()
        if name not in held or not torch.equal(held[name], value.to(held[name].dtype))
    }
    save_file(rest, rest_of(preset), facts)
    print(export_bundle(preset, bundle.path, overwrite=True).digest)  # now under its own name


if __name__ == "__main__":
    main(*sys.argv[1:])
