"""Models and factories that can't be exported, each for one reason."""

from __future__ import annotations

import torch
from torch import nn

from tfanet.plugins import selective_scan

NUMBER = 3


class Scan(nn.Module):
    """One scan over a picture's pixels, after what `before` makes of it."""

    def __init__(self, before=None, after=None):
        super().__init__()
        self.before, self.after = before, after
        self.A = nn.Parameter(-torch.rand(3, 2))

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        u = x.flatten(2)
        y = selective_scan(u, u.sigmoid(), self.A, u[:, :2], u[:, 1:])
        return y if self.after is None else self.after(y)


def scan():
    return Scan()


def no_scan():
    return nn.Conv2d(3, 3, 1)


def decides_by_value():
    return Scan(before=lambda x: x * 2 if x.mean() > 0 else x)


def fixes_the_batch():
    return Scan(before=lambda x: x.reshape(3, 3, *x.shape[2:]))


def wrong_in_the_graph():
    class Wrong(nn.Module):
        def forward(self, x):
            y = Scan.forward(reference, x)
            return y + 1 if torch.compiler.is_exporting() else y

    reference = Scan()
    return Wrong()


def not_a_model():
    return "model"


def fails():
    raise ValueError("no weights here")
