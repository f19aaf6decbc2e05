"""Training by annotated objects, before sentences: of a vision backbone, then of queries.

A backbone learns which category of object each pixel shows, and its colour.

The published models of this kind start from backbones and text encoders that other, larger
trainings left behind. Windows and patches learn what a shape is very slowly from sentences alone;
from the categories of all annotated objects, pixel by pixel, they do in minutes. Categories alone
make them blind to colours, which sentences name: so they also have to say what the picture is.

Queries, where a family has some, learn the same of objects: see
`tfanet.model.instalign.objects`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tfanet.data.batches import together
from tfanet.data.categories import CategoryDataset, ObjectDataset
from tfanet.errors import InputError
from tfanet.files import whole_file
from tfanet.model.checkpoint import save_checkpoint
from tfanet.model.family import find_preset
from tfanet.model.layers.swin import look_at_neighbours
from tfanet.progress import Progress
from tfanet.training.options import PretrainOptions
from tfanet.training.state import load_start

__all__ = ["category_loss", "colour_loss", "pretrain"]

MODEL = "model.safetensors"
BACKGROUND = 0.2  # weight of a loss over all pixels beside that over objects
COLOURS = 3
BACKBONE, KEPT = "backbone.", 0.3  # what queries look through, and its share of their rate
RISE, CLIP = 0.05, 1.0  # share of the steps in which the rate rises; largest norm of a gradient


class PixelHead(nn.Module):
    """Categories and colours of pixels from maps: normalised, linear, enlarged, added up.

    Args:
        maps: of a network and pictures, as in `Training`. channels: of each map.
    """

    def __init__(
        self,
        maps: Callable[[Any, Tensor], list[Tensor]],
        channels: Sequence[int],
        categories: int,
    ) -> None:
        super().__init__()
        self.maps = maps
        self.widths = (1 + categories, COLOURS)
        self.layers = nn.ModuleList(nn.Conv2d(c, sum(self.widths), 1) for c in channels)

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The scalar to minimise, and which share of objects' pixels is right, 0 to 1."""
        image, categories = batch["image"], batch["categories"]
        logits, colours = self.read(self.maps(model, image))
        loss, right = category_loss(logits, categories)
        return loss + colour_loss(colours, image, categories), right

    def read(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C_i, h_i, w_i), the largest first, to two.

        Returns:
            Logits of the categories (B, 1 + n, h_0, w_0); normalised RGB (B, 3, h_0, w_0).
        """
        size = maps[0].shape[2:]
        found = []
        for layer, x in zip(self.layers, maps, strict=True):
            normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
            found.append(F.interpolate(layer(normed), size, mode="bilinear", align_corners=False))
        logits, colours = torch.stack(found).sum(0).split(self.widths, 1)
        return logits, colours


def category_loss(logits: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over objects, and with a small weight over all; how many are right, 0 to 1.

    Args:
        logits: (B, 1 + n, h, w). categories: (B, H, W) int64, of which the nearest are taken.
    """
    true = _nearest(categories, logits)
    entropy, objects = F.cross_entropy(logits, true, reduction="none"), true > 0
    right = ((logits.argmax(1) == true) & objects).sum() / objects.sum().clamp_min(1)
    return _mostly_objects(entropy, objects), right


def colour_loss(colours: Tensor, image: Tensor, categories: Tensor) -> Tensor:
    """Mean absolute error of normalised RGB over objects, and with a small weight over all.

    Args:
        colours: (B, 3, h, w). image: (B, 3, H, W), of which each pixel's area is averaged.
        categories: (B, H, W) int64, of which the nearest are taken.
    """
    error = colours - F.interpolate(image, colours.shape[2:], mode="area")
    return _mostly_objects(error.abs().mean(1), _nearest(categories, colours) > 0)


def _nearest(categories: Tensor, like: Tensor) -> Tensor:
    """Categories (B, H, W) at the size of (B, C, h, w)."""
    return F.interpolate(categories[:, None].float(), like.shape[2:], mode="nearest")[:, 0].long()


def _mostly_objects(loss: Tensor, objects: Tensor) -> Tensor:
    return (loss * objects).sum() / objects.sum().clamp_min(1) + BACKGROUND * loss.mean()


def _lesson(options: PretrainOptions) -> tuple[Any, nn.Module, CategoryDataset]:
    """The model, the head that teaches it, and the data."""
    family, config = find_preset(options.preset)
    training = family.training
    if training is None or training.maps is None:
        raise InputError(f"{family.title} has no backbone that could be trained alone here")
    start: Any = None if options.init is None else load_start(options.init, options.preset)
    if start is not None:
        config = start.config
    common: dict[str, Any] = {
        "preprocessing": family.preprocessing(config.image_size),
        "split_by": options.split_by,
        "images": options.images,
    }
    where = (options.data, options.dataset, options.split)
    torch.manual_seed(options.seed)
    model = start or family.network(config).apply(look_at_neighbours)
    if options.part == "queries":
        if training.objects is None:
            raise InputError(f"{family.title} has no queries: leave part at 'backbone'")
        objects = ObjectDataset(*where, tokenizer=family.make_tokenizer(config), **common)
        return model, training.objects(config, len(objects.names)), objects
    source = CategoryDataset(*where, **common)
    with torch.no_grad():
        channels = [each.shape[1] for each in training.maps(model, source[0]["image"][None])]
    return model, PixelHead(training.maps, channels, len(source.names)), source


def pretrain(options: PretrainOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Teach a preset's backbone the categories and colours of pixels, or its queries the objects.

    What neither depends on stays fresh. `progress(message, step, steps)` is called after each step.
    The same options give the same weights on the same machine. The checkpoint is one for
    `TrainOptions.init`.

    Returns {"checkpoint", "steps", "loss", "accuracy", "seconds"}: the accuracy, in percent, is on
    pixels of objects, or on objects, and with the loss a running mean over recent batches.

    Raises InputError on bad options or data, and where the loss stops being finite.
    """
    path = options.check_output(MODEL) / MODEL
    model, head, source = _lesson(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    head.to(device).train()
    # Weights that no gradient reaches are left alone by AdamW.
    taught = [p for n, p in model.named_parameters() if not n.startswith(BACKBONE)]
    taught += head.parameters()
    backbone = [p for n, p in model.named_parameters() if n.startswith(BACKBONE)]
    rates = [options.lr, options.lr * (KEPT if options.part == "queries" else 1.0)]
    optimizer = torch.optim.AdamW(
        [
            {"params": params, "lr": lr}
            for params, lr in zip((taught, backbone), rates, strict=True)
        ],
        weight_decay=1e-4,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, options.steps, pct_start=RISE, cycle_momentum=False
    )
    lists = ("instances", "categories") if options.part == "queries" else ()
    loader = DataLoader(
        source,
        batch_sampler=_Batches(len(source), options),
        num_workers=options.workers,
        collate_fn=partial(together, lists=lists),
    )
    loss_mean = right_mean = 0.0
    started = time.monotonic()
    for step, batch in enumerate(loader):
        loss, right = head(model, send_to_device(batch, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*taught, *backbone], CLIP)
        optimizer.step()
        schedule.step()
        share = 1.0 if step == 0 else 0.02
        loss_mean += share * (float(loss.detach()) - loss_mean)
        right_mean += share * (float(right) - right_mean)
        if not loss_mean < float("inf"):
            raise InputError(f"the loss is {float(loss)} at step {step}: lower lr ({options.lr})")
        if progress is not None:
            line = f"loss {loss_mean:.3f}, {100 * right_mean:.1f} % right, step"
            progress(line, step + 1, options.steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_checkpoint(part, model.cpu())
    return {
        "checkpoint": str(path),
        "steps": options.steps,
        "loss": loss_mean,
        "accuracy": 100 * right_mean,
        "seconds": time.monotonic() - started,
    }


class _Batches:
    """Pictures of each step, in an order that depends on the seed and the epoch alone."""

    def __init__(self, pictures: int, options: PretrainOptions) -> None:
        self.pictures, self.options = pictures, options

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        for _ in range(self.options.steps):
            while len(order) < self.options.batch:
                order += torch.randperm(self.pictures).tolist()
            yield order[: self.options.batch]
            del order[: self.options.batch]

    def __len__(self) -> int:
        return self.options.steps
