"""The whole network: padding, sizes, switches, costs, text tower and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_config import SMALL
from transformers import CLIPTextConfig, CLIPTextModel

from tfanet.errors import InputError
from tfanet.model.cost import describe
from tfanet.model.tfanet.config import PRESETS, TFANetConfig
from tfanet.model.tfanet.loss import segmentation_loss
from tfanet.model.tfanet.network import TFANet
from tfanet.model.tfanet.table4 import table4
from tfanet.model.tfanet.text import TextEncoder


def sample(config: TFANetConfig, batch: int = 2, size: tuple[int, int] = (64, 64)):
    ids = torch.full((batch, config.text_length), 49407)
    ids[:, 0] = 49406
    ids[:, 1:4] = torch.randint(0, 49000, (batch, 3))
    mask = torch.zeros(batch, config.text_length)
    mask[:, :5] = 1
    return torch.randn(batch, 3, *size), ids, mask


@pytest.mark.parametrize("alignment", ["mlam", "attention", "gate"])
@pytest.mark.parametrize("cfsm", [True, False])
@pytest.mark.parametrize("wfdm", [True, False])
def test_every_ablation_runs_and_trains_all_its_parameters(alignment, cfsm, wfdm):
    torch.manual_seed(0)
    model = TFANet(replace(SMALL, alignment=alignment, cfsm=cfsm, wfdm=wfdm)).train()
    image, ids, mask = sample(model.config)
    logit = model(image, ids, mask)
    assert logit.shape == (2, 1, 64, 64)
    segmentation_loss(logit, (torch.rand_like(logit) > 0.5).float()).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    assert untouched == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("alignment", ["mlam", "attention", "gate"])
def test_padding_never_changes_a_logit(alignment):
    torch.manual_seed(1)
    model = TFANet(replace(SMALL, alignment=alignment)).eval()
    image, ids, mask = sample(model.config)
    other = ids.clone()
    other[:, 5:] = torch.randint(0, 49000, other[:, 5:].shape)
    assert not torch.equal(ids, other)
    with torch.no_grad():
        difference = (model(image, ids, mask) - model(image, other, mask)).abs().max()
    assert difference <= 1e-6


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (64, 160)])
def test_any_multiple_of_32(size):
    model = TFANet(SMALL).eval()
    image, ids, mask = sample(SMALL, batch=1, size=size)
    with torch.no_grad():
        assert model(image, ids, mask).shape == (1, 1, *size)


@pytest.mark.parametrize("size", [(64, 65), (33, 64)])
def test_other_sizes_are_refused(size):
    image, ids, mask = sample(SMALL, size=size)
    with pytest.raises(InputError, match="multiples of 32"):
        TFANet(SMALL)(image, ids, mask)


def test_another_text_length_is_refused():
    image, ids, mask = sample(SMALL)
    with pytest.raises(InputError, match="length 7: this model takes 8"):
        TFANet(SMALL)(image, ids[:, :7], mask)


def test_samples_of_a_batch_do_not_touch_each_other():
    torch.manual_seed(2)
    model = TFANet(SMALL).eval()
    image, ids, mask = sample(SMALL, batch=3)
    mask[1, 4:] = 0
    with torch.no_grad():
        together = model(image, ids, mask)
        alone = torch.cat(
            [model(image[i : i + 1], ids[i : i + 1], mask[i : i + 1]) for i in range(3)]
        )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_text_encoder_is_transformers_clip():
    torch.manual_seed(3)
    encoder = TextEncoder(SMALL.text).eval()
    _, ids, _ = sample(SMALL)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    oracle = CLIPTextModel(config).eval()
    oracle.load_state_dict(encoder.clip.state_dict())
    with torch.no_grad():
        words, sentence = encoder(ids)
        # With a mask the oracle cannot see the padding at all.
        attend = torch.zeros_like(ids)
        attend[:, :5] = 1
        expected = oracle(input_ids=ids, attention_mask=attend).last_hidden_state
    torch.testing.assert_close(words.transpose(1, 2)[:, :5], expected[:, :5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sentence, expected[:, 4], rtol=1e-4, atol=1e-5)


def test_text_encoder_loads_a_local_directory(tmp_path):
    config = SMALL.text
    tower = TextEncoder(config).clip
    tower.save_pretrained(tmp_path)
    loaded = TextEncoder(replace(config, pretrained=str(tmp_path))).clip
    for name, value in tower.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(InputError, match="no CLIP text model"):
        TextEncoder(replace(config, pretrained=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="width 16, the configuration says 20"):
        TextEncoder(replace(config, width=20, pretrained=str(tmp_path)))


def test_base_has_the_paper_s_size():
    facts = describe(PRESETS["tfanet-base"])
    assert facts["params"] == facts["alive"]
    assert facts["params"] == pytest.approx(268.46e6, rel=0.02)
    assert facts["flops"] == pytest.approx(311.30e9, rel=0.05)
    scans = {
        (s["groups"], s["channels"], s["state"], s["length"]): s["calls"] for s in facts["scans"]
    }
    stages = zip((256, 512, 1024, 2048), (14400, 3600, 900, 225), (2, 2, 15, 2), strict=True)
    expected = {(4, d, 1, length): calls for d, length, calls in stages}
    for c, length in zip((128, 256, 512, 1024), (14400, 3600, 900, 225), strict=True):
        expected[(2, 512, 1, 3 * c)] = 1
        expected[(4, 3 * c, 1, length)] = 1
    assert scans == expected


def test_ablation_rows_are_near_the_paper_s_table_4():
    rows = table4(PRESETS["tfanet-base"])
    assert [round(row["paper_params"] / 1e4) for row in rows] == [24800, 26298, 26846]
    for row in rows:
        assert row["params"] == pytest.approx(row["paper_params"], rel=0.02)
        assert row["flops"] == pytest.approx(row["paper_flops"], rel=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_json(name):
    import json

    config = PRESETS[name]
    assert TFANetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_bad_configs_are_refused():
    data = PRESETS["tfanet-tiny"].to_dict()
    with pytest.raises(InputError, match="unknown fields \\['colour'\\]"):
        TFANetConfig.from_dict({**data, "colour": 1})
    del data["dims"]
    with pytest.raises(InputError, match="lacks \\['dims'\\]"):
        TFANetConfig.from_dict(data)
    for change, words in [
        ({"image_size": (100, 96)}, "multiples of 32"),
        ({"text_length": 78}, "3 to 77"),
        ({"alignment": "magic"}, "magic"),
        ({"dims": (1, 2, 3)}, "give 4 numbers"),
    ]:
        with pytest.raises(InputError, match=words):
            replace(SMALL, **change)
