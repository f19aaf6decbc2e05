"""Training: AdamW with the specification's schedules, through Hugging Face Accelerate."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tfanet.data import ReferDataset
from tfanet.data.batches import make_loader
from tfanet.errors import InputError
from tfanet.files import whole_file
from tfanet.model.checkpoint import load_model, save_checkpoint
from tfanet.model.tfanet.config import PRESETS
from tfanet.model.tfanet.network import TFANet
from tfanet.progress import Progress
from tfanet.runtime.tokenizer import TextTokenizer
from tfanet.training.losses import segmentation_loss
from tfanet.training.state import Average, load_state, save_state

__all__ = ["TrainOptions", "learning_rate_at", "parameter_groups", "train"]


TOKENIZER = Path(__file__).parent.parent / "assets" / "clip_tokenizer.json"
LOG_EVERY = 50

# What weight decay must leave alone, besides all vectors and scalars: the scan's own parameters,
# X-Norm's gains and the weights of MLAM's scales.
_NO_DECAY = ("A_logs", "Ds", "dt_projs_bias", "gamma", "w")
_PRETRAINED = ("backbone.", "text.")

_RECIPES: dict[str, dict[str, Any]] = {
    # The paper's: constant to half of the training, then cosine; half the rate where pretrained.
    "tfanet-base": {
        "epochs": 50.0,
        "batch": 8,
        "lr": 5e-5,
        "pretrained_scale": 0.5,
        "schedule": "constant-cosine",
        "warmup": 0,
        "clip": 0.0,
        "by_picture": False,
    },
    "tfanet-tiny": {
        "epochs": 2.0,
        "batch": 12,
        "lr": 1.5e-3,
        "pretrained_scale": 1.0,
        "schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "by_picture": True,
    },
}


@dataclass(frozen=True)
class TrainOptions:
    """What to train on what, and how; a None is filled in from the preset's recipe.

    `steps` overrides `epochs`; `stop_after` ends early without changing the schedule, to be
    resumed. `batch` is per process. `pretrained_scale` multiplies the rate of backbone and text.
    `schedule`: "cosine" (after `warmup` linear steps) or "constant-cosine" (constant for the first
    half). `clip` is the largest gradient norm, 0 for none. `ema` is the decay of averaged weights,
    0 for none. `precision`: "no", "bf16" or "fp16". `init` is a checkpoint to start from.
    """

    data: str | Path
    output: str | Path
    dataset: str | None = None
    split: str = "train"
    split_by: str | None = None
    images: str | Path | None = None
    preset: str = "tfanet-tiny"
    init: str | Path | None = None
    image_size: tuple[int, int] | None = None
    text_length: int | None = None
    steps: int | None = None
    epochs: float | None = None
    stop_after: int | None = None
    batch: int | None = None
    lr: float | None = None
    pretrained_scale: float | None = None
    weight_decay: float = 1e-4
    schedule: str | None = None
    warmup: int | None = None
    final_lr: float = 1e-6
    clip: float | None = None
    ema: float = 0.0
    precision: str = "no"
    all_sentences: bool = False
    by_picture: bool | None = None
    seed: int = 0
    workers: int = 0
    save_every: int = 500
    resume: bool = False

    def filled(self) -> TrainOptions:
        """These options with every None of the recipe filled in. Raises InputError on bad ones."""
        if self.preset not in _RECIPES:
            raise InputError(f"preset {self.preset!r} is unknown: choose from {list(_RECIPES)}")
        recipe = _RECIPES[self.preset]
        done = replace(self, **{k: v for k, v in recipe.items() if getattr(self, k) is None})
        positive = {"batch": done.batch, "lr": done.lr, "save_every": done.save_every}
        positive |= {"steps": done.steps, "epochs": done.epochs, "stop_after": done.stop_after}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}: it must be more than 0")
        if done.schedule not in ("cosine", "constant-cosine"):
            raise InputError(f"schedule {done.schedule!r}: choose cosine or constant-cosine")
        if done.precision not in ("no", "bf16", "fp16"):
            raise InputError(f"precision {done.precision!r}: choose no, bf16 or fp16")
        if not 0 <= done.ema < 1:
            raise InputError(f"ema is {done.ema}: give a decay from 0 (off) to under 1")
        return done


def learning_rate_at(step: int, steps: int, options: TrainOptions) -> float:
    """The rate of new modules at `step` (from 0) of `steps`; `options` filled."""
    assert options.lr is not None
    assert options.warmup is not None
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    start = steps // 2 if options.schedule == "constant-cosine" else options.warmup
    share = min(1.0, max(0, step - start) / max(1, steps - start))
    return options.final_lr + (options.lr - options.final_lr) * (1 + math.cos(math.pi * share)) / 2


def parameter_groups(
    model: nn.Module, weight_decay: float, pretrained_scale: float
) -> list[dict[str, Any]]:
    """AdamW groups by (decay or not, pretrained part or new); each has its `lr_scale`.

    No decay on A_logs, Ds, norms, biases, X-Norm's gamma, MLAM's w and alphas: by name, or for
    having fewer than two dimensions.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in _NO_DECAY
        groups.setdefault((decays, name.startswith(_PRETRAINED)), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": pretrained_scale if pretrained else 1.0,
        }
        for (decays, pretrained), parameters in groups.items()
    ]


def _batch_iou(logit: Tensor, target: Tensor) -> Tensor:
    """Mean IoU of a batch at model resolution, float32 scalar."""
    predicted, true = logit > 0, target > 0.5
    union = (predicted | true).sum((1, 2, 3)).clamp_min(1)
    return ((predicted & true).sum((1, 2, 3)) / union).mean()


def _make_model(options: TrainOptions) -> TFANet:
    """The model to start from: of a checkpoint, or of the preset with fresh weights."""
    start = None if options.init is None else load_model(options.init)
    config = PRESETS[options.preset] if start is None else start.config
    if options.image_size is not None:
        config = replace(config, image_size=options.image_size)
    if options.text_length is not None:
        config = replace(config, text_length=options.text_length)
    model = TFANet(config)
    if start is not None:
        # No weight depends on the picture's size, so a training may begin on small pictures.
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"{options.init} has text length {start.config.text_length}, not "
                f"{options.text_length}: its weights depend on it, leave text_length out"
            ) from error
    return model


def _save_model(path: Path, model: TFANet, average: Average | None) -> None:
    """Write the checkpoint, averaged where there is an average, whole or not at all."""
    chosen = model
    if average is not None:
        chosen = copy.deepcopy(model)
        chosen.load_state_dict(average.weights)
    with whole_file(path) as part:
        save_checkpoint(part, chosen)


def _progress_line(loss: float, iou: float, seconds_left: float) -> str:
    return f"loss {loss:.3f}  mIoU {100 * iou:.1f}  {seconds_left / 60:.0f} min left"


def train(options: TrainOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or resume, one TFANet; `progress(message, step, steps)` is called after each step.

    Under `output` it keeps `model.safetensors` (what `load_model` reads; averaged weights where
    `ema` is on), `state.safetensors` (for `resume`) and `log.jsonl` (a line per 50 steps). The same
    options give the same weights on the same machine; stopping and resuming does not change them.
    Returns {"checkpoint", "step", "steps", "loss", "mIoU", "seconds"}, with loss and mIoU (percent,
    at model resolution) running means over recent training batches.

    Raises InputError on bad options or data, and where the loss stops being finite.
    """
    options = options.filled()
    # Accelerate keeps one state per process and refuses another precision, even after a training.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=options.precision)
    torch.manual_seed(options.seed)
    model = _make_model(options)
    config = model.config
    source = ReferDataset(
        options.data,
        options.dataset,
        options.split,
        split_by=options.split_by,
        images=options.images,
    )
    assert options.batch is not None
    assert options.lr is not None
    per_epoch = len(source) if options.all_sentences else len(source.refs)
    global_batch = options.batch * accelerator.num_processes
    steps = options.steps or max(1, round(per_epoch * (options.epochs or 1) / global_batch))

    groups = parameter_groups(model, options.weight_decay, options.pretrained_scale or 1.0)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.999), fused=True)
    model.to(accelerator.device).train()
    average = Average(model, options.ema) if options.ema else None
    output = Path(options.output)
    state_path = output / "state.safetensors"
    wrapped, stepper = accelerator.prepare(model, optimizer)
    first = 0
    if options.resume:
        facts = load_state(state_path, model, optimizer, average)
        first = int(facts["step"])
        if facts["steps"] != steps:
            raise InputError(
                f"{state_path} is of a training of {facts['steps']} steps, these options give "
                f"{steps}: resume with the same ones"
            )
        if accelerator.scaler is not None and facts["scaler"]:
            accelerator.scaler.load_state_dict(facts["scaler"])
    output.mkdir(parents=True, exist_ok=True)
    last = min(steps, options.stop_after or steps)

    def save(step: int) -> None:
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
            facts = {"step": step, "steps": steps, "scaler": scaler}
            save_state(state_path, model, optimizer, average, facts)
            _save_model(output / "model.safetensors", model, average)
        accelerator.wait_for_everyone()

    loader = make_loader(
        source,
        size=config.image_size,
        tokenizer=TextTokenizer(TOKENIZER, config.text_length),
        batch=options.batch,
        first_step=first,
        steps=last,
        seed=options.seed,
        all_sentences=options.all_sentences,
        by_picture=bool(options.by_picture),
        workers=options.workers,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    started = time.monotonic()
    loss_mean = iou_mean = math.nan
    for step, batch in enumerate(loader, start=first):
        # Whatever is random in a step depends on the step alone, so that resuming changes nothing.
        position = step * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(1_000_003 * options.seed + position)
        rate = learning_rate_at(step, steps, options)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        image, token_ids, word_mask, target = (part.to(accelerator.device) for part in batch)
        with accelerator.autocast():
            logit = wrapped(image, token_ids, word_mask)
        loss = segmentation_loss(logit.float(), target)
        accelerator.backward(loss)
        if options.clip:
            accelerator.clip_grad_norm_(model.parameters(), options.clip)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        if average is not None:
            average.update(model, step)
        loss_now, iou_now = float(loss.detach()), float(_batch_iou(logit.detach(), target))
        if not math.isfinite(loss_now):
            raise InputError(
                f"the loss is {loss_now} at step {step}: lower lr (now {options.lr}) or set clip"
            )
        loss_mean = loss_now if step == first else 0.98 * loss_mean + 0.02 * loss_now
        iou_mean = iou_now if step == first else 0.98 * iou_mean + 0.02 * iou_now
        done = step + 1
        seconds = time.monotonic() - started
        if accelerator.is_main_process:
            if progress is not None:
                left = seconds / (done - first) * (last - done)
                progress(_progress_line(loss_mean, iou_mean, left), done, last)
            if done % LOG_EVERY == 0 or done == last:
                line = {"step": done, "loss": loss_mean, "mIoU": 100 * iou_mean, "lr": rate}
                with open(output / "log.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps(line | {"seconds": round(seconds, 1)}) + "\n")
        if done % options.save_every == 0 and done < last:
            save(done)
    save(last)
    accelerator.end_training()
    return {
        "checkpoint": str(output / "model.safetensors"),
        "step": last,
        "steps": steps,
        "loss": loss_mean,
        "mIoU": 100 * iou_mean,
        "seconds": time.monotonic() - started,
    }
