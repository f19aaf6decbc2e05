"""The shipped weights are the trained ones, and the shipped bundle is made of them."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tfanet.export import export_bundle
from tfanet.model.checkpoint import load_model
from tfanet.runtime import Bundle
from tfanet.runtime.shipped import shipped_bundle, shipped_names

# Of the trained weights in float32, as `digest` takes it from the state dict of the checkpoint.
TRAINED = {"tfanet-tiny": "ef1a138448d13c78ba45fcf4b5a28131ecef45f3500064b82e1fe592f2c2b95a"}


def digest(state: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", shipped_names())
def test_the_weights_are_the_trained_ones(name):
    state = {key: value.numpy() for key, value in load_model(name).state_dict().items()}
    assert digest(state) == TRAINED[name]


def without_numbers(model: onnx.ModelProto) -> tuple[bytes, dict[str, np.ndarray]]:
    """A graph whose initialisers are empty, and their values."""
    values = {one.name: numpy_helper.to_array(one).copy() for one in model.graph.initializer}
    for one in model.graph.initializer:
        one.ClearField("raw_data")
    return model.SerializeToString(deterministic=True), values


@pytest.mark.full
@pytest.mark.parametrize("name", shipped_names())
def test_an_export_gives_the_shipped_bundle(name, tmp_path):
    """Node for node; numbers that an export computes may differ in the last bits elsewhere."""
    shipped = Bundle.open(shipped_bundle(name))
    fresh = export_bundle(name, tmp_path / "fresh")
    for key in ("versions", "tool"):
        assert getattr(fresh.manifest, key) == getattr(shipped.manifest, key), "make it again"
    for file in shipped.manifest.files:
        if not file.endswith(".onnx"):
            assert fresh.read(file) == shipped.read(file)
            continue
        nodes, values = without_numbers(onnx.load_model_from_string(shipped.read(file)))
        again, numbers = without_numbers(onnx.load_model_from_string(fresh.read(file)))
        assert again == nodes
        for key, value in values.items():
            np.testing.assert_allclose(numbers[key], value, rtol=1e-6, atol=0, err_msg=key)
    old, new = shipped.manifest.to_dict(), fresh.manifest.to_dict()
    for facts in (old, new):
        del facts["parity"], facts["files"]  # they depend on the processor
    assert new == old
