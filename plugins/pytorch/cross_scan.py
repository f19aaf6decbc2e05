"""VMamba's cross-scan and cross-merge in standard operators: four sequences from a map, and back.

The direction k of a scan mode reads the map (H, W) after a turn; the merge undoes it:

    mode 0, "cross2d"   rows, columns, rows reversed, columns reversed
    mode 1, "unidi"     rows, four times
    mode 2, "bidi"      rows, rows, rows reversed, rows reversed
    mode 3              rows, and the map turned by 90, 180 and 270 degrees

Flags and their meaning are those of `cross_scan_fn` and `cross_merge_fn` in VMamba's repository.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfanet.errors import InputError

__all__ = ["cross_merge", "cross_scan"]

# Per mode and direction: whether the map is transposed, and what is reversed after that: the whole
# sequence, or the map along one axis.
_H, _W, _ALL = -2, -1, 0
_TURNS: dict[int, tuple[tuple[bool, int | None], ...]] = {
    0: ((False, None), (True, None), (False, _ALL), (True, _ALL)),
    1: ((False, None),) * 4,
    2: ((False, None), (False, None), (False, _ALL), (False, _ALL)),
    3: ((False, None), (True, _H), (False, _ALL), (True, _W)),
}


def cross_scan(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
) -> Tensor:
    """A map to four sequences.

    Args:
        x: (B, C, H, W), or (B, H, W, C) without `in_channel_first`; with `one_by_one` a map per
            direction, (B, 4, C, H, W) or (B, H, W, 4, C).
        scans: the mode, 0 to 3.

    Returns:
        (B, 4, C, H*W), or (B, H*W, 4, C) without `out_channel_first`.

    Raises:
        InputError: for another rank, another number of directions or an unknown mode.
    """
    turns = _turns(scans)
    _check(x, "cross_scan", 5 if one_by_one else 4)
    if one_by_one:
        maps = (x if in_channel_first else x.permute(0, 3, 4, 1, 2)).unbind(1)
        _check_directions(len(maps), "cross_scan")
    else:
        maps = (x if in_channel_first else x.permute(0, 3, 1, 2),) * 4
    y = torch.stack([_sequence(m, *turn) for m, turn in zip(maps, turns, strict=True)], 1)
    return y if out_channel_first else y.permute(0, 3, 1, 2)


def cross_merge(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
) -> Tensor:
    """Four sequences put back in place and added; with `one_by_one` they stay apart.

    Args:
        y: (B, 4, C, H, W), or (B, H, W, 4, C) without `out_channel_first`, where H and W are the
            map's and the pixels are in the order of the sequence.

    Returns:
        (B, C, H*W), or (B, H*W, C) without `in_channel_first`; with `one_by_one` (B, 4, C, H*W)
        or (B, H*W, 4, C).

    Raises:
        InputError: as `cross_scan`.
    """
    turns = _turns(scans)
    _check(y, "cross_merge", 5)
    directions = (y if out_channel_first else y.permute(0, 3, 4, 1, 2)).unbind(1)
    _check_directions(len(directions), "cross_merge")
    if one_by_one:
        maps = [_upright(_unturn(d, *t), t[0]) for d, t in zip(directions, turns, strict=True)]
        x = torch.stack(maps, 1)
        return x if in_channel_first else x.permute(0, 3, 1, 2)
    # Opposite directions are added first, as VMamba does; then one transposition serves two.
    sums: dict[bool, Tensor] = {}
    for direction, (transposed, reversal) in zip(directions, turns, strict=True):
        part = _unturn(direction, transposed, reversal)
        sums[transposed] = sums[transposed] + part if transposed in sums else part
    parts = [_upright(part, transposed) for transposed, part in sums.items()]
    x = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return x if in_channel_first else x.transpose(1, 2)


def _sequence(x: Tensor, transposed: bool, reversal: int | None) -> Tensor:
    """(B, C, H, W) to (B, C, H*W), in the order of one direction."""
    x = x.transpose(_H, _W) if transposed else x
    if reversal in (_H, _W):
        x = x.flip(reversal)
    x = x.flatten(2)
    return x.flip(-1) if reversal == _ALL else x


def _unturn(y: Tensor, transposed: bool, reversal: int | None) -> Tensor:
    """A direction's (B, C, H, W) to (B, C, H, W) or, `transposed`, (B, C, W, H): not reversed."""
    height, width = y.shape[-2:]
    y = y.flatten(2)
    y = y.flip(-1) if reversal == _ALL else y
    y = y.unflatten(2, (width, height) if transposed else (height, width))
    return y.flip(reversal) if reversal in (_H, _W) else y


def _upright(y: Tensor, transposed: bool) -> Tensor:
    return (y.transpose(_H, _W) if transposed else y).flatten(2)


def _turns(scans: int) -> tuple[tuple[bool, int | None], ...]:
    if scans not in _TURNS:
        raise InputError(
            f"scan mode is {scans}, expected 0 (cross2d), 1 (unidi), 2 (bidi) or 3 (turned maps)"
        )
    return _TURNS[scans]


def _check(x: Tensor, function: str, rank: int) -> None:
    if x.ndim != rank:
        raise InputError(f"{function}: the map has shape {tuple(x.shape)}, expected rank {rank}")


def _check_directions(found: int, function: str) -> None:
    if found != 4:
        raise InputError(
            f"{function}: {found} directions, expected 4: this fork scans in another way"
        )
