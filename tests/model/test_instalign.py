"""InstAlign: its ancestors' modules, the golden outputs of its reconstruction, names, limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from official_weights import GOLDEN, golden_image, read_names, weights_by_rule
from small_instalign import SMALL
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as theirs

from tfanet.calibration.graph.session import open_model
from tfanet.errors import InputError
from tfanet.export.graphs import export_image, export_text
from tfanet.model.checkpoint import load_model, save_checkpoint
from tfanet.model.instalign.config import PRESETS, InstAlignConfig
from tfanet.model.instalign.family import FAMILY
from tfanet.model.instalign.network import InstAlign
from tfanet.model.instalign.pixel_decoder import DecodedPixels, PixelDecoder
from tfanet.model.instalign.predictor import Predictor

TINY = PRESETS["instalign-tiny"]


def randomise(module: nn.Module) -> None:
    """Weights of everyday size everywhere: fresh ones hide what a zero or a one multiplies."""
    for parameter in module.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.3, std=scale)


def sample(config: InstAlignConfig, batch: int = 2, size: tuple[int, int] = (64, 64)):
    ids = torch.zeros(batch, config.text_length, dtype=torch.int64)
    ids[:, :5] = torch.randint(1, config.text.vocabulary, (batch, 5))
    return torch.randn(batch, 3, *size), ids, (ids != 0).float()


def their_config(config: InstAlignConfig) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        feature_size=config.decoder_dim,
        mask_feature_size=config.decoder_dim,
        hidden_dim=config.decoder_dim,
        num_attention_heads=config.decoder_heads,
        encoder_layers=config.pixel_layers,
        encoder_feedforward_dim=config.pixel_inner,
        decoder_layers=config.decoder_layers + 1,  # theirs counts the one before the first
        dim_feedforward=config.decoder_inner,
        num_queries=config.queries,
        dropout=0.0,
    )


def test_the_pixel_decoder_is_mask2formers():
    torch.manual_seed(0)
    config = replace(TINY, groups=32)  # theirs has no other
    ours = PixelDecoder(config).eval()
    randomise(ours)
    reference = theirs.Mask2FormerPixelDecoder(their_config(config), list(config.dims)).eval()
    renamed = {}
    for name, value in ours.state_dict().items():
        for a, b in (
            ("transformer.", ""),
            ("input_proj.", "input_projections."),
            ("mask_features.", "mask_projection."),
            (".norm1.", ".self_attn_layer_norm."),
            (".norm2.", ".final_layer_norm."),
            (".linear1.", ".fc1."),
            (".linear2.", ".fc2."),
            ("adapter_1.weight", "adapter_1.0.weight"),
            ("layer_1.weight", "layer_1.0.weight"),
            ("_1.norm.", "_1.1."),
        ):
            name = name.replace(a, b)
        renamed[name] = value
    reference.load_state_dict(renamed)
    height, width = 96, 160
    stages = [
        torch.randn(2, dim, height >> i + 2, width >> i + 2) for i, dim in enumerate(config.dims)
    ]
    with torch.no_grad():
        got, expected = ours(stages), reference(stages)
    close(got.features, expected.mask_features)
    for one, other in zip(got.maps, expected.multi_scale_features, strict=True):
        close(one, other)


def close(got: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_without_words_the_masked_decoder_is_mask2formers():
    torch.manual_seed(1)
    ours = Predictor(TINY).eval()
    randomise(ours)
    for layer in ours.transformer_cross_attention_layers:
        nn.init.zeros_(layer.multihead_attn_text.out_proj.weight)
        nn.init.zeros_(layer.multihead_attn_text.out_proj.bias)
    reference = theirs.Mask2FormerTransformerModule(TINY.decoder_dim, their_config(TINY)).eval()
    renamed = {}
    for name, value in ours.state_dict().items():
        if any(part in name for part in ("text", "lang", "nt_embed", "mask_act", "class_embed")):
            continue
        for a, b in (
            ("query_feat.", "queries_features."),
            ("query_embed.", "queries_embedder."),
            ("decoder_norm.", "decoder.layernorm."),
            ("mask_embed.layers.", "decoder.mask_predictor.mask_embedder."),
        ):
            name = name.replace(a, b)
        if "mask_embedder" in name:
            name = name.replace(".weight", ".0.weight").replace(".bias", ".0.bias")
        stem, _, rest = name.partition(".")
        if stem.startswith("transformer_"):
            index, _, rest = rest.partition(".")
            own_norm = {"cross": "cross_attn", "self": "self_attn", "ffn": "final"}[
                stem.split("_")[1]
            ]
            rest = rest.replace("multihead_attn.", "cross_attn.")
            rest = rest.replace("linear", "fc").replace("norm.", f"{own_norm}_layer_norm.")
            for part, value_of in projections(rest, value):
                renamed[f"decoder.layers.{index}.{part}"] = value_of
        else:
            renamed[name] = value
    reference.load_state_dict(renamed)
    pixels = DecodedPixels(
        torch.randn(2, TINY.decoder_dim, 24, 40),
        tuple(torch.randn(2, TINY.decoder_dim, 24 >> n, 40 >> n) for n in (3, 2, 1)),
    )
    words, mask = torch.randn(2, 20, TINY.text.width), torch.ones(2, 20)
    with torch.no_grad():
        states = ours(pixels, words, mask)
        expected = reference(list(pixels.maps), pixels.features)
        for state, queries, masks in zip(
            states,
            expected.intermediate_hidden_states,
            expected.masks_queries_logits,
            strict=True,
        ):
            close(state.queries, queries.transpose(0, 1))
            close(ours.instance_logits(state.queries, pixels.features), masks)
    seen_through = [ours.blocked_pixels(s.queries, pixels.maps[0]).float().mean() for s in states]
    assert all(0.1 < share < 0.9 for share in seen_through)  # the masks do block something


def projections(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Their self-attention has three projections where their cross-attention has one."""
    if not name.startswith("self_attn.in_proj_"):
        return [(name, value)]
    kind = name.removeprefix("self_attn.in_proj_")
    return [
        (f"self_attn.{part}_proj.{kind}", rows)
        for part, rows in zip("qkv", value.chunk(3), strict=True)
    ]


def test_a_query_that_would_see_nothing_sees_all():
    model = Predictor(SMALL)
    nn.init.zeros_(model.mask_embed.layers[-1].weight)
    nn.init.ones_(model.mask_embed.layers[-1].bias)
    features = -torch.ones(1, SMALL.decoder_dim, 2, 2)
    queries = torch.randn(1, 3, SMALL.decoder_dim)
    assert not model.blocked_pixels(queries, features).any()
    features[..., 1, 1] = 1
    assert model.blocked_pixels(queries, features).tolist() == [[[True, True, True, False]] * 3]


def test_names_and_shapes_are_those_of_the_table():
    expected = read_names(GOLDEN / "instalign_params.txt")
    assert len(expected) == 943
    index = {name for name in expected if name.endswith("relative_position_index")}
    with torch.device("meta"):
        model = InstAlign(PRESETS["instalign-base"])
    got = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert got == {name: shape for name, shape in expected.items() if name not in index}
    assert sum(p.numel() for p in model.parameters()) == 220_845_628


@pytest.mark.full
def test_golden_outputs_at_full_size():
    """Our own reference of this reconstruction: there is no official code to compare with."""
    golden = np.load(GOLDEN / "instalign.npz")
    model = InstAlign(PRESETS["instalign-base"]).eval()
    weights = {}
    for name, value in model.state_dict().items():
        shrunk = "predictor" in name and name.endswith(("out_proj.weight", "linear2.weight"))
        weights[name] = weights_by_rule(name, tuple(value.shape)) * (0.2 if shrunk else 1)
    model.load_state_dict(weights)
    ids = torch.from_numpy(golden["token_ids"])
    with torch.no_grad():
        (words,) = model.encode_text(ids)
        given = model.segment(golden_image((480, 480)), words, (ids != 0).float())
    logit, no_target, relevance, instances, alignment = given
    for name, got in (
        ("words", words[0].T),
        ("logit", logit[0, 0, ::3, ::3]),
        ("no_target_logit", no_target[0]),
        ("relevance_logits", torch.logit(relevance.double())[0]),
        ("instance_logits", instances[0, ::10, ::4, ::4]),
        ("alignment", alignment[0]),
    ):
        expected = torch.from_numpy(golden[name])
        assert got.shape == expected.shape, name
        assert (got - expected).abs().max() <= 1e-3 * expected.abs().max(), name


def test_outputs_are_what_they_are_called():
    torch.manual_seed(2)
    model = InstAlign(SMALL).eval()
    randomise(model)
    image, ids, mask = sample(SMALL, size=(64, 96))
    with torch.no_grad():
        (words,) = model.encode_text(ids)
        logit, nothing, relevance, instances, alignment = model.segment(image, words, mask)
        assert torch.equal(model(image, ids, mask), logit)
    assert words.shape == (2, SMALL.text.width, 8)
    assert logit.shape == (2, 1, 64, 96)
    assert nothing.shape == (2, 1)
    assert instances.shape == (2, 5, 16, 24)
    assert relevance.shape == (2, 5) and ((relevance > 0) & (relevance < 1)).all()
    assert alignment.shape == (2, 5, 8)
    assert alignment.sum(2).allclose(torch.ones(2, 5))
    assert (alignment[:, :, 5:] == 0).all()
    slope = model.sem_seg_head.predictor.mask_act.weight
    merged = torch.where(instances > 0, instances, slope * instances) * relevance[..., None, None]
    near = torch.nn.functional.interpolate(merged.sum(1, keepdim=True), (64, 96), mode="bilinear")
    assert logit.allclose(near, atol=1e-4)


def test_padding_and_other_samples_change_nothing():
    torch.manual_seed(3)
    model = InstAlign(SMALL).eval()
    randomise(model)
    image, ids, mask = sample(SMALL)
    with torch.no_grad():
        (words,) = model.encode_text(ids)
        other = words.clone()
        other[:, :, 5:] = torch.randn_like(other[:, :, 5:])
        for a, b in zip(
            model.segment(image, words, mask), model.segment(image, other, mask), strict=True
        ):
            assert a.allclose(b, atol=1e-5)
        alone = model.segment(image[1:], words[1:], mask[1:])
        for a, b in zip(model.segment(image, words, mask), alone, strict=True):
            assert a[1:].allclose(b, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words_enter": "backbone"}, "words_enter 'backbone' is not built"),
        ({"query_start": "sentence"}, "query_start 'sentence' is not built"),
        ({"class_embed": "two-rows"}, "class_embed 'two-rows' is not built"),
        ({"mask_slope": "per-query"}, "mask_slope 'per-query' is not built"),
        ({"resize": "before-sum"}, "resize 'before-sum' is not built"),
        ({"no_target": "global-and-start-token"}, "is not built"),
        ({"text_attention": "before-masked"}, "knows 'beside-masked' only"),
        ({"resize": 3}, "resize is 3: choose 'after-sum'"),
        ({"image_size": (64, 70)}, "multiples of 32"),
        ({"decoder_heads": 3}, "decoder_dim 64 is not a multiple of decoder_heads 3"),
        ({"groups": 7}, "decoder_dim 64 is not a multiple of groups 7"),
        ({"heads": (5, 2, 4, 8)}, "18 channels can't be split into 5 heads"),
        ({"queries": 0}, "queries is 0: give a whole number from 1"),
        ({"text_length": 65}, "text_length is 65: give 3 to 64 tokens"),
    ],
)
def test_what_is_not_built_or_cannot_be_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        replace(TINY, **change)


def test_a_size_or_length_that_does_not_fit_is_refused():
    model = InstAlign(SMALL)
    image, ids, mask = sample(SMALL)
    with pytest.raises(InputError, match="length 7: this model takes 8"):
        model(image, ids[:, :7], mask[:, :7])
    with pytest.raises(InputError, match="multiples of 32"):
        model(image[:, :, :60], ids, mask)


def test_a_checkpoint_keeps_weights_and_configuration(tmp_path):
    model = InstAlign(SMALL).eval()
    save_checkpoint(tmp_path / "small.safetensors", model)
    again = load_model(tmp_path / "small.safetensors")
    assert again.config == SMALL
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_ancestors_files_are_read(tmp_path):
    """With Swin's index, Mask2Former's class weights, and two rows of which class 0 is meant."""
    torch.manual_seed(4)
    model = InstAlign(SMALL).eval()
    randomise(model)
    tensors = dict(model.state_dict())
    one = model.sem_seg_head.predictor.class_embed
    nothing = nn.Linear(SMALL.decoder_dim, 1)
    stem = "sem_seg_head.predictor.class_embed"
    tensors[f"{stem}.weight"] = torch.cat([one.weight + nothing.weight, nothing.weight]).detach()
    tensors[f"{stem}.bias"] = torch.cat([one.bias + nothing.bias, nothing.bias]).detach()
    tensors["criterion.empty_weight"] = torch.ones(2)
    block = "backbone.layers.0.blocks.0.attn"
    tensors[f"{block}.relative_position_index"] = model.get_submodule(block).index.reshape(16, 16)
    torch.save({"model": tensors}, tmp_path / "ancestor.pth")
    again = load_model(tmp_path / "ancestor.pth", config=SMALL)
    image, ids, mask = sample(SMALL)
    with torch.no_grad():
        assert model(image, ids, mask).allclose(again(image, ids, mask), atol=1e-4)
    tensors[f"{block}.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    torch.save(tensors, tmp_path / "ancestor.pth")
    with pytest.raises(InputError, match="not the index of a window of 4 x 4"):
        load_model(tmp_path / "ancestor.pth", config=SMALL)


def test_the_small_preset_fits_its_file():
    with torch.device("meta"):
        model = InstAlign(TINY)
    assert 2 * sum(p.numel() for p in model.parameters()) < 6_000_000
    assert FAMILY.presets["instalign-tiny"] is TINY


@pytest.mark.parametrize(
    ("opset", "roles"),
    [
        (20, tuple(FAMILY.image_outputs.values())),
        pytest.param(18, ("mask", "no_target"), marks=pytest.mark.full),
    ],
)
def test_graphs_compute_the_same_for_any_batch(opset: int, roles: tuple[str, ...]):
    """Without GridSample, whose mode some runtimes take for another from opset 20 on."""
    torch.manual_seed(5)
    config = replace(SMALL, text=replace(SMALL.text, vocabulary=30522))  # the tokenizer's
    model = InstAlign(config).eval()
    randomise(model)
    text = export_text(model, opset=opset)
    graph = export_image(model, (64, 64), outputs=roles, opset=opset)
    names = [name for name, role in FAMILY.image_outputs.items() if role in roles]
    assert [output.name for output in graph.graph.output] == names
    kinds = {node.op_type for node in (*text.graph.node, *graph.graph.node)}
    assert "GridSample" not in kinds
    assert {node.domain for node in graph.graph.node} == {""}
    encode, segment = map(open_model, (text, graph))
    for batch in (1, 2, 5):
        image, ids, mask = sample(config, batch)
        with torch.no_grad():
            (words,) = model.encode_text(ids)
            expected = dict(
                zip(FAMILY.image_outputs, model.segment(image, words, mask), strict=True)
            )
        (got,) = encode.run(None, {"token_ids": ids.numpy()})
        near(got, words)
        feed = {"image": image, "word_features": words, "word_mask": mask}
        given = segment.run(names, {name: value.numpy() for name, value in feed.items()})
        for name, value in zip(names, given, strict=True):
            near(value, expected[name])


def near(got: np.ndarray, expected: Tensor) -> None:
    """Within 1e-4 of the largest value."""
    assert got.shape == tuple(expected.shape)
    assert np.abs(got - expected.numpy()).max() <= 1e-4 * expected.abs().max().item()
