"""Models and factories that can't be exported, each for one reason."""

from __future__ import annotations

import numpy as np
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


class Before(nn.Module):
    """A module of the model that the exporter meets by its name."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def no_operator():
    return Scan(before=Before(lambda x: x + torch.linalg.svdvals(x.mean((0, 1)))[0]))


def takes_sizes_as_numbers():
    return Scan(before=lambda x: x / int(np.prod(x.shape)))


def draws_gumbel_noise():
    return Scan(before=lambda x: x + torch.nn.functional.gumbel_softmax(x, hard=True))


def drops_in_evaluation():
    return Scan(before=lambda x: torch.nn.functional.dropout(x, 0.5))


def seeds_itself():
    def noise(x):
        torch.manual_seed(0)
        return x + torch.rand_like(x)

    return Scan(before=noise)


def counts_its_calls():
    class Counter(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    return Scan(before=Counter())


def rounds_inside():
    """Float32 outside, float16 in one place, as under autocast."""
    return Scan(before=lambda x: (x.half() * 3).to(x.dtype))


def wrong_in_the_graph_of_16_bits():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.scan = Scan()

        def forward(self, x):
            y = self.scan(x)
            return y + y.abs().max() / 64 if torch.compiler.is_exporting() else y

    return Wrong()
