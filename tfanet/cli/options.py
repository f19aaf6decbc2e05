"""Options that several verbs share: what they are called, and whether they were given."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tfanet.errors import InputError

__all__ = ["DATA", "GRAPH", "QUANTISED", "OptionGroup", "add_data_options", "image_size"]

QUANTISED = ("int8", "fp8")  # precisions of a bundle's graphs


@dataclass(frozen=True)
class OptionGroup:
    """Options that one function takes: they reach it together, or are refused together.

    Attributes:
        add: adds them to a parser or an argument group; none of them is required.
    """

    add: Callable[[Any], None]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The default of each option, by its keyword."""
        parser = argparse.ArgumentParser(add_help=False)
        self.add(parser)
        return vars(parser.parse_args([]))

    def values(self, args: argparse.Namespace) -> dict[str, Any]:
        """The options as keywords of the function that takes them."""
        return {name: getattr(args, name) for name in self.defaults}

    def refuse(self, args: argparse.Namespace, why: str) -> None:
        """Raises InputError, the first option that was given followed by `why`."""
        for name, default in self.defaults.items():
            value = getattr(args, name)
            if value != default:
                off = "no-" if default is True and value is False else ""
                raise InputError(f"--{off}{name.replace('_', '-')} {why}")


def add_data_options(parser: Any, *, required: bool = True) -> None:
    """`--data`, and `DATA`, which say more of it."""
    none = "" if required else " (default: no data are read)"
    parser.add_argument(
        "--data",
        required=required,
        metavar="DIR",
        help=f"the folder that holds refcoco, shapes, ...{none}",
    )
    DATA.add(parser)


def _add_data_details(parser: Any) -> None:
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="refcoco, refcoco+, refcocog, grefcoco, shapes or gshapes (default: the only one "
        "there)",
    )
    parser.add_argument(
        "--split-by",
        metavar="NAME",
        help="refcoco: unc (default) or google; refcocog: umd (default) or google",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="the picture folder (default: images/train2014 within --data, or where COCO has it)",
    )


def _add_graph_options(parser: Any) -> None:
    parser.add_argument(
        "--function",
        default="sequential",
        metavar="FORM",
        help="the scan in standard operators, for runtimes without our library: sequential (best "
        "on plain ONNX Runtime), parallel (for TensorRT, TensorRT-RTX and OpenVINO) or none",
    )
    parser.add_argument(
        "--dynamic-batch",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave the batch open (default), or fix it",
    )
    parser.add_argument("--opset", type=int, default=20, metavar="N", help="of ONNX, 18 to 23")


DATA = OptionGroup(_add_data_details)
GRAPH = OptionGroup(_add_graph_options)


def image_size(text: str) -> tuple[int, int]:
    """`480` or `480x640` (height x width) as a pair."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"image size is '{text}', expected 480 or 480x640")
    return int(parts[0]), int(parts[-1])
