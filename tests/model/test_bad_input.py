"""Input that does not fit, for every family: one line that says what is wrong, and no more."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import LENGTH, SIZE, TOKENIZER, WORD_PIECES, image_model, write_bundle
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tfanet.cli import main
from tfanet.errors import InputError
from tfanet.model.checkpoint import load_model
from tfanet.model.family import FAMILIES, Family, find_family
from tfanet.runtime import Predictor
from tfanet.runtime.bundle.contract import LETTERBOX
from tfanet.runtime.preprocess import picture_to_tensor, plane_to_mask

WORD_PIECE_FAMILIES = ("crossvlt", "instalign")
LONG = " ".join(f"word{number}" for number in range(60))
# (width, height)
EXTREMES = [(10_000, 50), (50, 10_000)]


def tiny(name: str) -> tuple[Family, Any]:
    family = find_family(name)
    return family, family.presets[f"{name}-tiny"]


@cache
def fresh(name: str) -> nn.Module:
    family, config = tiny(name)
    torch.manual_seed(0)
    return family.network(config).eval()


def written(folder: Path, name: str, form: str, tensors: dict[str, Tensor]) -> Path:
    """Weights of a family's tiny preset in a file of this form."""
    path = folder / f"{name}.{form}"
    if form == "pth":
        torch.save({"model": tensors}, path)
    else:
        facts = json.dumps(tiny(name)[1].to_dict())
        save_file(tensors, path, {"tfanet_config": facts, "tfanet_family": name})
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made by hand, with the pictures, sentences and masks of each family."""
    folder, made = tmp_path_factory.mktemp("families"), {}
    for name in FAMILIES:
        family, config = tiny(name)
        made[name] = write_bundle(
            folder / name,
            image_model(),
            tokenizer=family.tokenizer_file,
            preprocessing=family.preprocessing(SIZE),
            text=family.tokenization(replace(config, text_length=LENGTH)),
            postprocessing=family.postprocessing,
        )
    return made


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    """The exit code of a command, and the one line that it says to the error stream."""
    code = main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return code, error


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("name", FAMILIES)
def test_missing_and_extra_names_are_named(tmp_path, capsys, name, form):
    state = dict(fresh(name).state_dict())
    kept = find_family(name).marks
    gone = sorted(set(state) - set(kept), key=lambda n: n[::-1])[:8]
    for missing in gone:
        del state[missing]
    state |= {f"extra{number}": torch.zeros(2) for number in range(7)}
    path = written(tmp_path, name, form, state)
    with pytest.raises(InputError) as caught:
        load_model(path, config=tiny(name)[1])
    assert str(caught.value) == (
        f"{path} lacks {', '.join(sorted(gone)[:5])} and 3 more, has the unknown extra0, extra1, "
        "extra2, extra3, extra4 and 2 more: it is of another model"
    )
    if form == "safetensors":
        code, line = told(capsys, "export", "--checkpoint", path, "--output", tmp_path / "out")
        assert code == 1 and line == f"tfanet: error: {caught.value}\n"
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_of_another_family_or_size_is_recognised(tmp_path, capsys, name):
    family = find_family(name)
    path = written(tmp_path, name, "pth", dict(fresh(name).state_dict()))
    for other in FAMILIES:
        if other != name:
            words = rf"\.pth lacks .*: it looks like a checkpoint of {family.title}$"
            with pytest.raises(InputError, match=words):
                load_model(path, config=tiny(other)[1])
    # On the command line such a file is taken for the base preset's.
    code, line = told(capsys, "export", "--checkpoint", path, "--output", tmp_path / "out")
    assert code == 1 and line.endswith(f": it looks like {name}-tiny\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sentence_beyond_the_limit_is_cut_by_the_family_s_rule(bundles, tmp_path, capsys, name):
    family = find_family(name)
    keeps_the_end = name not in WORD_PIECE_FAMILIES
    for config in family.presets.values():
        make, room = family.make_tokenizer(config), config.text_length - 1 - keeps_the_end
        with pytest.warns(UserWarning, match=f"the model takes {room}: dropped '"):
            ids, mask = make(LONG)
        assert ids.shape == (1, config.text_length) and mask.all()
        assert (ids[0, -1] == make.eos_id) == keeps_the_end
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make("a " * room)
    Image.new("RGB", (30, 20)).save(tmp_path / "p.png")
    code, line = told(
        capsys, "predict", "--bundle", bundles[name], "--image", tmp_path / "p.png",
        "--text", LONG, "--output", tmp_path / "mask.png",
    )  # fmt: skip
    assert code == 0 and line.startswith("tfanet: warning: the sentence has ")
    assert f"the model takes {LENGTH - 1 - keeps_the_end}: dropped '" in line
    assert (tmp_path / "mask.png").is_file()


@pytest.mark.parametrize("size", [(1, 1), *EXTREMES])
@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_of_extreme_shapes(name, size):
    family = find_family(name)
    colour, (width, height) = (200, 100, 50), size
    rows, columns = inner = family.presets[f"{name}-base"].image_size
    facts = family.preprocessing(inner)
    tensor = picture_to_tensor(Image.new("RGB", size, colour), facts)
    assert tensor.shape == (3, rows, columns) and tensor.dtype == np.float32

    def normalised(values: tuple[int, ...]) -> np.ndarray:
        return (np.array(values) / 255 - facts.mean) / facts.std

    seen = np.isclose(tensor.transpose(1, 2, 0), normalised(colour), atol=1e-5).all(2)
    if facts.resize == LETTERBOX:
        longer = max(size)
        shown = round(rows * height / longer) * round(columns * width / longer)
        assert seen.sum() == shown > 0
        padding = np.isclose(tensor.transpose(1, 2, 0), normalised(facts.padding), atol=1e-5)
        assert padding.all(2).sum() == rows * columns - shown
    else:
        assert seen.all()
    plane = np.full((rows // 2, columns // 2), 3.0, np.float32)
    for sign in (1, -1):
        mask, _ = plane_to_mask(sign * plane, (height, width), facts, family.postprocessing)
        assert mask.shape == (height, width) and (mask == (sign > 0)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_predictor_takes_long_pictures_and_refuses_one_pixel(bundles, tmp_path, capsys, name):
    predictor = Predictor(bundles[name], threads=1)
    for width, height in EXTREMES:
        pixels = np.zeros((height, width, 3), np.uint8)
        half = np.arange(max(width, height)) < 5000
        pixels[..., 0] = 255 * (half[:, None] if height > width else half)
        pixels[..., 2] = 255 - pixels[..., 0]  # the graph takes red minus blue
        mask = predictor(pixels, "a thing").mask
        assert mask.shape == (height, width)
        along = mask.mean(0 if width > height else 1)
        assert (along[:4000] == 1).all() and (along[6000:] == 0).all()
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    code, line = told(
        capsys, "predict", "--bundle", bundles[name], "--image", tmp_path / "one.png",
        "--text", "a thing", "--output", tmp_path / "mask.png",
    )  # fmt: skip
    assert code == 1 and line.endswith("one.png is 1x1 pixels: each side must be 2 or more\n")
    assert not (tmp_path / "mask.png").exists()


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARIES = {
    "too small": ("\n".join([*SPECIAL, "red"]).encode(), "has 5 tokens, the model has 30,522"),
    "no [UNK]": (b"[PAD]\n[CLS]\n[SEP]\nred", r"has no line \[UNK\]"),
    "CLIP's file": (TOKENIZER.read_bytes(), r"has no line \[PAD\]|is empty at line"),
    "CLIP's merges": (b"#version: 0.2\ni n\nt h\na n", r"has no line \[PAD\]"),
    "BERT's json": (WORD_PIECES.read_bytes(), r"has no line \[PAD\]|is empty at line"),
    "no UTF-8": (b"[PAD]\n[UNK]\n\xff\n", "is not UTF-8"),
    "empty": (b"", "is empty at line 1"),
    "a directory": (None, r"cannot be read \(Is a directory\): check its path"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("name", WORD_PIECE_FAMILIES)
def test_vocabularies_that_do_not_fit(tmp_path, capsys, monkeypatch, name, kind):
    content, words = VOCABULARIES[kind]
    path, out = tmp_path / "vocab.txt", tmp_path / "out"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    monkeypatch.setattr("tfanet.export.bundle.load_model", lambda _: fresh(name))
    argv = ("export", "--preset", f"{name}-tiny", "--vocab", path, "--output", out)
    code, line = told(capsys, *argv)
    assert code == 1 and line.startswith(f"tfanet: error: {path} ")
    assert re.search(words, line), line
    assert not out.exists()


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(WORD_PIECE_FAMILIES)))
def test_clip_has_one_vocabulary(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("tfanet.export.bundle.load_model", lambda _: fresh(name))
    out = tmp_path / "out"
    argv = ("export", "--preset", f"{name}-tiny", "--vocab", WORD_PIECES, "--output", out)
    code, line = told(capsys, *argv)
    assert code == 1 and "reads CLIP's byte pairs, whose vocabulary is fixed: leave vocab" in line
    assert not out.exists()
