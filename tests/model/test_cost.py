"""What is counted of each family, beside its parameters and what was published of it."""

from __future__ import annotations

import pytest
import torch

from tfanet.errors import InputError
from tfanet.model.config import Config
from tfanet.model.cost import describe
from tfanet.model.family import FAMILIES, family_of_config, find_family, presets


@pytest.mark.parametrize("name", FAMILIES)
def test_full_size_models_have_the_published_counts(name: str) -> None:
    family = find_family(name)
    facts = describe(family.presets[f"{name}-base"])
    published = family.published
    assert published is not None
    assert all(len(row) == len(published.metrics) for row in published.results.values())
    assert facts["alive"] <= facts["params"]
    if published.alive:
        assert facts["alive"] == published.alive
    if published.params:
        whole = published.params if facts["params"] > facts["alive"] else published.alive
        assert facts["params"] == pytest.approx(whole or published.params, rel=0.01)
    assert bool(published.counted) == bool(published.params or published.flops)


@pytest.mark.parametrize("name", [n for n in presets() if n.endswith("-tiny")])
def test_parameters_of_what_is_called_are_alive(name: str) -> None:
    config = presets()[name]
    family = family_of_config(config)
    torch.manual_seed(0)
    model = family.network(config.by_sizes()).eval()
    facts = describe(config)
    assert facts["params"] == sum(p.numel() for p in model.parameters())
    image = torch.randn(1, 3, *config.image_size)
    ids = torch.arange(1, config.text_length + 1)[None]
    mask = torch.ones(1, config.text_length)
    used = set()
    handles = [
        module.register_forward_pre_hook(lambda m, _: used.update(m.parameters(recurse=False)))
        for module in model.modules()
    ]
    with torch.no_grad():
        family.run_image(model, image, family.run_text(model, ids), mask)
    for handle in handles:
        handle.remove()
    counted = sum(p.numel() for p in used)
    # Parameters of modules that are called: all that is read, but for those read from outside.
    assert counted <= facts["alive"] <= facts["params"]


def test_other_configurations_are_refused() -> None:
    with pytest.raises(InputError, match="Config is of no model family: choose from tfanet"):
        family_of_config(Config("x", (32, 32), 8))
    with pytest.raises(InputError, match="multiples of 32"):
        describe(presets()["tfanet-tiny"], (50, 64))
