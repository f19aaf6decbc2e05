"""What defines a TFANet: sizes, switches and the two presets. Plain data, no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tfanet.errors import InputError, shown

__all__ = ["PRESETS", "TFANetConfig", "TextConfig", "preset"]

ALIGNMENTS = ("mlam", "attention", "gate")
# Far above what anybody trains; a damaged file must not ask for a network that takes days to make.
MAX_WIDTH, MAX_DEPTH, MAX_ENTRIES, MAX_GRID = 65_536, 256, 2**24, 256


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the CLIP text tower; the defaults are ViT-L/14's.

    `pretrained` is a local directory or a hub name that holds a `CLIPTextModel` of these sizes, to
    start a training from; None builds the tower from the sizes, with random weights. Where weights
    come from a checkpoint it is not looked at.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 49408
    positions: int = 77
    pretrained: str | None = None

    def __post_init__(self) -> None:
        for name in ("width", "heads", "intermediate", "positions"):
            _whole(f"text.{name}", getattr(self, name), 1, MAX_WIDTH)
        _whole("text.layers", self.layers, 0, MAX_DEPTH)
        _whole("text.vocabulary", self.vocabulary, 1, MAX_ENTRIES)
        if self.width % self.heads:
            raise InputError(
                f"text.width {self.width} is not a multiple of text.heads {self.heads}"
            )
        if self.pretrained is not None and not isinstance(self.pretrained, str):
            raise InputError(f"text.pretrained is {shown(self.pretrained)}: give a name or None")


@dataclass(frozen=True)
class TFANetConfig:
    """Everything that determines TFANet's parameters and their shapes.

    Attributes:
        name: the preset it started from.
        image_size: (H, W) in pixels, the default for training and export; multiples of 32.
        dims, depths, ssm_ratio: the VMamba backbone's channels C_i, blocks and inner ratio E / C.
        text, text_length: the text tower, and L, the tokens per sentence it is used with.
        align_dim: d, the width in which words and pixels are compared.
        decoder_dim: D, the decoder's width.
        grid: g, the side to which CSSM pools a map; the paper's S / 32.
        refine: residual pairs of the decoder at strides 16, 8 and 4.
        alignment: "mlam", "attention" (plain softmax cross-attention in its place) or "gate" (the
            baseline of Table 4: pixels times the mean word).
        cfsm, wfdm: the other two modules on or off (rows of the paper's Tables 3 and 4).
        drop_path: largest drop rate of a residual branch of the backbone, in training.
    """

    name: str = "tfanet-base"
    image_size: tuple[int, int] = (480, 480)
    dims: tuple[int, int, int, int] = (128, 256, 512, 1024)
    depths: tuple[int, int, int, int] = (2, 2, 15, 2)
    ssm_ratio: float = 2.0
    text: TextConfig = field(default_factory=TextConfig)
    text_length: int = 17
    align_dim: int = 128
    decoder_dim: int = 256
    grid: int = 15
    refine: tuple[int, int, int] = (1, 1, 3)
    alignment: str = "mlam"
    cfsm: bool = True
    wfdm: bool = True
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        for name, count, low, high in (
            ("image_size", 2, 32, MAX_WIDTH),
            ("dims", 4, 2, MAX_WIDTH),
            ("depths", 4, 0, MAX_DEPTH),
            ("refine", 3, 0, MAX_DEPTH),
        ):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != count:
                raise InputError(f"{name} is {shown(values)}: give {count} numbers")
            for value in values:
                _whole(f"one of {name}", value, low, high)
        check_image_size(self.image_size)
        for name in ("text_length", "align_dim", "decoder_dim"):
            _whole(name, getattr(self, name), 1, MAX_WIDTH)
        _whole("grid", self.grid, 1, MAX_GRID)
        _number("ssm_ratio", self.ssm_ratio, 0.01, 64)
        if self.ssm_ratio * min(self.dims) < 1:
            raise InputError(
                f"ssm_ratio {self.ssm_ratio} leaves no inner channel with dims {self.dims}"
            )
        _number("drop_path", self.drop_path, 0, 0.999)
        for name, kind in (("name", str), ("cfsm", bool), ("wfdm", bool), ("text", TextConfig)):
            if not isinstance(getattr(self, name), kind):
                value = shown(getattr(self, name))
                raise InputError(f"{name} is {value}, expected a {kind.__name__}")
        if not 3 <= self.text_length <= self.text.positions:
            raise InputError(
                f"text_length is {self.text_length}: give 3 to {self.text.positions} tokens"
            )
        if self.alignment not in ALIGNMENTS:
            raise InputError(f"alignment is {shown(self.alignment)}: choose one of {ALIGNMENTS}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TFANetConfig:
        """The config that `to_dict` described.

        Raises:
            InputError: for a missing or unknown field, or naming a value that no model can have.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"the model configuration is {shown(data)}, expected a JSON object")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        missing = sorted(known - set(data))
        if unknown or missing:
            raise InputError(
                f"the model configuration has unknown fields {shown(unknown)} and lacks {missing}: "
                "it was written by another version of tfanet"
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        text = data["text"]
        if not isinstance(text, Mapping):
            raise InputError(f"the text configuration is {shown(text)}, expected a JSON object")
        unknown = sorted(set(text) - {f.name for f in fields(TextConfig)})
        if unknown:
            raise InputError(
                f"the text configuration has unknown fields {shown(unknown)}: it was written by "
                "another version of tfanet"
            )
        values["text"] = TextConfig(**text)
        return cls(**values)


def check_image_size(size: tuple[int, int]) -> None:
    """Raises InputError unless (H, W) are positive multiples of 32, the backbone's stride."""
    if len(size) != 2 or any(side <= 0 or side % 32 for side in size):
        raise InputError(f"image size is {tuple(size)}: give (H, W), both multiples of 32")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if not (_is_whole(value) and low <= value <= high):
        raise InputError(f"{name} is {shown(value)}: give a whole number from {low} to {high}")


def _number(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        raise InputError(f"{name} is {shown(value)}: give a number from {low} to {high}")


PRESETS = {
    "tfanet-base": TFANetConfig(),
    "tfanet-tiny": TFANetConfig(
        name="tfanet-tiny",
        image_size=(128, 128),
        dims=(24, 48, 96, 192),
        depths=(1, 1, 2, 1),
        ssm_ratio=1.0,
        text=TextConfig(width=48, layers=2, heads=4, intermediate=192),
        text_length=20,
        align_dim=32,
        decoder_dim=48,
        grid=4,
        refine=(0, 0, 1),
        drop_path=0.0,
    ),
}


def preset(name: str) -> TFANetConfig:
    """The configuration of a preset: tfanet-base (the paper's) or tfanet-tiny."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
