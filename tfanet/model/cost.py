"""Parameters, FLOPs and scan calls of a configuration, counted without allocating its weights.

FLOPs are 2 x multiply-accumulates of convolutions and matrix products, text tower included, plus
9 N + 1 per channel and step of every selective scan (VMamba's convention). At batch 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tfanet.model.config import Config
from tfanet.model.family import family_of_config
from tfanet.plugins.pytorch.ss2d import ss2d_flops

__all__ = ["describe"]


class _ScanCounter(FlopCounterMode):
    """Also notes the shape of every selective scan."""

    def __init__(self) -> None:
        self.scans: list[tuple[str, int, int, int, int]] = []
        scan, fused = torch.ops.tfanet.selective_scan, torch.ops.tfanet.ss2d
        mapping = {scan: self._count_scan, fused: self._count_ss2d}
        super().__init__(display=False, custom_mapping=mapping)

    def _count_scan(
        self,
        u: Sequence[int],
        delta: Sequence[int],
        A: Sequence[int],
        B: Sequence[int],
        *_: Any,
        **__: Any,
    ) -> int:
        groups, state, channels, length = B[1], A[1], u[1] // B[1], u[2]
        self.scans.append(("CSSM", groups, channels, state, length))
        return u[0] * u[1] * u[2] * (9 * state + 1)

    def _count_ss2d(
        self, u: Sequence[int], x_proj: Sequence[int], dt: Sequence[int], *_: Any, **__: Any
    ) -> int:
        state = (x_proj[1] - dt[2]) // 2
        self.scans.append(("SS2D", x_proj[0], u[1], state, u[2] * u[3]))
        return ss2d_flops(u, x_proj, dt)


class _Reader(TorchDispatchMode):
    """Notes every tensor that anything is computed from."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        super().__init__()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        self.seen.update(id(x) for x in tree_leaves((args, given)) if isinstance(x, torch.Tensor))
        return func(*args, **given)


def describe(config: Config, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Counts of one forward pass.

    Returns:
        name, family, image_size, params, alive (those of them that the two graphs compute with:
        the rest is for training alone), flops, and scans: for each distinct shape, in the order of
        the first call, where (SS2D: over pixels, CSSM: over channels), calls, groups K, channels D
        per group, state N and length L.

    Raises:
        InputError: for an image size that the network cannot take.
    """
    family = family_of_config(config)
    size = image_size or config.image_size
    family.check_image_size(config, size)
    counter, reader = _ScanCounter(), _Reader()
    with torch.device("meta"):
        model: Any = family.network(config.by_sizes()).eval().requires_grad_(False)
        token_ids = torch.empty(1, config.text_length, dtype=torch.int64)
        image, word_mask = torch.empty(1, 3, *size), torch.empty(1, config.text_length)
        with torch.no_grad(), counter, reader:
            features = family.run_text(model, token_ids)
            family.run_image(model, image, features, word_mask)
    calls: dict[tuple[str, int, int, int, int], int] = {}
    for scan in counter.scans:
        calls[scan] = calls.get(scan, 0) + 1
    keys = ("where", "groups", "channels", "state", "length")
    parameters = list(model.parameters())
    return {
        "name": config.name,
        "family": family.name,
        "image_size": list(size),
        "params": sum(p.numel() for p in parameters),
        "alive": sum(p.numel() for p in parameters if id(p) in reader.seen),
        "flops": counter.get_total_flops(),
        "scans": [
            {**dict(zip(keys, scan, strict=True)), "calls": count} for scan, count in calls.items()
        ],
    }
