"""`render_page`: a parity report as one file of HTML, which needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from tfanet.export.parity.choices import in_words
from tfanet.runtime.overlay import overlay

__all__ = ["MAX_PAGE_BYTES", "Shown", "render_page"]

MAX_PAGE_BYTES = 5_000_000
THUMBNAILS = (360, 240, 160)  # pixels of a picture's longer side, the first with which all fits
MAX_SHOWN = 24  # pictures; more make a page that nobody reads
LOWEST = -8.0  # log10 of the error that has the first colour; the last is 1's
# Dark blue to pale yellow, lighter at every step: also for those who do not tell colours apart.
COLOURS = (
    (13, 17, 43),
    (60, 24, 92),
    (128, 37, 106),
    (201, 69, 84),
    (245, 133, 56),
    (252, 240, 170),
)
SERIES = 6  # colours of charts in report.html


@dataclass(frozen=True)
class Shown:
    """A picture, and by name the masks (H, W) and the relative errors of logits (h, w)."""

    picture: Image.Image
    masks: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]


def render_page(report: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    """The page of `write_report`'s result, at most 5 MB.

    Pictures become smaller, and then fewer, until it fits.
    """
    count = min(len(shown), MAX_SHOWN)
    while True:
        for side in THUMBNAILS:
            rows = [_row(one, side) for one in shown[:count]]
            page = _render(report, rows)
            if len(page.encode()) <= MAX_PAGE_BYTES or (count == 0 and side == THUMBNAILS[-1]):
                return page
        count //= 2


def _render(report: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    source = (resources.files("tfanet.export.parity") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["at"] = _at
    series = {name: index % SERIES for index, name in enumerate(report["stages"])}
    measured = {**report["backends"], **report["emulated"]}
    page: str = environment.from_string(source).render(
        report=report,
        measured=measured,
        rows=list(zip(report["pictures"], rows, strict=False)),
        series=series,
        lowest=int(LOWEST),
        ramp=", ".join(f"rgb{colour}" for colour in COLOURS),
        in_words=in_words,
    )
    return page


def _at(error: float) -> str:
    """Where an error stands on a logarithmic axis from the lowest to 1, in percent."""
    log = np.log10(max(error, 10**LOWEST))
    return f"{100 * float(np.clip(1 - log / LOWEST, 0, 1)):.2f}"


def _row(shown: Shown, side: int) -> dict[str, Any]:
    small = shown.picture.copy()
    small.thumbnail((side, side))
    masks = {}
    for name, mask in shown.masks.items():
        stencil = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize(small.size)
        masks[name] = _url(overlay(small, np.asarray(stencil) > 127))
    errors = {name: _url(_map(values, side)) for name, values in shown.errors.items()}
    return {"size": small.size, "picture": _url(small), "masks": masks, "errors": errors}


def _map(errors: np.ndarray, side: int) -> Image.Image:
    """Errors as colours, each step of a power of ten alike, so that small ones can be seen."""
    logs = np.log10(np.clip(errors, 10**LOWEST, 1))
    levels = np.rint(255 * (1 - logs / LOWEST)).astype(np.uint8)
    picture = Image.fromarray(levels)
    steps = np.linspace(0, 255, len(COLOURS))
    channels = [np.interp(np.arange(256), steps, channel) for channel in zip(*COLOURS, strict=True)]
    picture.putpalette(np.rint(np.stack(channels, 1)).astype(np.uint8).tobytes())
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.NEAREST)
    return picture


def _url(picture: Image.Image) -> str:
    """A data URL: photographs as WebP, maps of few colours as PNG."""
    stream = io.BytesIO()
    kind = "png" if picture.mode == "P" else "webp"
    picture.save(stream, kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
