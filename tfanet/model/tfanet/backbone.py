"""VMamba (official v2 models): parameter names, shapes and function of the published checkpoints.

A stage is `blocks` (SS2D and MLP, both pre-norm residual) and a strided 3x3 `downsample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.model.layers.drop_path import DropPath
from tfanet.model.tfanet.ss2d import SS2D, LayerNorm2d, Linear2d
from tfanet.weights import choose_level, read_pth, refuse_misfits

__all__ = ["VMamba", "load_vmamba", "vmamba_base", "vmamba_small", "vmamba_tiny"]


class MLP(nn.Module):
    """fc2(GELU(fc1(x))), C to 4C to C, on every pixel."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = Linear2d(dim, ratio * dim)
        self.fc2 = Linear2d(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VSSBlock(nn.Module):
    """x += SS2D(LN(x)); x += MLP(LN(x))."""

    def __init__(self, dim: int, ssm_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.op = SS2D(dim, ssm_ratio)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = MLP(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """The blocks of one resolution, and the way to the next one (identity after the last)."""

    def __init__(
        self, dim: int, next_dim: int | None, ssm_ratio: float, drop_paths: Sequence[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(VSSBlock(dim, ssm_ratio, rate) for rate in drop_paths))
        self.downsample: nn.Module = nn.Identity()  # the last stage has nowhere to go
        if next_dim is not None:
            self.downsample = nn.Sequential(  # slots 0 and 2 keep the official names
                nn.Identity(),
                nn.Conv2d(dim, next_dim, 3, stride=2, padding=1),
                nn.Identity(),
                LayerNorm2d(next_dim),
            )


class VMamba(nn.Module):
    """The backbone without its classifier.

    Args:
        dims: C_1..C_4. depths: blocks per stage. ssm_ratio: E / C. drop_path: rate of the last
            block; the rates rise linearly from 0.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        ssm_ratio: float,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.patch_embed = nn.Sequential(  # slots 1, 3 and 6 keep the official names
            nn.Conv2d(3, dims[0] // 2, 3, stride=2, padding=1),
            nn.Identity(),
            LayerNorm2d(dims[0] // 2),
            nn.Identity(),
            nn.GELU(),
            nn.Conv2d(dims[0] // 2, dims[0], 3, stride=2, padding=1),
            nn.Identity(),
            LayerNorm2d(dims[0]),
        )
        total = sum(depths)
        rates = [drop_path * index / max(1, total - 1) for index in range(total)]
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(depths):
            start = sum(depths[:stage])
            following = dims[stage + 1] if stage + 1 < len(dims) else None
            self.layers.append(
                Stage(dims[stage], following, ssm_ratio, rates[start : start + depth])
            )
        self.apply(_init_linear)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the four stage maps (B, C_i, H / 2^(i+1), W / 2^(i+1))."""
        maps = []
        x = self.patch_embed(image)
        for stage in self.stages():
            x = stage.blocks(x)
            maps.append(x)
            x = stage.downsample(x)
        return maps

    def stages(self) -> list[Stage]:
        """The four stages, for a caller that works between `blocks` and `downsample`."""
        return cast(list[Stage], list(self.layers))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vmamba_tiny(drop_path: float = 0.0) -> VMamba:
    """VMamba-T [s1l8]."""
    return VMamba((96, 192, 384, 768), (2, 2, 8, 2), 1.0, drop_path)


def vmamba_small(drop_path: float = 0.0) -> VMamba:
    """VMamba-S [s2l15]."""
    return VMamba((96, 192, 384, 768), (2, 2, 15, 2), 2.0, drop_path)


def vmamba_base(drop_path: float = 0.0) -> VMamba:
    """VMamba-B [s2l15], TFANet's backbone."""
    return VMamba((128, 256, 512, 1024), (2, 2, 15, 2), 2.0, drop_path)


def load_vmamba(backbone: VMamba, path: str | Path) -> None:
    """Load an official VMamba v2 checkpoint into a backbone, strictly except for the classifier.

    Linear weights may be (out, in, 1, 1), and the scan's projections may carry their newer names
    and shapes (`x_proj.weight`, `dt_projs.weight`): the numbers are the same.

    Raises:
        InputError: naming missing, unexpected or mis-shaped parameters.
    """
    own = backbone.state_dict()
    official = choose_level(read_pth(Path(path)), set(own))
    renamed: dict[str, Tensor] = {}
    for name, value in official.items():
        if name.startswith(("classifier.", "outnorm")):
            continue
        name = name.replace("x_proj.weight", "x_proj_weight")
        name = name.replace("dt_projs.weight", "dt_projs_weight")
        known = own.get(name)
        reshapes = name.endswith(("x_proj_weight", "dt_projs_weight")) or (
            value.ndim == 4 and value.shape[2:] == (1, 1)
        )
        if known is not None and reshapes and known.numel() == value.numel():
            value = value.reshape(known.shape)
        renamed[name] = value
    refuse_misfits(own, renamed, Path(path))
    backbone.load_state_dict(renamed)
