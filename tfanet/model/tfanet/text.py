"""CLIP's text tower, from transformers: token ids to word features and a sentence feature."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tfanet.errors import InputError
from tfanet.model.tfanet.config import TextConfig
from tfanet.runtime.tokenizer_file import END_ID, START_ID

__all__ = ["TextEncoder"]

_NAMES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "intermediate": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
}


class TextEncoder(nn.Module):
    """F_W and F_T of the paper (section 3.1).

    The tower is causal: tokens after the end token cannot change what stands before them, so it
    needs no attention mask.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.clip = _tower(config)

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) int64 to word features (B, T, L) and the sentence feature (B, T).

        The sentence feature is the final state at the first end token.
        """
        output = self.clip(input_ids=token_ids)
        return output.last_hidden_state.transpose(1, 2), output.pooler_output


def _tower(config: TextConfig) -> CLIPTextModel:
    if config.pretrained is None:
        sizes = CLIPTextConfig(
            **{theirs: getattr(config, name) for name, theirs in _NAMES.items()},
            bos_token_id=START_ID,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
        tower = CLIPTextModel(sizes)
        # CLIP's own 0.02 drowns in what the layers add: to fresh weights "red" and "blue" look the
        # same, and thousands of steps pass before they part.
        nn.init.normal_(tower.get_parameter("embeddings.token_embedding.weight"), std=1.0)
        return tower
    try:
        tower = CLIPTextModel.from_pretrained(config.pretrained)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"no CLIP text model at {config.pretrained!r}: {reason}") from error
    # A checkpoint is read without that model: what is built from the sizes must be the same.
    for name, theirs in _NAMES.items():
        if getattr(tower.config, theirs) != getattr(config, name):
            raise InputError(
                f"the text model at {config.pretrained!r} has {name} "
                f"{getattr(tower.config, theirs)}, the configuration says {getattr(config, name)}"
            )
    for name in ("hidden_act", "layer_norm_eps"):
        if getattr(tower.config, name) != getattr(CLIPTextConfig(), name):
            raise InputError(
                f"the text model at {config.pretrained!r} has {name} {getattr(tower.config, name)}"
                f": give one with {getattr(CLIPTextConfig(), name)}"
            )
    return tower
