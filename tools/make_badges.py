"""Draws docs/images/badge-*.svg, the badges of README, from what setup.cfg says.

    python tools/make_badges.py

They are files of the repository, so a page with them loads nothing from elsewhere.
"""

from __future__ import annotations

import configparser
import re

from imports import ROOT
from requirements import requirements

IMAGES = ROOT / "docs" / "images"
LETTER, THIN_LETTER = 7.0, 3.8  # widths in the 11 pixel font, about, in pixels
THIN = "ijlt.,-: "
PAD, HEIGHT = 8, 20


def at_least(package: str, *extras: str) -> str:
    """The lowest version of a package that setup.cfg asks for, as in "1.20+"."""
    found = [re.match(rf"{re.escape(package)}>=([\d.]+)", line) for line in requirements(*extras)]
    (version,) = {match[1] for match in found if match}
    return f"{version}+"


def badge(label: str, value: str, colour: str) -> str:
    left, right = (
        round(sum(THIN_LETTER if letter in THIN else LETTER for letter in text) + 2 * PAD)
        for text in (label, value)
    )
    texts = "".join(
        f'<text x="{start + width / 2:g}" y="14" textLength="{width - 2 * PAD}">{text}</text>'
        for start, width, text in ((0, left, label), (left, right, value))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" '
        f'role="img" aria-label="{label}: {value}">'
        f'<clipPath id="round"><rect width="{left + right}" height="{HEIGHT}" rx="4"/></clipPath>'
        f'<g clip-path="url(#round)"><rect width="{left}" height="{HEIGHT}" fill="#3b4453"/>'
        f'<rect x="{left}" width="{right}" height="{HEIGHT}" fill="{colour}"/></g>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" '
        f'font-size="11">{texts}</g></svg>\n'
    )


def badges() -> dict[str, str]:
    """File name to what is in it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    python = setup["options"]["python_requires"].removeprefix(">=")
    rtx = at_least("tensorrt-rtx-cu13", "tensorrt-rtx")
    return {
        "badge-licence.svg": badge("licence", setup["metadata"]["license"], "#2563a8"),
        "badge-onnxruntime.svg": badge("ONNX Runtime", at_least("onnxruntime"), "#0f766e"),
        "badge-python.svg": badge("Python", f"{python}+", "#2563a8"),
        "badge-tensorrt-rtx.svg": badge("TensorRT-RTX", rtx, "#4d7c0f"),
        "badge-tensorrt.svg": badge("TensorRT", at_least("tensorrt", "tensorrt"), "#4d7c0f"),
    }


def main() -> None:
    for name, text in badges().items():
        (IMAGES / name).write_text(text)


if __name__ == "__main__":
    main()
