"""Training: AdamW with the schedules of the recipes, through Hugging Face Accelerate."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from torch import Tensor, nn
from torch.nn import functional

from tfanet.data import ReferDataset
from tfanet.data.batches import make_loader
from tfanet.errors import InputError, check_choice
from tfanet.files import whole_file
from tfanet.model.checkpoint import family_of, save_checkpoint
from tfanet.model.family import Family, find_preset
from tfanet.model.training import Batch, Training
from tfanet.progress import Progress
from tfanet.training.logs import Log, check_tracker
from tfanet.training.options import CommonOptions, check_positive
from tfanet.training.state import Average, load_start, load_state, save_state

__all__ = ["TrainOptions", "learning_rate_at", "parameter_groups", "train"]


LOG_EVERY = 50
MODEL, STATE, LOG = "model.safetensors", "state.safetensors", "log.jsonl"
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # in Accelerate's words
SCHEDULES = ("cosine", "constant-cosine", "polynomial")


@dataclass(frozen=True)
class TrainOptions(CommonOptions):
    """What to train on what, and how; a None is filled in from the preset's recipe.

    `steps` overrides `epochs`; `stop_after` ends early without changing the schedule, to be
    resumed. `batch` is per process. `rates` are factors on `lr` by beginnings of names, of which
    the longest counts, beside those of the recipe: less than 1 for what other trainings left
    behind, and for layers that add up thousands of values, which Adam moves too far at the rate of
    the others.
    `schedule`: after `warmup` linear steps "cosine" or "polynomial" (a power of 0.9), or
    "constant-cosine" (constant for the first half). `clip` is the largest gradient norm, 0 for
    none. `ema` is the decay of averaged weights, 0 for none. `precision`: "fp32",
    or by autocast "bf16" or "fp16". `init` is a checkpoint to start from. `log_with`:
    "tensorboard" (files under `output`) or "wandb", beside log.jsonl.
    """

    preset: str = "tfanet-tiny"
    init: str | Path | None = None
    image_size: tuple[int, int] | None = None
    text_length: int | None = None
    steps: int | None = None
    epochs: float | None = None
    stop_after: int | None = None
    batch: int | None = None
    lr: float | None = None
    rates: Mapping[str, float] | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    warmup: int | None = None
    final_lr: float = 1e-6
    clip: float | None = None
    ema: float | None = None
    precision: str = "fp32"
    all_sentences: bool = False
    by_picture: bool | None = None
    save_every: int = 500
    resume: bool = False
    log_with: str | None = None

    def filled(self) -> TrainOptions:
        """These options with every None of the recipe filled in. Raises InputError on bad ones."""
        recipe = vars(_training(find_preset(self.preset)[0]).recipes[self.preset])
        missing = {k: v for k, v in recipe.items() if getattr(self, k) is None}
        done = replace(self, **missing | {"rates": {**recipe["rates"], **(self.rates or {})}})
        check_positive(batch=done.batch, lr=done.lr, save_every=done.save_every)
        check_positive(steps=done.steps, epochs=done.epochs, stop_after=done.stop_after)
        check_choice("schedule", str(done.schedule), SCHEDULES)
        check_choice("precision", done.precision, PRECISIONS)
        if done.log_with is not None:
            check_tracker(done.log_with)
        if done.resume and done.overwrite:
            raise InputError("resume goes on with a training, overwrite drops it: leave one out")
        assert done.ema is not None
        if not 0 <= done.ema < 1:
            raise InputError(f"ema is {done.ema}: give a decay from 0 (off) to under 1")
        return done


def _training(family: Family) -> Training:
    if family.training is None:
        raise InputError(f"{family.title} has no training here: only its checkpoints are used")
    return family.training


def learning_rate_at(step: int, steps: int, options: TrainOptions) -> float:
    """The rate of new modules at `step` (from 0) of `steps`; `options` filled."""
    assert options.lr is not None
    assert options.warmup is not None
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    start = steps // 2 if options.schedule == "constant-cosine" else options.warmup
    share = min(1.0, max(0, step - start) / max(1, steps - start))
    if options.schedule == "polynomial":
        return options.final_lr + (options.lr - options.final_lr) * (1 - share) ** 0.9
    return options.final_lr + (options.lr - options.final_lr) * (1 + math.cos(math.pi * share)) / 2


def parameter_groups(
    model: nn.Module, weight_decay: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """AdamW groups by (decay or not, factor on the rate); each has its `lr_scale`.

    No decay on what the model's family names, nor on what has fewer than two dimensions: norms,
    biases, gains. Raises InputError for rates that are no numbers from 0, or of no weight.
    """
    for beginning, factor in rates.items():
        if not 0 <= factor < math.inf:
            raise InputError(f"the rate of {beginning!r} is {factor}: give a factor from 0")
    training = _training(family_of(model))
    spared = tuple(f".{name}" for name in training.no_decay)
    unused = set(rates)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and not f".{name}".endswith(spared)
        beginnings = [begin for begin in rates if name.startswith(begin)]
        unused.difference_update(beginnings)
        scale = rates[max(beginnings, key=len)] if beginnings else 1.0
        groups.setdefault((decays, scale), []).append(parameter)
    if unused:
        parts = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
        raise InputError(
            f"no weight's name begins with {sorted(unused)[0]!r}: the parts of this model are "
            + ", ".join(parts)
        )
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": scale,
        }
        for (decays, scale), parameters in groups.items()
    ]


class _Objective(nn.Module):
    """A network with its loss: one call, so that whatever wraps it sees the whole step."""

    def __init__(self, model: nn.Module, training: Training) -> None:
        super().__init__()
        self.model, self.loss = model, training.loss

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.loss(self.model, batch)


def _batch_iou(logit: Tensor, target: Tensor, threshold: float) -> Tensor:
    """Mean IoU of a batch at the logit's size, float32 scalar; 1 where nothing is meant or found.

    Args:
        logit: (B, 1, h, w). target: (B, 1, H, W), of which the nearest pixels are taken.
    """
    predicted = logit > threshold
    true = functional.interpolate(target, logit.shape[2:], mode="nearest") > 0.5
    union = (predicted | true).sum((1, 2, 3))
    both = (predicted & true).sum((1, 2, 3))
    return torch.where(union > 0, both / union.clamp_min(1), 1.0).mean()


def _make_model(options: TrainOptions) -> Any:
    """The model to start from: of a checkpoint, or of the preset with fresh weights."""
    start = None if options.init is None else load_start(options.init, options.preset)
    family, config = find_preset(options.preset)
    if start is not None:
        config = start.config
    if options.image_size is not None:
        family.check_image_size(config, options.image_size)
        config = replace(config, image_size=options.image_size)
    if options.text_length is not None:
        config = replace(config, text_length=options.text_length)
    model = family.network(config)
    if start is not None:
        # Where no weight depends on the picture's size, a training may begin on small pictures.
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"{options.init} has text length {start.config.text_length}, not "
                f"{options.text_length}: its weights depend on it, leave text_length out"
            ) from error
    return model


def _facts(options: TrainOptions) -> dict[str, Any]:
    """The options as trackers take them: plain numbers and words."""
    return {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in vars(options).items()
        if value is not None
    }


def _save_model(path: Path, model: nn.Module, average: Average | None) -> None:
    """Write the checkpoint, averaged where there is an average, whole or not at all."""
    chosen = model
    if average is not None:
        chosen = copy.deepcopy(model)
        chosen.load_state_dict(average.weights)
    with whole_file(path) as part:
        save_checkpoint(part, chosen)


def train(options: TrainOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train, or resume, a model of any family.

    `progress(message, step, steps)` is called after each step.

    Under `output` it keeps `model.safetensors` (what `load_model` reads; averaged weights where
    `ema` is on), `state.safetensors` (for `resume`) and `log.jsonl` (a line per 50 steps). The same
    options give the same weights on the same machine; stopping and resuming does not change them.
    Returns {"checkpoint", "step", "steps", "loss", "mIoU", "seconds"}, with loss and mIoU (percent,
    at model resolution) running means over recent training batches.

    Raises InputError on bad options or data, and where the loss stops being finite.
    """
    options = options.filled()
    output = options.check_output(
        *() if options.resume else (MODEL, STATE, LOG), instead="give --resume to go on, "
    )
    # Accelerate keeps one state per process and refuses another precision, even after a training.
    AcceleratorState._reset_state()
    # Some families have weights that no gradient reaches: of heads for other data, or dead ones.
    idle = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[options.precision],
        kwargs_handlers=[idle],
        log_with=options.log_with,
        project_dir=output,
    )
    torch.manual_seed(options.seed)
    model = _make_model(options)
    config, family = model.config, family_of(model)
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

    assert options.weight_decay is not None
    assert options.rates is not None
    groups = parameter_groups(model, options.weight_decay, options.rates)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.999), fused=True)
    model.to(accelerator.device).train()
    average = Average(model, options.ema) if options.ema else None
    state_path = output / STATE
    objective, stepper = accelerator.prepare(_Objective(model, _training(family)), optimizer)
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
    log = Log(output / LOG, fresh=options.overwrite and not options.resume)
    if options.log_with:
        accelerator.init_trackers("tfanet", _facts(options))
    last = min(steps, options.stop_after or steps)

    def save(step: int) -> None:
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
            facts = {"step": step, "steps": steps, "scaler": scaler}
            save_state(state_path, model, optimizer, average, facts)
            _save_model(output / MODEL, model, average)
            log.save()
        accelerator.wait_for_everyone()

    loader = make_loader(
        source,
        preprocessing=family.preprocessing(config.image_size),
        tokenizer=family.make_tokenizer(config),
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
    threshold = family.postprocessing.logit_threshold
    started = time.monotonic()
    loss_mean = iou_mean = math.nan
    for step, batch in enumerate(loader, start=first):
        # Whatever is random in a step depends on the step alone, so that resuming changes nothing.
        position = step * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(1_000_003 * options.seed + position)
        rate = learning_rate_at(step, steps, options)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        batch = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            loss, logit = objective(batch)
        accelerator.backward(loss)
        if options.clip:
            accelerator.clip_grad_norm_(model.parameters(), options.clip)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        if average is not None:
            average.update(model, step)
        loss_now = float(loss.detach())
        iou_now = float(_batch_iou(logit.detach(), batch["target"], threshold))
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
                progress(f"loss {loss_mean:.3f}, mIoU {100 * iou_mean:.1f}, step", done, last)
            if done % LOG_EVERY == 0 or done == last:
                line = {"step": done, "loss": loss_mean, "mIoU": 100 * iou_mean, "lr": rate}
                log.add(line | {"seconds": round(seconds, 1)})
                accelerator.log(line, step=done)
        if done % options.save_every == 0 and done < last:
            save(done)
    save(last)
    accelerator.end_training()
    return {
        "checkpoint": str(output / MODEL),
        "step": last,
        "steps": steps,
        "loss": loss_mean,
        "mIoU": 100 * iou_mean,
        "seconds": time.monotonic() - started,
    }
