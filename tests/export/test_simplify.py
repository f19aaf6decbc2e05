"""What every exported graph goes through: batch norms joined with convolutions, weights as read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tfanet.export.trace import export_graph

import onnxruntime


def exported(module: nn.Module, image: Tensor):
    module.eval()
    graph = export_graph(module, (image,), ("image",), ("out",), None, 20)
    with torch.no_grad():
        expected = module(image).numpy()
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (got,) = session.run(None, {"image": image.numpy()})
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    return graph.graph, Counter(node.op_type for node in graph.graph.node)


def drawn(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(norm.running_var, 0.1, 3)
    return norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norms_become_part_of_the_convolution_before(bias, groups):
    torch.manual_seed(groups)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=groups, bias=bias)
    module = nn.Sequential(conv, drawn(nn.BatchNorm2d(6, eps=1e-3)), nn.ReLU())
    graph, ops = exported(module, torch.randn(2, 4, 7, 5))
    assert ops == {"Conv": 1, "Relu": 1}
    assert {tensor.name for tensor in graph.initializer} == {
        "0.normed_weight", "0.normed_bias"
    }  # fmt: skip


class Shared(nn.Module):
    """A convolution that is read with and without its norm, one used twice, and a norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(drawn(nn.BatchNorm2d(3)) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        n, a = self.norms, self.a(image)
        both = n[0](a) + a
        return n[3](both + n[1](self.b(image)) + n[2](self.b(image + 1)))


def test_what_others_read_is_left_as_it_is():
    torch.manual_seed(0)
    _, ops = exported(Shared(), torch.randn(1, 3, 4, 4))
    assert ops["Conv"] == 3 and ops["BatchNormalization"] == 4


class Pointwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(128, 80, 1)  # above what is folded anyway

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.conv.weight.squeeze(2), self.conv.bias)


def test_a_convolution_s_weight_that_is_read_as_a_matrix_is_stored_as_one():
    module = Pointwise()
    graph, ops = exported(module, torch.randn(2, 5, 128))
    assert ops == {"MatMul": 1, "Add": 1}
    weights = [numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) == 2]
    assert len(weights) == 1
    assert (weights[0] == module.conv.weight[:, :, 0].detach().numpy().T).all()


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(3))
        for layer in self.layers:
            layer.register_buffer("place", torch.arange(50_000) % 7 == 0, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + layer.place.float().reshape(1, 1, 200, 250)
        return x


def test_equal_constants_are_stored_and_computed_once():
    graph, ops = exported(Masked(), torch.randn(1, 1, 200, 250))
    assert sum(np.prod(t.dims) for t in graph.initializer) < 60_000
    assert ops["Cast"] <= 1
