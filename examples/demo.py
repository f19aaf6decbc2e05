"""From the shipped checkpoint to a mask, in one go: what `make demo` runs.

Exports tfanet-tiny to a bundle, compares it with PyTorch, then draws a picture of shapes with
Pillow alone (not with the generator of the training data) and asks for one of them by name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tfanet.cli.output import parity_table, table
from tfanet.evaluation.metrics import Metrics
from tfanet.export import export_bundle
from tfanet.runtime import Predictor, load_image
from tfanet.runtime.overlay import save_mask, save_overlay

import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
SIZE = (320, 240)
TEXT = "the red circle"


def draw_picture() -> tuple[Image.Image, np.ndarray]:
    """A picture with four objects, and the mask (H, W) of the one that `TEXT` names."""
    scale = 4  # drawn large and reduced, for smooth edges
    picture = Image.new("RGB", (SIZE[0] * scale, SIZE[1] * scale), (205, 200, 190))
    target = Image.new("L", picture.size)
    circle = (48 * scale, 120 * scale, 108 * scale, 180 * scale)
    draw = ImageDraw.Draw(picture)
    draw.ellipse(circle, fill=(215, 40, 40))
    draw.ellipse((200 * scale, 130 * scale, 262 * scale, 192 * scale), fill=(40, 80, 210))
    draw.rectangle((60 * scale, 30 * scale, 115 * scale, 85 * scale), fill=(215, 40, 40))
    draw.polygon(
        [(230 * scale, 30 * scale), (195 * scale, 92 * scale), (265 * scale, 92 * scale)],
        fill=(40, 160, 70),
    )
    ImageDraw.Draw(target).ellipse(circle, fill=255)
    return picture.resize(SIZE, Image.Resampling.LANCZOS), np.asarray(target.resize(SIZE)) > 127


def cpp_example(bundle: Path, output: Path) -> str:
    """The C++ example on the same picture; or why it was not built."""
    build = ROOT / "build"
    sdk, programs = build / "sdk", build / "examples"
    if not (ROOT / "runtime" / "lib" / "libtfanet_runtime.so").is_file():
        return "not built: see the message of `make native`"
    commands: list[list[str | Path]] = [
        ["cmake", "--install", build / "native", "--component", "sdk", "--prefix", sdk],
        ["cmake", "-S", ROOT / "examples/cpp", "-B", programs, f"-DCMAKE_PREFIX_PATH={sdk}"],
        ["cmake", "--build", programs],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return f"not built: {done.stderr.strip() or done.stdout.strip()}"
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    mask = output / "mask_cpp.png"
    done = subprocess.run(
        [programs / "segment", bundle, output / "picture.png", TEXT, mask],
        env=os.environ | {"TFANET_ONNXRUNTIME": str(library)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        return f"failed: {done.stderr.strip()}"
    same = np.array_equal(load_image(mask), load_image(output / "mask.png"))
    return f"{'the same mask' if same else 'ANOTHER MASK'} as in Python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    print("Exporting tfanet-tiny and comparing it with PyTorch ...")
    bundle = export_bundle("tfanet-tiny", output / "bundle", overwrite=True)
    picture, truth = draw_picture()
    picture.save(output / "picture.png")

    predictor = Predictor(bundle.path)
    predictor(picture, TEXT)  # the first run also allocates
    prediction = predictor(picture, TEXT)
    save_mask(prediction.mask, output / "mask.png")
    save_overlay(picture, prediction.mask, output / "overlay.png")

    print(f"\nParity with PyTorch\n{parity_table(bundle.manifest.parity)}")
    timings = [(name, f"{value:.2f}") for name, value in prediction.timings.items()]
    print(f"\nTimings\n{table(('step', 'ms'), timings)}")
    iou = Metrics().update(prediction.mask, truth)
    print(f"\n'{TEXT}': IoU {iou:.3f}, score {prediction.score:.2f}")
    print(f"C++ example: {cpp_example(bundle.path, output)}")
    print(f"Bundle:  {bundle.path}\nOverlay: {(output / 'overlay.png').resolve()}")


if __name__ == "__main__":
    main()
