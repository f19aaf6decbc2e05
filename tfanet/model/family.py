"""What the rest of the house needs to know of a family of models, and where each is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tfanet.errors import InputError, suggestion
from tfanet.model.config import Config, check_image_size
from tfanet.model.published import Published
from tfanet.model.training import Training
from tfanet.runtime.bundle.contract import Postprocessing, Preprocessing, Tokenization
from tfanet.runtime.bundle.graphs import image_feed
from tfanet.runtime.tokenizer import TextTokenizer

__all__ = [
    "FAMILIES",
    "Choice",
    "Family",
    "family_of_config",
    "find_family",
    "find_preset",
    "is_preset",
    "presets",
]

# Each is a package here, with its `FAMILY` in family.py.
FAMILIES = ("tfanet", "crossvlt", "asda", "instalign")
TOKENIZER_FILES = {"clip-bpe": "clip_tokenizer.json", "bert-wordpiece": "bert_tokenizer.json"}


@dataclass(frozen=True)
class Choice:
    """What a network takes one of, for each picture: the option of the largest score.

    Of equal scores the first is taken. A small lead may turn where a backend rounds, so parity
    reports tell it.

    Attributes:
        group: what is chosen. options: names of the K that there are.
        scores: name of the module that gives their scores, (B, K, ...).
    """

    group: str
    options: tuple[str, ...]
    scores: str


@dataclass(frozen=True)
class Family:
    """One family: its networks, what goes into their two graphs and what comes out.

    Attributes:
        name: of its package here. title: as people write it.
        config: the class of its configurations. presets: named ones.
        network: makes the module of a configuration, with fresh weights. Besides `forward(image,
            token_ids, word_mask)`, the mask logit (B, 1, h, w), it has the two methods that become
            graphs: `encode_text(token_ids)` gives a tuple of `text_outputs`, `segment(*inputs)`
            takes `image_inputs` and gives `image_outputs`, several as a tuple, in their order.
        text_outputs: of the text graph: "word_features" (B, T, L), "sentence_feature" (B, S).
        image_inputs: "image" (B, 3, H, W), what it takes of `text_outputs`, "word_mask" (B, L).
        image_outputs: role by name, "mask_logit" first; see `tfanet.runtime.bundle.contract`.
        image_size_stride: a picture's sides are multiples of it; 0: only the preset's size will do.
        resize, mean, std, padding: how pictures are prepared, see `Preprocessing`.
        tokenizer, truncation, pad_id: how sentences are, see `Tokenization`.
        value, threshold: how a mask is made of the logit, see `Postprocessing`.
        from_official: a state dict by the official names to one by the network's own, dead entries
            dropped; it raises InputError for what contradicts itself. None: the names are the same.
        official_config: the configuration of an official file, where its shapes tell what the base
            preset leaves open. None: it is that preset's.
        marks: parameters that no other family has, by which a file is recognised.
        full_precision: ends of names of parameters that stay float32 in a half checkpoint.
        parts: patterns of module names whose outputs a parity report compares.
        choices: of a configuration, what its network chooses. None: nothing, as most.
        published: what its authors report. training: how it is trained; None: not here.
    """

    name: str
    title: str
    config: type[Config]
    presets: Mapping[str, Any]
    network: Callable[[Any], nn.Module]
    text_outputs: tuple[str, ...]
    image_inputs: tuple[str, ...]
    image_outputs: Mapping[str, str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    marks: tuple[str, ...]
    image_size_stride: int = 32
    resize: str = "pillow-bilinear"
    padding: tuple[int, int, int] | None = None
    tokenizer: str = "clip-bpe"
    truncation: str = "keep-end"
    pad_id: int = 0
    value: str = "logit"
    threshold: float = 0.0
    from_official: Callable[[Mapping[str, Tensor], Config], Mapping[str, Tensor]] | None = None
    official_config: Callable[[Mapping[str, Tensor], Any], Config] | None = None
    full_precision: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    choices: Callable[[Any], tuple[Choice, ...]] | None = None
    published: Published | None = None
    training: Training | None = None

    @property
    def tokenizer_file(self) -> Path:
        """The file of its tokenizer that is shipped."""
        return Path(__file__).parent.parent / "assets" / TOKENIZER_FILES[self.tokenizer]

    def preprocessing(self, size: tuple[int, int]) -> Preprocessing:
        """How pictures are prepared for a network at `size` (H, W)."""
        return Preprocessing(size, self.mean, self.std, self.resize, self.padding)

    @property
    def postprocessing(self) -> Postprocessing:
        """How its masks are made."""
        return Postprocessing(self.value, self.threshold)

    def make_tokenizer(self, config: Config, file: Path | None = None) -> TextTokenizer:
        """The tokenizer of a configuration, of `file` or of the one that is shipped."""
        return TextTokenizer(
            file or self.tokenizer_file,
            config.text_length,
            kind=self.tokenizer,
            pad_id=self.pad_id,
            truncation=self.truncation,
        )

    def tokenization(self, config: Config, file: Path | None = None) -> Tokenization:
        """What a bundle says of that tokenizer."""
        made = self.make_tokenizer(config, file)
        ids = (made.pad_id, made.sos_id, made.eos_id)
        return Tokenization(config.text_length, *ids, self.tokenizer, self.truncation)

    def run_text(self, model: Any, token_ids: Tensor) -> dict[str, Tensor]:
        """What the text graph gives, by name."""
        return dict(zip(self.text_outputs, model.encode_text(token_ids), strict=True))

    def run_image(
        self, model: Any, image: Tensor, features: Mapping[str, Tensor], word_mask: Tensor
    ) -> dict[str, Tensor]:
        """What the image graph gives, by name."""
        given = model.segment(*image_feed(self.image_inputs, image, features, word_mask).values())
        values = given if isinstance(given, tuple) else (given,)
        return dict(zip(self.image_outputs, values, strict=True))

    def check_image_size(self, config: Config, size: tuple[int, int]) -> None:
        """Raises InputError for an image size (H, W) that a network of this family cannot take."""
        if self.image_size_stride:
            check_image_size(size, self.image_size_stride)
        elif tuple(size) != config.image_size:
            height, width = config.image_size
            raise InputError(
                f"image size is {tuple(size)}: {config.name} has weights for every place of a map "
                f"and takes ({height}, {width}) alone"
            )


def find_family(name: str) -> Family:
    """The family of this name. Raises InputError where there is none."""
    if name not in FAMILIES:
        raise InputError(f"model family {name!r:.80} is unknown: choose from {', '.join(FAMILIES)}")
    family: Family = import_module(f"tfanet.model.{name}.family").FAMILY
    return family


def family_of_config(config: Config) -> Family:
    """The family that a configuration is of. Raises InputError where it is of none."""
    for family in map(find_family, FAMILIES):
        if isinstance(config, family.config):
            return family
    raise InputError(
        f"{type(config).__name__} is of no model family: choose from {', '.join(FAMILIES)}"
    )


def presets() -> dict[str, Config]:
    """Every preset of every family by its name."""
    return {name: config for f in FAMILIES for name, config in find_family(f).presets.items()}


def is_preset(name: str) -> bool:
    """Whether a preset has this name; its family alone is imported."""
    family = name.partition("-")[0]
    return family in FAMILIES and name in find_family(family).presets


def find_preset(name: str) -> tuple[Family, Config]:
    """A preset's family and configuration. Raises InputError, naming all presets."""
    if is_preset(name):
        family = find_family(name.partition("-")[0])
        return family, family.presets[name]
    known = presets()
    raise InputError(
        f"preset {name!r:.80} is unknown: choose one of {', '.join(known)}{suggestion(name, known)}"
    )
