"""transformers' Mamba, without the cache that generation needs."""

from __future__ import annotations

from torch import nn
from transformers import MambaConfig, MambaModel


class LastHiddenState(nn.Module):
    """transformers' model without the cache that generation needs."""

    def __init__(self, model):
        super().__init__()
        self.backbone = model

    def forward(self, input_ids):
        return self.backbone(input_ids, use_cache=False).last_hidden_state


def small():
    config = MambaConfig(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=2)
    return LastHiddenState(MambaModel(config))


def medium():
    config = MambaConfig(vocab_size=64, hidden_size=256, num_hidden_layers=4)
    return LastHiddenState(MambaModel(config))
