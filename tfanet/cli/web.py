"""`tfanet web`, and what `tfanet export --web` shares with it: a page that runs a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfanet.cli.output import Verbs, add_verb

__all__ = ["add_page_option", "add_verbs", "page_text", "page_writer"]


def add_verbs(verbs: Verbs) -> None:
    web = add_verb(
        verbs,
        "web",
        run_web,
        extra=None,
        examples=(
            "tfanet web --bundle bundle --output page",
            "tfanet web --bundle bundle --output page --onnxruntime-web onnxruntime-web/package",
        ),
    )
    web.add_argument("--bundle", required=True, metavar="DIR", help="the bundle that the page runs")
    web.add_argument("--output", required=True, metavar="DIR", help="the folder of the page")
    web.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    add_page_option(web)


def add_page_option(parser: Any) -> None:
    parser.add_argument(
        "--onnxruntime-web",
        metavar="DIR",
        help="the unpacked npm package onnxruntime-web (default: npm fetches it)",
    )


def run_web(args: argparse.Namespace) -> tuple[Any, str]:
    """Write a static page that runs a bundle in the browser, by WebGPU or on the processor."""
    result = page_writer(args, args.output)(Path(args.bundle))
    return result, page_text(result)


def page_writer(args: argparse.Namespace, output: str) -> Callable[[str | Path], dict[str, Any]]:
    """What writes the page that the options ask for; they are checked now."""
    from tfanet.export.web.page import prepare_page

    return prepare_page(
        output, onnxruntime_web_folder=args.onnxruntime_web, overwrite=args.overwrite
    )


def page_text(result: dict[str, Any]) -> str:
    """Where the page is, and how to look at it."""
    return (
        f"{result['page']}\n\n{result['size'] / 1e6:.1f} MB with onnxruntime-web "
        f"{result['onnxruntime_web']}. Look at it: python -m http.server --bind 127.0.0.1 "
        f"--directory {result['page']}, and open http://127.0.0.1:8000"
    )
