"""The predictor on bundles made by hand: results, cache, threads, and clear refusals."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hand_made import SIZE, image_model
from PIL import Image

from tfanet.errors import InputError, MissingDependencyError
from tfanet.runtime import BundleError, Predictor, Sentence, TextError

SENTENCES = ["the red one", "a blue square", "left of the star", "big", "small green ring"]


def picture(seed: int = 0, size: tuple[int, int] = (50, 70)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_mask_has_the_picture_s_size_and_follows_the_pixels(shared_bundle):
    image = np.zeros((61, 83, 3), np.uint8)
    image[:, :40, 0] = 255
    image[:, 40:, 2] = 255
    prediction = Predictor(shared_bundle)(image, "the red one")
    assert prediction.mask.shape == (61, 83) and prediction.mask.dtype == bool
    assert prediction.mask[:, :38].all() and not prediction.mask[:, 42:].any()
    assert prediction.logits.shape == SIZE
    inside = prediction.logits[:, :10]
    assert prediction.score == pytest.approx(float(np.mean(1 / (1 + np.exp(-inside)))), abs=0.02)
    assert set(prediction.timings) == {"preprocess", "text", "image", "postprocess", "total"}
    assert prediction.timings["total"] >= prediction.timings["image"] > 0


def test_path_pil_and_array_agree(shared_bundle, tmp_path):
    image = picture()
    Image.fromarray(image).save(tmp_path / "p.png")
    predictor = Predictor(shared_bundle)
    results = [
        predictor(source, "big") for source in (image, Image.fromarray(image), tmp_path / "p.png")
    ]
    for other in results[1:]:
        assert np.array_equal(results[0].logits, other.logits)


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_list_of_sentences_equals_one_by_one(make_bundle, dynamic):
    predictor = Predictor(make_bundle(dynamic_batch=dynamic))
    together = predictor(picture(), SENTENCES)
    assert isinstance(together, list)
    for sentence, prediction in zip(SENTENCES, together, strict=True):
        alone = predictor(picture(), sentence)
        np.testing.assert_allclose(prediction.logits, alone.logits, rtol=1e-5, atol=1e-6)


def test_different_sentences_give_different_logits(shared_bundle):
    predictor = Predictor(shared_bundle)
    a, b = predictor(picture(), SENTENCES[:2])
    assert not np.array_equal(a.logits, b.logits)


def test_sentences_are_cached_least_recently_used_first(shared_bundle):
    predictor = Predictor(shared_bundle, cache_size=2)
    first = predictor.encode_text("one")
    second = predictor.encode_text("two")
    assert predictor.encode_text("one") is first
    predictor.encode_text("three")  # drops "two"
    assert predictor.encode_text("one") is first
    assert predictor.encode_text("two") is not second
    none = Predictor(shared_bundle, cache_size=0)
    assert none.encode_text("one") is not none.encode_text("one")


def test_one_sentence_over_many_frames(shared_bundle):
    predictor = Predictor(shared_bundle)
    sentence = predictor.encode_text("the red one")
    frames = [predictor.preprocess(picture(seed))[0] for seed in range(3)]
    logits = predictor.predict_tensors(np.stack(frames), sentence)
    assert logits.shape == (3, 1, *SIZE)
    for frame, seed in zip(logits, range(3), strict=True):
        expected = predictor(picture(seed), "the red one").logits
        np.testing.assert_allclose(frame[0], expected, rtol=1e-5, atol=1e-6)


def test_eight_threads_give_the_bits_of_one(shared_bundle):
    predictor = Predictor(shared_bundle, cache_size=2)
    jobs = [(seed, sentence) for seed in range(6) for sentence in SENTENCES] * 3

    def run(job: tuple[int, str]) -> np.ndarray:
        return predictor(picture(job[0]), job[1]).logits

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, jobs))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_longer_sentences_are_cut_with_a_warning_that_names_the_words(shared_bundle):
    predictor = Predictor(shared_bundle)
    with pytest.warns(UserWarning, match="dropped 'seven eight nine'"):
        predictor(picture(), "one two three four five six seven eight nine")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        (b"\xff\xfe", "UTF-8"),
        ("\ud800", "surrogate"),
        ("x" * 5000, "4096"),
        ([3], "int"),
        (None, "the text is a NoneType: give a sentence"),
        (7, "the text is a int"),
        ([], "empty"),
    ],
)
def test_bad_sentences(shared_bundle, text, word):
    with pytest.raises(InputError, match=word) as caught:
        Predictor(shared_bundle)(picture(), text)
    assert isinstance(caught.value, TextError) or text == []
    assert "\n" not in str(caught.value)


def test_a_bare_scan_node_needs_the_library(make_bundle):
    path = make_bundle(scan=True, dynamic_batch=False)
    with pytest.raises(MissingDependencyError) as caught:
        Predictor(path, op_library=None)
    message = str(caught.value)
    assert "SelectiveScan" in message and "make native" in message and "--function" in message
    assert "\n" not in message
    predictor = Predictor(path)
    assert predictor.info()["op_library"].endswith("libtfanet_ort.so")
    assert np.isfinite(predictor(picture(), "big").logits).all()


def test_a_library_that_is_not_there_or_not_one(shared_bundle, tmp_path):
    with pytest.raises(MissingDependencyError, match="does not exist"):
        Predictor(shared_bundle, op_library=tmp_path / "none.so")
    (tmp_path / "fake.so").write_text("no library")
    with pytest.raises(MissingDependencyError, match="does not load in onnxruntime"):
        Predictor(shared_bundle, op_library=tmp_path / "fake.so")


def test_bad_options(shared_bundle):
    for options, word in (
        ({"backend": "tensorflow"}, "backend is .tensorflow.: choose auto, tensorrt, tensorrt-rtx"),
        ({"threads": 0}, "threads is 0"),
        ({"cache_size": -1}, "cache_size is -1"),
    ):
        with pytest.raises(InputError, match=word):
            Predictor(shared_bundle, **options)


def test_an_onnx_file_that_is_garbage(make_bundle):
    garbage = image_model()
    del garbage.graph.node[:]  # nothing gives its outputs
    path = make_bundle(image=garbage)
    with pytest.raises(InputError, match=r"image\.onnx cannot be loaded"):
        Predictor(path)


def test_the_runtime_never_imports_torch(shared_bundle):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "import numpy as np; from tfanet.runtime import Predictor\n"
        f"p = Predictor({str(shared_bundle)!r}); p(np.zeros((40, 40, 3), np.uint8), 'red')\n"
        "assert sys.modules['torch'] is None; print('ran')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "ran\n", done.stderr


def test_a_graph_that_fails_while_it_runs_is_one_line(shared_bundle):
    predictor = Predictor(shared_bundle)
    tensor = np.zeros((1, 3, *SIZE), np.float32)
    good = predictor.encode_text("big")
    short = good.features["word_features"][:, :, :3]
    wrong = Sentence({**good.features, "word_features": short}, good.mask)  # which ORT refuses
    with pytest.raises(BundleError) as caught:
        predictor.predict_tensors(tensor, wrong)
    message = str(caught.value)
    assert "image.onnx does not run on onnxruntime-cpu (" in message
    assert message.isprintable() and "tfanet parity" in message


def test_a_graph_that_gives_another_size_than_the_manifest_says(shared_bundle, monkeypatch):
    class Wide:
        def run(self, names, feeds):
            return [np.zeros((1, 1, 32, 96), np.float32)]

    predictor = Predictor(shared_bundle)
    monkeypatch.setitem(predictor._running._graphs, "image.onnx", Wide())
    with pytest.raises(BundleError, match=r"gives float32 \(1, 1, 32, 96\) for 'mask_logit'"):
        predictor(picture(), "big")


def test_a_manifest_without_a_preset(edit, bundle):
    edit(lambda manifest: manifest["model"].clear())
    assert Predictor(bundle).info()["model"] == ""


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (np.full((1, 3, *SIZE), np.inf, np.float32), "inf or NaN"),
        (np.full((1, 3, *SIZE), np.nan, np.float32), "inf or NaN"),
        (np.zeros((1, 3, *SIZE)), "float64, expected float32"),
        (np.zeros((3, *SIZE), np.float32), "shape"),
        (np.zeros((0, 3, *SIZE), np.float32), "shape"),
        (np.zeros((1, 3, 8, 8), np.float32), r"expected \('batch', 3, 32, 48\)"),
        ([1], "takes NumPy arrays"),
    ],
)
def test_tensors_that_are_no_pictures(shared_bundle, tensor, word):
    predictor = Predictor(shared_bundle)
    with pytest.raises(InputError, match=word):
        predictor.predict_tensors(tensor, predictor.encode_text("big"))
    with pytest.raises(InputError, match="encode_text"):
        predictor.predict_tensors(np.zeros((1, 3, *SIZE), np.float32), "big")
