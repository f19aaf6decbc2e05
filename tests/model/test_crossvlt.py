"""CrossVLT: its official names, golden outputs, parts by their formulas, loss, and its graphs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_weights import GOLDEN, golden_image, read_names, weights_by_rule
from torch import Tensor, nn
from torch.nn import functional as F

from tfanet.errors import InputError
from tfanet.export.trace import export_graph
from tfanet.model.checkpoint import load_model, save_checkpoint
from tfanet.model.crossvlt.config import PRESETS, CrossVLTConfig, TextConfig
from tfanet.model.crossvlt.fusion import Fusion, InstanceNorm
from tfanet.model.crossvlt.loss import loss
from tfanet.model.crossvlt.network import CrossVLT
from tfanet.model.layers.bert import key_mask
from tfanet.model.layers.swin import relative_position_index

import onnxruntime

BASE = PRESETS["crossvlt-base"]
SMALL = CrossVLTConfig(
    name="crossvlt-small",
    image_size=(64, 96),
    width=8,
    depths=(1, 2, 1, 1),
    heads=(1, 2, 2, 4),
    window=3,
    text=TextConfig(24, (1, 0, 2, 1), 2, 48, vocabulary=40, positions=16),
    text_length=9,
    head_width=8,
    decoder_dim=12,
    align_dim=6,
    drop_path=0.0,
)
INDEX = "relative_position_index"


def small(config: CrossVLTConfig = SMALL) -> CrossVLT:
    """With weights far from the start, at which the words would mean nearly nothing."""
    model = CrossVLT(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(weights_by_rule(name, tuple(value.shape)))
    return model


def sample(batch: int = 2, size: tuple[int, int] = SMALL.image_size) -> tuple[Tensor, ...]:
    """Sentences of 3, 4, ... words, start and end included."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 40, (batch, SMALL.text_length), generator=rng)
    mask = (torch.arange(SMALL.text_length) < 3 + torch.arange(batch)[:, None]).float()
    image = torch.randn(batch, 3, *size, generator=rng)
    return image, ids * mask.long(), mask


def base_on(device: str) -> CrossVLT:
    with torch.device(device):
        return CrossVLT(BASE).eval()


def test_the_norm_over_all_pixels_keeps_its_digits_in_graphs():
    """A naive sum of 14,400 pixels would be wrong by 3e-4 here, and turn pixels of the mask."""
    x = 5 + 0.05 * torch.randn(1, 14400, 8, generator=torch.Generator().manual_seed(0))
    graph = export_graph(InstanceNorm(), (x,), ("x",), ("y",), None, 20)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (found,) = session.run(None, {"x": x.numpy()})
    exact = x.double()
    expected = (exact - exact.mean(1)) / (exact.var(1, correction=0) + 1e-5).sqrt()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)


def test_base_has_the_official_names_shapes_and_counts():
    official = read_names(GOLDEN / "crossvlt_params.txt")
    index = {name for name in official if name.endswith(INDEX)}
    assert len(official) == 693 and len(index) == 24
    model = base_on("meta")
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert own == {name: shape for name, shape in official.items() if name not in index}

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(model) == 236_711_038
    assert [count(stage) for stage in model.backbone] == [1803784, 5002512, 68049440, 32311616]
    language = (model.lang_stage1, model.lang_stage2, model.lang_stage3, model.lang_stage4)
    assert [count(stage) for stage in language] == [66561280, 13586176, 13979392, 14765824]
    assert count(model.classifier) == 20_651_010


@pytest.mark.full
def test_base_gives_the_official_outputs():
    """Of the official code with the same weights: every array within 1e-4 of its largest value."""
    golden = np.load(GOLDEN / "crossvlt.npz")
    model = CrossVLT(BASE).eval()
    state = model.state_dict()
    model.load_state_dict({n: weights_by_rule(n, tuple(v.shape)) for n, v in state.items()})
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            given[name] = output

        return hook

    for i in range(4):
        model.get_submodule(f"lang_stage{i + 1}").register_forward_hook(keep(f"text{i + 1}"))
        model.backbone[i].register_forward_hook(keep(f"stage{i + 1}"))
    model.classifier.register_forward_hook(keep("low"))
    ids = torch.from_numpy(golden["token_ids"])
    with torch.no_grad():
        given["logit"] = model(golden_image(BASE.image_size), ids, (ids != 0).float())
    # The file holds every so many rows and columns.
    steps = {"c1": 10, "c2": 10, "c3": 5, "c4": 3, "low": 1, "logit": 4}
    for name in sorted(set(golden.files) - {"token_ids"}):
        got = given[f"stage{name[1]}"].map if name[0] == "c" else given[name]
        got = got[0] if name != "logit" else got[0, 0]
        if name in steps:
            got = got[..., :: steps[name], :: steps[name]]
        want = golden[name]
        assert got.shape == want.shape
        assert np.abs(got.numpy() - want).max() <= 1e-4 * np.abs(want).max(), name


def conv(x: Tensor, module: Any) -> Tensor:
    return F.conv1d(x, module.weight, module.bias)


@pytest.mark.parametrize(("dim", "inner", "heads"), [(6, 12, 3), (10, 10, 1), (8, 8, 2)])
def test_fusion_follows_its_formula(dim, inner, heads):
    """As the specification writes it: channels first, PyTorch's own instance norm, float64."""
    torch.manual_seed(heads)
    fusion, text = Fusion(dim, inner, 7, heads).double(), 5
    v, words = torch.randn(2, 11, dim).double(), torch.randn(2, text, 7).double()
    m = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).double()
    width = inner // heads
    q = nn.InstanceNorm1d(inner)(conv(v.transpose(1, 2), fusion.v_q[0]))  # (B, D, N)
    k, w = fusion.l_q(words), fusion.values_l(words)  # (B, L, D)
    parts = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = torch.einsum("bdn,bld->bnl", q[:, part], k[..., part]) / width**0.5
        weights = torch.softmax(logits + (1e4 * m - 1e4)[:, None], -1)
        parts.append(torch.einsum("bnl,bld->bdn", weights, w[..., part]))
    o = nn.InstanceNorm1d(dim)(conv(torch.cat(parts, 1), fusion.w_v[0])) + v.transpose(1, 2)
    expected = F.gelu(conv(o, fusion.project_mm[0])).transpose(1, 2)
    # The instance norm counts in float32.
    torch.testing.assert_close(fusion(v, words, key_mask(m)), expected, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_stages():
    """Section 2 of the specification, with the parts that other tests compare."""
    model = small().double()
    image, ids, mask = sample()
    image, keys = image.double(), key_mask(mask).double()

    def gate(module: Any, r: Tensor) -> Tensor:
        return torch.tanh(F.relu(r @ module[0].weight.T) @ module[2].weight.T) * r

    with torch.no_grad():
        words = model.lang_stage1(ids, keys)
        (features,) = model.encode_text(ids)
        torch.testing.assert_close(features, words.transpose(1, 2), rtol=1e-5, atol=1e-5)
        x = model.backbone[0].patch_embed(image)
        size, maps = (16, 24), []
        for i in range(4):
            layers: Any = model.backbone[i].layers
            if i > 0:
                words = model.get_submodule(f"lang_stage{i + 1}")(words, x, keys)
            for block in layers.blocks:
                x = block(x, size)
            r = layers.attn1(x, words, keys)
            norm: Any = model.get_submodule(f"backbone.{i}.norm{i}")
            maps.append(norm(r).transpose(1, 2).reshape(2, -1, *size))
            if i < 3:
                x = layers.downsample(x + gate(layers.linear1, r), size)
                x = x + gate(layers.linear2, layers.attn2(x, words, keys))
            size = (size[0] // 2, size[1] // 2)
        decoder: Any = model.classifier
        y = maps[3]
        for level, finer in ((4, maps[2]), (3, maps[1]), (2, maps[0])):
            y = nn.UpsamplingBilinear2d(finer.shape[2:])(y)  # which aligns corners
            y = torch.cat([y, finer], 1)
            for place in (1, 2):
                name = f"{place}_{level}"
                bn: Any = decoder.get_submodule(f"bn{name}")
                y = F.conv2d(y, decoder.get_submodule(f"conv{name}").weight, padding=1)
                a = bn.weight / (bn.running_var + 1e-5).sqrt()
                y = F.relu((y - bn.running_mean[:, None, None]) * a[:, None, None]
                           + bn.bias[:, None, None])  # fmt: skip
        z = nn.UpsamplingBilinear2d((64, 96))(decoder.conv1_1(y))
        expected = z[:, 1:2] - z[:, 0:1]
        got = model(image, ids, mask)
        trained = model.training_outputs(image, ids, mask).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained, z, rtol=1e-4, atol=1e-4)
    assert got.std() > 0.01


def test_padding_is_never_heard():
    model = small()
    image, ids, mask = sample()
    with torch.no_grad():
        (words,) = model.encode_text(ids)
        other = torch.where(mask[:, None] > 0, words, 5 * torch.randn_like(words))
        heard = torch.where(mask[:, None] > 0, 2 * words, words)
        expected = model.segment(image, words, mask)
        torch.testing.assert_close(model.segment(image, other, mask), expected, rtol=0, atol=1e-5)
        assert (model.segment(image, heard, mask) - expected).abs().max() > 1e-3


def test_samples_of_a_batch_do_not_touch_each_other():
    model = small()
    image, ids, mask = sample(3)
    with torch.no_grad():
        together = model(image, ids, mask)
        for n in range(3):
            alone = model(image[n : n + 1], ids[n : n + 1], mask[n : n + 1])
            torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (128, 64)])
def test_any_multiple_of_32(size):
    image, ids, mask = sample(1, size)
    with torch.no_grad():
        assert small()(image, ids, mask).shape == (1, 1, *size)


def test_other_sizes_and_lengths_are_refused():
    model = small()
    image, ids, mask = sample(1)
    with pytest.raises(InputError, match="multiples of 32"):
        model(image[:, :, :60], ids, mask)
    with pytest.raises(InputError, match="length 8: this model takes 9"):
        model(image, ids[:, :8], mask[:, :8])


def test_the_loss_is_the_official_one():
    """Written out: 2 CE with weights, and the mean BCE of each stage's cosines over temp."""
    model = small()
    image, ids, mask = sample()
    target = (image[:, :1] > 0.5).float()
    batch = {"image": image, "token_ids": ids, "word_mask": mask, "target": target}
    with torch.no_grad():
        out = model.training_outputs(image, ids, mask)
        p = out.logits.log_softmax(1)
        share = 1.1 * target + 0.9 * (1 - target)
        expected = -2 * (share * torch.where(target > 0, p[:, 1:], p[:, :1])).sum() / share.sum()
        assert [tuple(x.shape[2:]) for x in out.pixels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        for i in range(4):
            pixel = out.pixels[i] / out.pixels[i].norm(dim=1, keepdim=True)
            cls = out.sentence[i] / out.sentence[i].norm(dim=1, keepdim=True)
            cosine = torch.einsum("bahw,ba->bhw", pixel, cls)[:, None] / model.temp[i]
            near = nn.UpsamplingBilinear2d(SMALL.image_size)(cosine)
            expected -= (target * F.logsigmoid(near) + (1 - target) * F.logsigmoid(-near)).mean()
        value, logit = loss(model, batch)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(logit, model(image, ids, mask), rtol=1e-4, atol=1e-4)
    trained = model.train()
    loss(trained, batch)[0].backward()
    untouched = {name for name, p in trained.named_parameters() if p.grad is None}
    # The official code keeps a gate after the last stage that nothing reads.
    assert untouched == {f"backbone.3.layers.linear1.{i}.weight" for i in (0, 2)}
    assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)


def official(model: CrossVLT, prefix: str = "") -> dict[str, Tensor]:
    """Its state as the official code saves it."""
    state = dict(model.state_dict())
    for name in [n for n in state if n.endswith("relative_position_bias_table")]:
        stem = name.removesuffix("relative_position_bias_table")
        state[stem + INDEX] = relative_position_index(SMALL.window)
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("training", [True, False])
def test_checkpoints_load_by_their_official_names(tmp_path: Path, prefix: str, training: bool):
    model = small()
    document: dict[str, Any] = official(model, prefix)
    if training:
        options = argparse.Namespace(swin_type="base", lr=3e-5, resume=None)
        score = np.float64(73.44)
        document = {"model": document, "epoch": 39, "args": options, "best_oIoU": score}
    else:
        del document[f"{prefix}temp"]
    torch.save(document, tmp_path / "best.pth")
    loaded = load_model(tmp_path / "best.pth", config=SMALL)
    for name, value in model.state_dict().items():
        expected = torch.ones(4) if name == "temp" and not training else value
        assert torch.equal(loaded.state_dict()[name], expected), name
    save_checkpoint(tmp_path / "own.safetensors", loaded)
    again = load_model(tmp_path / "own.safetensors")
    assert again.config == SMALL
    assert again.state_dict().keys() == model.state_dict().keys()


def without_words(state: dict[str, Tensor]) -> None:
    for name in [n for n in state if n.startswith("lang_stage1.")]:
        del state[name]


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "an index": (
        lambda s: s.update({f"backbone.1.layers.blocks.0.attn.{INDEX}": torch.zeros(9, 9)}),
        r"backbone\.1.*relative_position_index \(9, 9\) is not the index of a window of 3 x 3",
    ),
    "names": (
        without_words,
        r"lacks lang_stage1\.embeddings\.LayerNorm\.bias, lang_stage1\.(\S+ ){4}and \d+ more: ",
    ),
    "both": (
        lambda s: s.update(extra=s.pop("classifier.conv1_1.bias")),
        r"lacks classifier\.conv1_1\.bias, has the unknown extra: it is of another model",
    ),
    "size": (
        lambda s: s.update({"backbone.0.patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)}),
        r"its backbone\.0\.patch_embed\.proj\.weight is \(96, 3, 4, 4\), not \(8, 3, 4, 4\), so "
        "it is CrossVLT of another size",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str):
    edit, words = MISFITS[name]
    state = official(small())
    edit(state)
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "c.pth", config=SMALL)


def test_a_file_of_another_family_is_recognised(tmp_path: Path):
    torch.save(load_model("tfanet-tiny").state_dict(), tmp_path / "tfanet.pth")
    with pytest.raises(InputError, match=r"and \d+ more: it looks like a checkpoint of TFANet$"):
        load_model(tmp_path / "tfanet.pth", config=SMALL)
    torch.save(official(small(), "module."), tmp_path / "crossvlt.pth")
    with pytest.raises(InputError, match=r"it looks like a checkpoint of CrossVLT$"):
        load_model(tmp_path / "crossvlt.pth", config=load_model("tfanet-tiny").config)
    # Without a configuration it is the base model's, which this one is smaller than.
    state = {n: v for n, v in official(small()).items() if not n.endswith(INDEX)}
    torch.save(state, tmp_path / "small.pth")
    with pytest.raises(InputError, match="so it is CrossVLT of another size"):
        load_model(tmp_path / "small.pth")


def test_configurations():
    for config in (*PRESETS.values(), SMALL):
        assert CrossVLTConfig.from_dict(config.to_dict()) == config
    assert [BASE.fusion_heads(d) for d in (256, 512, 1024)] == [4, 8, 16]
    assert BASE.dims == (128, 256, 512, 1024)
    for change, words in (
        ({"heads": (3, 8, 16, 32)}, "128 channels can't be split into 3 heads"),
        ({"head_width": 60}, "head_width 60 splits"),
        ({"window": 0}, "window is 0"),
        ({"image_size": (480, 470)}, "multiples of 32"),
        ({"text_length": 2}, "text_length is 2: give 3 to 512"),
        ({"text": None}, "text is None"),
    ):
        with pytest.raises(InputError, match=words):
            replace(BASE, **change)
    with pytest.raises(InputError, match=r"text\.width 768 is not a multiple of text\.heads 7"):
        TextConfig(heads=7)


def test_the_tiny_checkpoint_stays_small():
    """In half precision it is at most 6 MB, which the vocabulary takes half of."""
    with torch.device("meta"):
        model = CrossVLT(PRESETS["crossvlt-tiny"])
    assert 2 * sum(v.numel() for v in model.state_dict().values()) < 5.9e6


class Text(nn.Module):
    def __init__(self, model: CrossVLT) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.model.encode_text(token_ids)[0]


class Image(Text):
    def forward(self, image: Tensor, words: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.model.segment(image, words, mask)


def test_both_graphs_are_plain_and_right_at_any_batch():
    # Few blocks, one of them shifted, and maps that need padding: tracing takes long.
    config = replace(SMALL, depths=(0, 2, 0, 0), text=replace(SMALL.text, layers=(1, 0, 0, 1)))
    model = small(config)
    image, ids, mask = sample(3)
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    with torch.no_grad():
        (words,) = model.encode_text(ids)
        expected = model.segment(image, words, mask).numpy()
    inputs = ("image", "word_features", "word_mask")
    text = export_graph(Text(model), (ids,), ("token_ids",), ("word_features",), (batch,), 20)
    picture = export_graph(
        Image(model), (image, words, mask), inputs, ("mask_logit",), (batch,) * 3, 20
    )
    for graph in (text, picture):
        ops = Counter(node.op_type for node in graph.graph.node)
        assert not graph.functions and {node.domain for node in graph.graph.node} == {""}
        left = {"GatherND", "GatherElements", "Range", "ConstantOfShape", "BatchNormalization"}
        assert not left & set(ops)
        assert ops["Shape"] == ops["Resize"]  # whose sizes need the batch
    run = {
        name: onnxruntime.InferenceSession(graph.SerializeToString()).run
        for name, graph in (("text", text), ("picture", picture))
    }
    for some in (slice(0, 3), slice(1, 2)):
        (got,) = run["text"](None, {"token_ids": ids[some].numpy()})
        assert np.abs(got - words[some].numpy()).max() <= 1e-4 * words.abs().max().item()
        feed = (image[some].numpy(), got, mask[some].numpy())
        (got,) = run["picture"](None, dict(zip(inputs, feed, strict=True)))
        assert got.shape == expected[some].shape
        assert np.abs(got - expected[some]).max() <= 1e-4 * np.abs(expected).max()
