"""ASDA: official names and golden outputs, CLIP's towers, the selection, losses and graphs."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from official_weights import GOLDEN, golden_image, read_names, weights_by_rule
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from tfanet.cli import main
from tfanet.errors import GateError, InputError
from tfanet.export import export_bundle
from tfanet.export.compare import make_cases
from tfanet.export.parity.check import check_bundle
from tfanet.export.parity.report import write_report
from tfanet.export.trace import EXAMPLE_BATCH
from tfanet.model.asda.attention import sine_positions
from tfanet.model.asda.config import PRESETS, ASDAConfig
from tfanet.model.asda.family import FAMILY
from tfanet.model.asda.loss import focal_loss, loss
from tfanet.model.asda.network import ASDA
from tfanet.model.asda.official import from_clip, from_official, official_config
from tfanet.model.checkpoint import load_model, save_checkpoint
from tfanet.runtime import Bundle
from tfanet.runtime.bundle.graphs import GRAPHS
from tfanet.runtime.picture import load_image
from tfanet.runtime.preprocess import picture_to_tensor
from tfanet.runtime.tokenizer import tokenizer_of
from tfanet.training.train import parameter_groups

import onnxruntime

SMALL = replace(
    PRESETS["asda-tiny"],
    image_size=(32, 48),
    patch=8,
    layers=6,
    text_length=9,
    vision_width=16,
    vision_heads=2,
    text_width=8,
    text_heads=2,
    low=(0, 1, 2),
    mid=(3, 4),
    width=12,
    heads=2,
    masks=3,
)
START, END = 49406, 49407
TOWER = "visumodel.transformer.resblocks."
DEAD = (
    "visumodel.positional_embedding",
    "visumodel.ln_post.bias",
    "visumodel.proj",
    "fusion.lang_attn.0.weight",
    "up_proj_cat_proj_1.proj1.bn.running_mean",
    "pool_proj_cat_proj_2.proj2.conv.weight",
    "proj_cat.proj1.conv.weight",
    "up_proj_cat_2.proj1.bn.num_batches_tracked",
    "proj_0.bn.weight",
    "norm1.weight",
    "norm2.bias",
    "fpn.output_convs.0.conv.weight",
    "fpn.output_convs.1.bn.bias",
)
UNLEARNT = ("vis_select.", "feature_selector_")


def token_ids(batch: int, config: ASDAConfig = SMALL) -> Tensor:
    ids = torch.zeros(batch, config.text_length, dtype=torch.int64)
    ids[:, 0] = START
    ids[:, 1:4] = torch.randint(1, 49000, (batch, 3))
    ids[:, 4] = END
    return ids


def fresh(config: ASDAConfig = SMALL, seed: int = 0) -> ASDA:
    """In evaluation mode, with statistics and coefficients as after a training."""
    torch.manual_seed(seed)
    model = ASDA(config).eval()
    for layer in (model.proj3, model.projout):  # fresh ones hardly listen to the words
        layer.reset_parameters()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def official_names(model: ASDA) -> dict[str, Tensor]:
    """What the official code would have saved of this network: one projection for q, k and v, the
    vision blocks twice, and entries that nothing uses."""
    own, state = model.state_dict(), {}
    for name, value in own.items():
        if part := re.fullmatch(r"(.+)\.([qkv])\.(weight|bias)", name):
            if part[2] == "q":
                thirds = [own[f"{part[1]}.{third}.{part[3]}"] for third in "qkv"]
                state[f"{part[1]}.in_proj_{part[3]}"] = torch.cat(thirds)
        else:
            state[name] = value
    for name in [name for name in state if name.startswith(TOWER)]:
        block, _, rest = name.removeprefix(TOWER).partition(".")
        state[f"visu_resblocks.{block}.clip_module.{rest}"] = state[name].clone()
    for name in DEAD:
        state[name] = torch.zeros(1)
    return state


def test_names_shapes_and_counts_are_the_official_ones():
    names = read_names(GOLDEN / "asda_params.txt")
    assert len(names) == 703
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in names.items()}
        own = ASDA(PRESETS["asda-base"]).state_dict()
    for name in [name for name in names if name.startswith("visu_resblocks.")]:
        state[name] = state[name.replace("visu_resblocks.", TOWER).replace("clip_module.", "")]
    loaded = from_official(state)
    assert {n: v.shape for n, v in loaded.items()} == {n: v.shape for n, v in own.items()}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    counted = {
        name: math.prod(shape)
        for name, shape in names.items()
        if not name.endswith(buffers) and not name.startswith("visu_resblocks.")
    }
    assert sum(counted.values()) == 193_090_306
    alive = {n: v.numel() for n, v in own.items() if not n.endswith(buffers)}
    text = sum(count for name, count in alive.items() if name.startswith("textmodel"))
    assert sum(alive.values()) == 180_797_442 and text == 63_135_232


@pytest.mark.full
def test_the_outputs_are_those_of_the_official_code():
    names = read_names(GOLDEN / "asda_params.txt")
    kept = {n: s for n, s in names.items() if not n.startswith("visu_resblocks.")}
    state = {name: weights_by_rule(name, shape) for name, shape in kept.items()}
    model = ASDA(PRESETS["asda-base"]).eval()
    model.load_state_dict(from_official(state))
    golden = np.load(GOLDEN / "asda.npz")
    got: dict[str, Tensor] = {}

    def keep(module: nn.Module, name: str, places: tuple[slice, ...] = ()) -> None:
        module.register_forward_hook(lambda _, __, out: got.__setitem__(name, out[0][places]))

    keep(model.fpn, "coarse", (slice(None), slice(None, None, 2), slice(None, None, 2)))
    keep(model.mask_decoder, "proto", (slice(None), slice(None, None, 8), slice(None, None, 8)))
    keep(model.projout, "coef_before_tanh")
    with torch.no_grad():
        words, sentence = model.encode_text(torch.from_numpy(golden["token_ids"]))
        image = golden_image((416, 416))
        got |= {"words": words[0].T, "logit": model.segment(image, words, sentence)[0, 0]}
        scores = model.selection(image, sentence)
    got |= {f"score_{name}": score[0] for name, score in scores.items()}
    for name in set(golden.files) - {"token_ids"}:
        expected = golden[name]
        error = np.abs(got[name].numpy() - expected).max() / np.abs(expected).max()
        assert error <= 1e-4, name
    assert [int(scores[name].argmax()) for name in ("low", "mid")] == [2, 1]


TRANSFORMERS = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def to_transformers(blocks: nn.Module) -> dict[str, Tensor]:
    """A tower's blocks by the names of transformers' CLIP."""
    state = {}
    for name, value in blocks.state_dict().items():
        block, _, rest = name.removeprefix("resblocks.").partition(".")
        stem, kind = rest.rsplit(".", 1)
        state[f"encoder.layers.{block}.{TRANSFORMERS[stem]}.{kind}"] = value
    return state


def test_the_text_tower_is_clip_s():
    model, ids = fresh(), token_ids(3)
    ids[1, 2] = END  # two end tokens: the first is meant
    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=SMALL.text_width,
            intermediate_size=SMALL.mlp_ratio * SMALL.text_width,
            num_attention_heads=SMALL.text_heads,
            num_hidden_layers=SMALL.layers,
            max_position_embeddings=SMALL.text_length,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=0,
        )
    ).eval()
    state = to_transformers(model.textmodel) | {
        "embeddings.token_embedding.weight": model.textmodel_token_embedding.weight,
        "embeddings.position_embedding.weight": model.textmodel_pos_embed[0],
        "final_layer_norm.weight": model.textmodel_ln_final.weight,
        "final_layer_norm.bias": model.textmodel_ln_final.bias,
    }
    clip.load_state_dict(state)
    with torch.no_grad():
        words, sentence = model.encode_text(ids)
        expected = clip(input_ids=ids, output_hidden_states=True)
    layers = [expected.hidden_states[i + 1] for i in (*SMALL.low, *SMALL.mid)]
    ends = [layer[torch.arange(3), ids.argmax(1)] for layer in layers]
    torch.testing.assert_close(words.transpose(1, 2), expected.last_hidden_state, atol=1e-5, rtol=0)
    assert sentence.shape == (3, 6 * SMALL.text_width)
    together = torch.cat([expected.pooler_output, *ends], dim=1)
    torch.testing.assert_close(sentence, together, atol=1e-5, rtol=0)


def test_the_vision_tower_is_clip_s():
    model = fresh(replace(SMALL, image_size=(40, 40)))
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=SMALL.vision_width,
            intermediate_size=SMALL.mlp_ratio * SMALL.vision_width,
            num_attention_heads=SMALL.vision_heads,
            num_hidden_layers=SMALL.layers,
            image_size=40,
            patch_size=SMALL.patch,
        )
    ).eval()
    tower = model.visumodel
    state = to_transformers(tower.transformer) | {
        "embeddings.class_embedding": tower.class_embedding,
        "embeddings.patch_embedding.weight": tower.conv1.weight,
        "embeddings.position_embedding.weight": model.positional_embedding[0],
        "pre_layrnorm.weight": tower.ln_pre.weight,
        "pre_layrnorm.bias": tower.ln_pre.bias,
    }
    dropped = clip.load_state_dict(state, strict=False)
    assert dropped.unexpected_keys == []
    assert {name.split(".")[0] for name in dropped.missing_keys} <= {"post_layernorm", "embeddings"}
    image = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = clip(pixel_values=image, output_hidden_states=True).hidden_states
        x = tower.tokens(image, model.positional_embedding)
        torch.testing.assert_close(x, expected[0], atol=1e-5, rtol=0)
        for block, state_behind in zip(tower.transformer.resblocks, expected[1:], strict=True):
            x = block(x)
            torch.testing.assert_close(x, state_behind, atol=1e-5, rtol=0)


def test_a_checkpoint_by_its_official_names_loads(tmp_path):
    model = fresh()
    state = official_names(model)
    assert any(name.startswith("visu_resblocks.") for name in state) and "norm1.weight" in state
    path = tmp_path / "asda_model_best.pth.tar"
    torch.save({"epoch": 3, "state_dict": state, "best_iou": 0.5, "optimizer": {}}, path)
    loaded = load_model(path, config=SMALL)
    assert isinstance(loaded, ASDA) and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_two_copies_that_differ_are_refused():
    state = official_names(fresh())
    name = "visu_resblocks.2.clip_module.mlp.c_fc.bias"
    state[name] = state[name] + 1e-6
    with pytest.raises(InputError, match=rf"{name} and {TOWER}2\.mlp\.c_fc\.bias are one"):
        from_official(state)
    del state[f"{TOWER}2.mlp.c_fc.bias"]
    with pytest.raises(InputError, match="lacks visumodel"):
        from_official(state)


@pytest.mark.parametrize(
    "name", ["proj_4.conv.weight", "fpn.output_convs.3.bn.bias", "fc_1.weight"]
)
def test_an_unknown_name_is_refused(tmp_path, name):
    path = tmp_path / "weights.pth"
    torch.save(official_names(fresh()) | {name: torch.zeros(2)}, path)
    with pytest.raises(InputError, match=name):
        load_model(path, config=SMALL)


def test_the_text_length_is_the_checkpoint_s():
    base = PRESETS["asda-base"]
    longer = official_config({"textmodel_pos_embed": torch.empty(1, 22, 512)}, base)
    assert longer == replace(base, text_length=22)
    with pytest.raises(InputError, match="text_length is 2:"):
        official_config({"textmodel_pos_embed": torch.empty(1, 2, 512)}, base)


def clip_names(config: ASDAConfig, side: int) -> dict[str, Tensor]:
    """Both towers as OpenAI's CLIP names them, of the sizes of `config`, for side^2 patches."""
    model = official_names(fresh(config))
    state = {}
    for theirs, ours in (
        ("visual.transformer.", "visumodel.transformer."),
        ("transformer.", "textmodel."),
    ):
        found = [name for name in model if name.startswith(ours + "resblocks.")]
        state |= {name.replace(ours, theirs): torch.randn_like(model[name]) for name in found}
    for name in (
        "visumodel.conv1.weight",
        "visumodel.class_embedding",
        "visumodel.ln_pre.weight",
        "visumodel.ln_pre.bias",
        "textmodel_token_embedding.weight",
        "textmodel_ln_final.weight",
        "textmodel_ln_final.bias",
    ):
        theirs = name.replace("visumodel", "visual").removeprefix("textmodel_")
        state[theirs] = torch.randn_like(model[name])
    state["visual.positional_embedding"] = torch.randn(side * side + 1, config.vision_width)
    state["positional_embedding"] = torch.randn(77, config.text_width)
    return state


def test_a_training_starts_from_clip():
    clip = clip_names(SMALL, 3)
    started, model = from_clip(clip, SMALL), ASDA(SMALL)
    rest = model.load_state_dict(started, strict=False)
    assert rest.unexpected_keys == []
    towers = ("visumodel.", "textmodel", "positional_embedding")
    assert not [name for name in rest.missing_keys if name.startswith(towers)]
    q = model.textmodel.resblocks[1].attn.k.weight
    width = SMALL.text_width
    assert torch.equal(q, clip["transformer.resblocks.1.attn.in_proj_weight"][width : 2 * width])
    assert torch.equal(model.textmodel_pos_embed[0], clip["positional_embedding"][:9])
    places = clip["visual.positional_embedding"]
    assert torch.equal(model.positional_embedding[0, 0], places[0])
    # Half-pixel centres, edges repeated, along each axis.
    rows, columns = (
        np.array(
            [np.interp((np.arange(n) + 0.5) * 3 / n - 0.5, range(3), one) for one in np.eye(3)]
        )
        for n in SMALL.grid
    )
    square = places[1:].reshape(3, 3, -1).numpy()
    resized = np.einsum("ih,jw,ijc->hwc", rows, columns, square).reshape(24, -1)
    np.testing.assert_allclose(model.positional_embedding[0, 1:].detach(), resized, atol=1e-6)


def test_a_clip_without_a_vision_transformer_is_refused():
    clip = clip_names(SMALL, 3)
    with pytest.raises(InputError, match=r"lacks visual\.class_embedding"):
        from_clip({n: v for n, v in clip.items() if not n.startswith("visual.")}, SMALL)
    with pytest.raises(InputError, match="has 12 positions"):
        from_clip(clip | {"visual.positional_embedding": torch.zeros(12, 16)}, SMALL)


def test_each_sample_selects_its_own_layers():
    model, ids, image = fresh(seed=1), token_ids(16), torch.randn(16, 3, 32, 48)
    blocks, maps = {}, {}
    for i, block in enumerate(model.visumodel.transformer.resblocks):
        block.register_forward_hook(lambda _, __, out, i=i: blocks.__setitem__(i, out))
    model.fpn.register_forward_hook(
        lambda _, given, __: maps.update(zip(("high", "mid", "low"), given, strict=True))
    )
    with torch.no_grad():
        words, sentence = model.encode_text(ids)
        logit = model.segment(image, words, sentence)
        scores = model.selection(image, sentence)
    chosen: dict[str, set[int]] = {"low": set(), "mid": set()}
    for name, group in (("low", SMALL.low), ("mid", SMALL.mid)):
        assert scores[name].shape == (16, len(group))
        for sample in range(16):
            block = group[int(scores[name][sample].argmax())]
            expected = blocks[block][sample, 1:].T.reshape(16, 4, 6)
            assert torch.equal(maps[name][sample], expected)
            chosen[name].add(block)
    assert all(len(found) > 1 for found in chosen.values()), chosen
    assert logit.shape == (16, 1, 32, 48)
    alone = model.segment(image[5:6], words[5:6], sentence[5:6])
    torch.testing.assert_close(alone, logit[5:6], atol=1e-5, rtol=0)


def test_the_score_is_that_of_the_class_and_the_state_at_the_end():
    model, ids, image = fresh(), token_ids(2), torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        sentence = model.encode_text(ids)[1]
        scores = model.selection(image, sentence)
        states = sentence.reshape(2, -1, SMALL.text_width)[:, 1:]
        x = model.visumodel.tokens(image, model.positional_embedding)
        for i, block in enumerate(model.visumodel.transformer.resblocks[:5]):
            x = block(x)
            selector = model.feature_selector_l if i < 3 else model.feature_selector_m
            score = selector(model.vis_select(x[:, 0]) * states[:, i])[:, 0]
            found = scores["low"][:, i] if i < 3 else scores["mid"][:, i - 3]
            torch.testing.assert_close(found, score, atol=1e-6, rtol=1e-5)


def test_of_equal_scores_the_first_is_selected():
    model, ids, image = fresh(), token_ids(2), torch.randn(2, 3, 32, 48)
    nn.init.zeros_(model.feature_selector_l.weight)
    firsts, maps = [], []
    model.visumodel.transformer.resblocks[0].register_forward_hook(
        lambda _, __, out: firsts.append(out)
    )
    model.fpn.register_forward_hook(lambda _, given, __: maps.append(given[2]))
    with torch.no_grad():
        model(image, ids, torch.ones(2, 9))
    assert torch.equal(maps[0], firsts[0][:, 1:].transpose(1, 2).reshape(2, 16, 4, 6))


def test_padding_is_attended_to_and_never_reaches_the_sentence():
    """The official code has no mask: another pad id gives another mask."""
    model, ids, image = fresh(), token_ids(2), torch.randn(2, 3, 32, 48)
    other = ids.clone()
    other[:, 5:] = 7
    with torch.no_grad():
        one, two = model.encode_text(ids), model.encode_text(other)
        assert torch.equal(one[1], two[1]) and torch.equal(one[0][..., :5], two[0][..., :5])
        first, second = model.segment(image, *one), model.segment(image, *two)
    assert (first - second).abs().max() > 1e-3 * first.abs().max()


@pytest.mark.parametrize(("height", "width"), [(26, 26), (3, 5), (1, 2)])
def test_positions_are_sines_of_rows_then_of_columns(height, width):
    got = sine_positions(height, width, 32).reshape(height, width, 32)
    for y in range(height):
        for x in range(width):
            for axis, place in enumerate((y + 1, x + 1)):
                for j in range(16):
                    angle = place / 10000 ** (2 * (j // 2) / 16)
                    expected = math.cos(angle) if j % 2 else math.sin(angle)
                    assert got[y, x, 16 * axis + j].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss(gamma):
    z = np.random.default_rng(0).standard_normal((2, 1, 5, 7)) * 3
    t = (np.random.default_rng(1).random(z.shape) > 0.6).astype(float)
    p = 1 / (1 + np.exp(-z))
    true = np.where(t == 1, p, 1 - p)
    got = focal_loss(torch.from_numpy(z), torch.from_numpy(t), gamma).item()
    assert got == pytest.approx((-((1 - true) ** gamma) * np.log(true)).mean(), rel=1e-6)


def test_the_loss_trains_all_but_what_selects():
    """The official code selects by argmax: `vis_select` and the selectors get no gradient."""
    model = fresh().train()
    batch = {
        "image": torch.randn(2, 3, 32, 48),
        "token_ids": token_ids(2),
        "word_mask": torch.ones(2, 9),
        "target": (torch.rand(2, 1, 64, 96) > 0.5).float(),
    }
    value, logit = loss(model, batch)
    value.backward()
    z = model(batch["image"], batch["token_ids"], batch["word_mask"]).detach()
    assert torch.equal(logit, z)
    z = z.double()
    t, p = batch["target"][:, :, ::2, ::2].double(), z.sigmoid()
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    both = (p * t).sum((1, 2, 3)), (p + t).sum((1, 2, 3))
    dice = 1 - ((2 * both[0] + 1) / (both[1] + 1)).mean()
    assert value.item() == pytest.approx((entropy + dice).item(), rel=1e-5)
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    assert untouched and all(name.startswith(UNLEARNT) for name in untouched)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_other_sizes_are_refused():
    model = fresh()
    words, sentence = model.encode_text(token_ids(1))
    with pytest.raises(InputError, match=r"image size is \(48, 48\): .* takes \(32, 48\)"):
        model.segment(torch.zeros(1, 3, 48, 48), words, sentence)
    with pytest.raises(InputError, match="length 8: this model takes 9"):
        model.encode_text(token_ids(1)[:, :8])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch", 7, "multiples of 7"),
        ("low", (), "low is"),
        ("mid", (3, 6), "one of mid is 6"),
        ("mid", [3], "mid is"),
        ("text_length", 78, "text_length is 78"),
        ("width", 14, "a multiple of 4 and of heads, 2"),
        ("vision_heads", 3, "a multiple of 4 and of vision_heads, 3"),
        ("masks", 0, "masks is 0"),
        ("layers", 4, "one of mid is 4"),
    ],
)
def test_a_configuration_that_no_model_can_have_is_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **{field: value})


def test_the_tiny_checkpoint_keeps_under_6_mb(tmp_path):
    model = fresh(PRESETS["asda-tiny"])
    save_checkpoint(tmp_path / "half.safetensors", model, half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 6_000_000
    again = load_model(tmp_path / "half.safetensors")
    assert again.config == model.config
    assert torch.equal(again.vis_select.weight, model.vis_select.weight)


def test_coefficients_of_a_training_keep_their_signs() -> None:
    """As all at -1, where tanh has no gradient, no logit could ever be above 0."""
    torch.manual_seed(0)
    model = ASDA(replace(SMALL, image_size=(64, 64), masks=4)).train()
    seen: list[Tensor] = []
    model.projout.register_forward_hook(lambda layer, args, out: seen.append(out.detach().tanh()))
    slow = {"projout.": FAMILY.training.recipes["asda-tiny"].rates["projout."]}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0, slow), lr=3e-3)
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    for _ in range(60):  # a bright square on noise
        target = torch.zeros(4, 1, 64, 64)
        for plane in target:
            y, x = torch.randint(0, 52, (2,)).tolist()
            plane[:, y : y + 12, x : x + 12] = 1
        image, ids = 0.3 * torch.randn(4, 3, 64, 64) + 2 * target, token_ids(4)
        batch = {"image": image, "token_ids": ids, "word_mask": ids > 0, "target": target}
        optimizer.zero_grad()
        loss(model, batch)[0].backward()
        optimizer.step()
    first, last = seen[0].mean(0), seen[-1].mean(0)
    assert first.tolist() == pytest.approx([-0.96, 0.76, 0.76, 0.76], abs=0.15)
    assert last[0] < -0.5 and (last[1:] > 0.5).all()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ASDA, Path, Bundle]:
    """A network, the file of its weights and its bundle; exporting takes most of the time."""
    model = fresh(replace(SMALL, layers=3, low=(0, 1), mid=(2,), encoder_layers=1))
    folder = tmp_path_factory.mktemp("asda")
    save_checkpoint(folder / "small.safetensors", model)
    return model, folder / "small.safetensors", export_bundle(model, folder / "bundle")


def test_both_graphs_are_standard_and_open_in_the_batch(exported):
    model, _, bundle = exported
    image, ids = torch.randn(EXAMPLE_BATCH, 3, 32, 48), token_ids(EXAMPLE_BATCH)
    ids[0, 2] = END
    for name in GRAPHS:
        graph = onnx.load(bundle.file(name))
        assert not graph.functions
        assert {node.domain for node in graph.graph.node} == {""}
        kinds = {node.op_type for node in graph.graph.node}
        assert not kinds & {"ArgMax", "TopK", "GatherND", "Split", "If", "Loop", "Scan"}
    run_text, run_image = (onnxruntime.InferenceSession(bundle.file(name)) for name in GRAPHS)
    for batch in (1, EXAMPLE_BATCH):
        with torch.no_grad():
            expected = model.encode_text(ids[:batch])
            logit = model.segment(image[:batch], *expected)
        words, sentence = run_text.run(None, {"token_ids": ids[:batch].numpy()})
        given = (image[:batch].numpy(), words, sentence)
        fed = dict(zip(FAMILY.image_inputs, given, strict=True))
        found = words, sentence, run_image.run(None, fed)[0]
        for got, wanted in zip(found, (*expected, logit), strict=True):
            assert np.abs(got - wanted.numpy()).max() <= 1e-4 * wanted.abs().max()


def noise(folder: Path, count: int) -> list[Path]:
    """Picture files."""
    rng, paths = np.random.default_rng(0), [folder / f"{n}.png" for n in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return paths


def selected(model: ASDA, image: np.ndarray, ids: np.ndarray) -> tuple[str, str, float]:
    """Of the low group of a sample: the block, the other one, and by how much it is behind."""
    with torch.no_grad():
        sentence = model.encode_text(torch.from_numpy(ids))[1]
        scores = model.selection(torch.from_numpy(image), sentence)["low"][0].tolist()
    first = int(scores[1] > scores[0])
    return f"block {first}", f"block {1 - first}", abs(scores[1] - scores[0])


def test_the_report_tells_which_layers_were_selected_and_by_how_much(exported, tmp_path, capsys):
    model, checkpoint, bundle = exported
    manifest = bundle.manifest
    texts = ("red circle", "a <b>star</b> left", "cat")
    pictures = list(zip(noise(tmp_path, 3), texts, strict=True))
    words = ("parity", "--bundle", str(bundle.path), "--report", str(tmp_path / "r"))
    named = [word for path, text in pictures for word in ("--picture", str(path), text)]
    assert main([*words, "--checkpoint", str(checkpoint), *named]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "r" / "parity.json").read_text())
    page = (tmp_path / "r" / "report.html").read_text()
    blocks = set()
    for (path, text), row in zip(pictures, report["pictures"], strict=True):
        image = picture_to_tensor(load_image(path), manifest.preprocessing)[None]
        block, other, margin = selected(model, image, tokenizer_of(bundle)(text)[0])
        low, mid = row["choices"]
        shown = low.pop("margin")
        assert shown == pytest.approx(margin, rel=0.05)
        assert low == {"group": "low", "chosen": block, "second": other, "turned": []}
        assert mid == {
            "group": "mid", "chosen": "block 2", "second": None, "margin": None, "turned": [],
        }  # fmt: skip
        line = f"low: {block}, {shown:g} ahead of {other}; mid: block 2"
        assert f"{path.name}, {text}: {line}\n" in printed and f"PyTorch chose {line}." in page
        blocks.add(block)
    assert len(blocks) == 2 and "another in" not in page
    assert report["stages"]["onnxruntime"]["feature_selector_l"] < 1e-4
    # The export compared its own cases so.
    cases = {case.name: case for case in make_cases(manifest.text, (32, 48), True)}
    assert list(manifest.parity["choices"]) == list(cases)
    for name, found in manifest.parity["choices"].items():
        case = cases[name]
        for n, (low, _) in enumerate(found):
            block, _, margin = selected(model, case.image[n : n + 1], case.token_ids[n : n + 1])
            assert low["chosen"] == block and low["margin"] == pytest.approx(margin, rel=0.05)
            assert f"{name}, chosen in PyTorch: low: {block}, " in printed
        assert len(found) == len(case.image)


def test_a_selection_that_turns_is_told_apart_from_a_rounding_error(exported, tmp_path):
    model, _, bundle = exported
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.feature_selector_l.weight.neg_()
    save_checkpoint(tmp_path / "other.safetensors", other)
    paths = noise(tmp_path, 1)
    out, weights = tmp_path / "r", tmp_path / "other.safetensors"
    report = write_report(bundle.path, out, [(paths[0], "cat")], checkpoint=weights)
    image = picture_to_tensor(load_image(paths[0]), bundle.manifest.preprocessing)[None]
    block, other_block, _ = selected(model, image, tokenizer_of(bundle)("cat")[0])
    low, mid = report["pictures"][0]["choices"]
    assert (low["chosen"], low["second"]) == (other_block, block)
    assert low["turned"] == ["onnxruntime"] and mid["turned"] == []
    assert "low: another in onnxruntime." in (out / "report.html").read_text()
    with pytest.raises(
        GateError, match=r"\(PyTorch chose low: block ., .* ahead of block .; mid: "
    ):
        check_bundle(bundle.path, checkpoint=weights)
