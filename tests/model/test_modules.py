"""Every module against its equations, written out again with plain loops and einsum in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tfanet.model.layers.losses import dice_loss
from tfanet.model.tfanet.cfsm import CFSM, CSSM, pool_matrix
from tfanet.model.tfanet.loss import segmentation_loss
from tfanet.model.tfanet.mlam import MLAM, SCALES, CrossAttention, FusionBlock, Gate
from tfanet.model.tfanet.ss2d import SS2D
from tfanet.model.tfanet.wfdm import Decoder, WordKernel

BATCH, DIM, TEXT, ALIGN, LENGTH = 2, 12, 10, 8, 7


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def words_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(BATCH, 1, LENGTH)
    mask[0, :, :4], mask[1, :, :6] = 1, 1
    return torch.randn(BATCH, TEXT, LENGTH), mask


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


def scan_of(block, sequences: torch.Tensor) -> torch.Tensor:
    """The recurrence of section 2.1, step by step; sequences (B, K, E, L)."""
    x_proj, dt_proj = block.x_proj_weight.double(), block.dt_projs_weight.double()
    rank, k = block.rank, block.directions
    rows = torch.einsum("bkel,kre->bkrl", sequences, x_proj)
    dt, b, c = rows[:, :, :rank], rows[:, :, rank], rows[:, :, rank + 1]
    delta = torch.einsum("bkrl,ker->bkel", dt, dt_proj)
    delta = torch.log1p(torch.exp(delta + block.dt_projs_bias.double()[None, :, :, None]))
    a = -torch.exp(block.A_logs.double()).reshape(k, -1)
    skip = block.Ds.double().reshape(k, -1)
    h = torch.zeros(sequences.shape[:3], dtype=torch.float64)
    out = []
    for t in range(sequences.shape[3]):
        step = delta[..., t]
        h = torch.exp(step * a) * h + step * b[:, :, None, t] * sequences[..., t]
        out.append(h * c[:, :, None, t] + skip * sequences[..., t])
    return torch.stack(out, -1)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 6), (4, 4)])
def test_ss2d_is_four_sequential_scans(height, width):
    block = SS2D(DIM, ratio=2.0)
    with torch.no_grad():
        block.A_logs.normal_(0, 0.5)
        block.Ds.normal_()
        for p in block.parameters():
            p.copy_(p * 1.5)
    x = torch.randn(BATCH, DIM, height, width)
    with torch.no_grad():
        got = block(x)
        u = torch.einsum("bchw,ec->behw", x.double(), block.in_proj.weight.double())
        u = F.silu(F.conv2d(u, block.conv2d.weight.double(), padding=1, groups=block.inner))
        order = [(i, j) for i in range(height) for j in range(width)]
        columns = [(i, j) for j in range(width) for i in range(height)]
        orders = [order, columns, order[::-1], columns[::-1]]
        sequences = torch.stack([torch.stack([u[:, :, i, j] for i, j in o], -1) for o in orders], 1)
        y = scan_of(block, sequences)
        merged = torch.zeros_like(u)
        for k, o in enumerate(orders):
            for t, (i, j) in enumerate(o):
                merged[:, :, i, j] += y[:, k, :, t]
        norm = block.out_norm
        merged = merged.permute(0, 2, 3, 1)
        merged = F.layer_norm(merged, (block.inner,), norm.weight.double(), norm.bias.double())
        expected = torch.einsum("bhwe,ce->bchw", merged, block.out_proj.weight.double())
    close(got, expected)


def test_cssm_scans_the_channels_both_ways():
    block = CSSM(grid=3)
    x = torch.randn(BATCH, 18, 6, 9)
    with torch.no_grad():
        got = block(x)
        z = x.double().reshape(BATCH, 18, 3, 2, 3, 3).mean((3, 5)).flatten(2)  # (B, 3C, 9)
        u = (z @ block.in_proj.weight.double().T).transpose(1, 2)
        u = F.silu(F.conv1d(u, block.conv1d.weight.double(), padding=1, groups=block.inner))
        y = scan_of(block, torch.stack([u, u.flip(-1)], 1))
        y = (y[:, 0] + y[:, 1].flip(-1)).transpose(1, 2)
        y = F.layer_norm(y, (block.inner,), block.out_norm.weight.double())
        y = (y @ block.out_proj.weight.double().T).unflatten(2, (3, 3))
        expected = F.interpolate(y, (6, 9), mode="bilinear", align_corners=False)
    assert block.inner == 32
    close(got, expected)


@pytest.mark.parametrize(("size", "grid"), [(12, 4), (10, 4), (3, 5), (7, 7)])
def test_pool_matrix_is_adaptive_average_pooling(size, grid):
    x = torch.randn(2, 3, size)
    close(x @ pool_matrix(size, grid).T, F.adaptive_avg_pool1d(x, grid), 1e-6)


def test_cssm_takes_any_size():
    block = CSSM(grid=4)
    for size in ((3, 5), (4, 4), (10, 6)):
        x = torch.randn(1, 6, *size)
        assert block(x).shape == x.shape
        close(block.pool(x), F.adaptive_avg_pool2d(x, 4), 1e-6)


def x_norm_of(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return gamma.double() * x / torch.sqrt((x**2).sum(-1, keepdim=True) + 1e-6)


def test_mlam_follows_equations_4_to_15():
    module = MLAM(DIM, TEXT, ALIGN)
    with torch.no_grad():
        module.gamma.uniform_(0.5, 1.5)
        module.w.normal_()
    image, (words, mask) = torch.randn(BATCH, DIM, 6, 5), words_and_mask()
    n = 30
    with torch.no_grad():
        f_vl, f_lv = module(image, words, mask)
        base = F.conv2d(
            image.double(), module.image_proj.weight.double(), module.image_proj.bias.double()
        )
        word_sum = torch.zeros(BATCH, LENGTH, ALIGN, dtype=torch.float64)
        image_sum = torch.zeros(BATCH, n, ALIGN, dtype=torch.float64)
        for s, k in enumerate(SCALES):
            scaled = base
            if k > 1:
                conv = module.image_scales[s - 1]
                scaled = F.conv2d(
                    base, conv.weight.double(), conv.bias.double(), padding=k // 2, groups=3 * ALIGN
                )
            qi, ki, vi = scaled.flatten(2).transpose(1, 2).split(ALIGN, -1)  # (B, n, d)
            conv = module.text_scales[s]
            text = F.conv1d(
                (words * mask).double(), conv.weight.double(), conv.bias.double(), padding=k // 2
            )
            qt, kt, vt = (text * mask).transpose(1, 2).split(ALIGN, -1)  # (B, L, d)
            kv_image = torch.einsum("bnd,bne->bde", ki * n**-0.5, vi * n**-0.5)
            kv_text = torch.einsum("bld,ble->bde", kt, vt)
            gamma, w = module.gamma[:, s].double(), module.w[:, s].double()
            word_sum += w[0] * (x_norm_of(qt, gamma[0, 0]) @ x_norm_of(kv_image, gamma[0, 1]))
            image_sum += w[1] * (x_norm_of(qi, gamma[1, 0]) @ x_norm_of(kv_text, gamma[1, 1]))
        lv = F.linear(
            word_sum, module.text_out.weight.double()[..., 0], module.text_out.bias.double()
        )
        vl = F.linear(
            image_sum, module.image_out.weight.double()[..., 0, 0], module.image_out.bias.double()
        )
    close(f_lv, lv.transpose(1, 2) * mask)
    close(f_vl, vl.transpose(1, 2).unflatten(2, (6, 5)))


def test_x_norm_survives_half_precision_sums():
    """With large inputs K V^T over 14400 pixels leaves float16; scaled first, it stays finite."""
    module = MLAM(DIM, TEXT, ALIGN)
    words, mask = words_and_mask()
    image = torch.randn(BATCH, DIM, 120, 120) * 3 + 1
    with torch.no_grad():
        full = module(image, words, mask)
        half = module.bfloat16()(image.bfloat16(), words.bfloat16(), mask.bfloat16())
    for a, b in zip(full, half, strict=True):
        assert torch.isfinite(b).all()
        assert (a - b.float()).norm() / a.norm() < 0.1


def test_cross_attention_ignores_padding_and_normalises():
    module = CrossAttention(DIM, TEXT, ALIGN)
    image, (words, mask) = torch.randn(BATCH, DIM, 4, 3), words_and_mask()
    with torch.no_grad():
        f_vl, f_lv = module(image, words, mask)
        other = words + torch.randn_like(words) * (1 - mask)
        for a, b in zip((f_vl, f_lv), module(image, other, mask), strict=True):
            close(a, b, 1e-6)
        only = module(image[:1], words[:1, :, :4], mask[:1, :, :4])
    close(f_vl[:1], only[0], 1e-5)
    close(f_lv[:1, :, :4], only[1], 1e-5)


def test_gate_multiplies_pixels_by_the_mean_word():
    module = Gate(DIM, TEXT)
    image, (words, mask) = torch.randn(BATCH, DIM, 4, 3), words_and_mask()
    with torch.no_grad():
        f_vl, f_lv = module(image, words, mask)
        mean = torch.stack([f_lv[0, :, :4].mean(1), f_lv[1, :, :6].mean(1)])
    close(f_vl, image * mean[:, :, None, None], 1e-6)


def test_fusion_block_follows_equations_16_to_19():
    module = FusionBlock(DIM, TEXT, ALIGN, LENGTH)
    image, f_vl = torch.randn(2, BATCH, DIM, 4, 5)
    _, mask = words_and_mask()
    f_lv, sentence = torch.randn(BATCH, DIM, LENGTH) * mask, torch.randn(BATCH, TEXT)
    with torch.no_grad():
        got = module(image, f_vl, f_lv, sentence, mask)
        pixels = torch.einsum("bchw,dc->bdhw", f_vl, module.image_proj.weight[..., 0, 0])
        words = torch.einsum("bcl,dc->bdl", f_lv, module.text_proj.weight[..., 0])
        f_f = torch.einsum("bdl,bdhw->blhw", words, pixels) / ALIGN**0.5 * mask[:, 0, :, None, None]
        f_c = F.conv2d(f_f, module.correlate.weight, module.correlate.bias, padding=1)
        mean = torch.stack([f_lv[0, :, :4].mean(1), f_lv[1, :, :6].mean(1)])
        b = mean + sentence @ module.sentence_proj.weight.T + module.sentence_proj.bias
        stacked = torch.cat([image + f_vl, b[:, :, None, None].expand_as(image), f_c], 1)
        expected = F.layer_norm(stacked.permute(0, 2, 3, 1), (3 * DIM,)).permute(0, 3, 1, 2)
    close(got, expected)


def test_cfsm_off_is_one_convolution():
    module = CFSM(DIM, grid=3, enabled=False)
    assert {name for name, _ in module.named_parameters()} == {"out.weight", "out.bias"}
    block = torch.randn(BATCH, 3 * DIM, 4, 4)
    close(module(block), F.conv2d(block, module.out.weight, module.out.bias), 1e-6)


def test_cfsm_adds_the_channel_scan_before_and_after_the_space_scan():
    module = CFSM(DIM, grid=2)
    block = torch.randn(BATCH, 3 * DIM, 4, 6)
    with torch.no_grad():
        channel = module.cssm(block)
        expected = module.out(module.scsm(block + channel) + channel)
        close(module(block), expected, 1e-6)


def test_word_kernel_starts_as_the_masked_mean():
    kernel = WordKernel(DIM, 6, LENGTH)
    _, mask = words_and_mask()
    f_lv = torch.randn(BATCH, DIM, LENGTH)
    with torch.no_grad():
        got = kernel(f_lv, mask, (5, 4))
        delta = kernel.delta(f_lv)
        mean = torch.stack([delta[0, :, :4].mean(1), delta[1, :, :6].mean(1)])
    close(got, mean[:, :, None, None].expand(-1, -1, 5, 4), 1e-5)
    assert (mean - 1).abs().max() < 0.5


@pytest.mark.parametrize("wfdm", [True, False])
def test_decoder_follows_equations_24_to_26(wfdm):
    dims = (4, 6, 8, 10)
    decoder = Decoder(dims, 5, LENGTH, (1, 0, 1), wfdm=wfdm).eval()
    with torch.no_grad():
        decoder.alpha.normal_()
    _, mask = words_and_mask()
    features = [torch.randn(BATCH, c, 8 >> i, 16 >> i) for i, c in enumerate(dims)]
    words = [torch.randn(BATCH, c, LENGTH) * mask for c in dims]
    with torch.no_grad():
        got = decoder(features, words, mask)
        merged = None
        for level, stage in enumerate((3, 2, 1, 0)):
            x = decoder.lateral[level](features[stage])
            if wfdm:
                x = x * decoder.kernels[level](words[stage], mask, x.shape[2:])
            if merged is None:
                merged = x
            else:
                a = torch.sigmoid(decoder.alpha[level - 1])
                up = F.interpolate(merged, scale_factor=2, mode="bilinear", align_corners=False)
                merged = decoder.refine[level - 1](a * up + (1 - a) * x)
        two = decoder.classify(merged)
    close(got, two[:, 1:] - two[:, :1], 1e-5)
    pairs = [len(stage) for stage in decoder.refine]
    assert pairs == ([1, 0, 1] if wfdm else [0, 0, 0])


def test_losses_match_hand_computed_values():
    logit = torch.tensor([0.0, 0.0, 50.0, -50.0]).reshape(1, 1, 2, 2)
    target = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    dice = 1 - (2 * 1.5 + 1) / (2 + 2 + 1)
    assert dice_loss(logit, target).item() == pytest.approx(dice, rel=1e-6)
    bce = 2 * 0.6931471805599453 / 4
    assert segmentation_loss(logit, target).item() == pytest.approx(dice + bce, rel=1e-6)
