"""Predictions in C equal those of Python, bit for bit."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable
from ctypes import byref, c_void_p
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from c_library import CALLBACK, Runtime, make_image
from hand_made import BOXED, STRETCHED, image_model, write_bundle
from PIL import Image as PillowImage

from tfanet.plugins import ort_library_path
from tfanet.runtime import ImageError, Predictor, image_to_tensor, logits_to_mask
from tfanet.runtime.bundle.contract import Preprocessing

HANGS = 3600  # seconds: a guard against waiting for ever, not a measure of anything
TEXT = "the red circle left of the star"
# (width, height): as the model's input, one side alike, thin, smaller, larger, prime.
SIZES = [(48, 32), (48, 70), (31, 32), (2, 2), (2, 300), (500, 2), (20, 11), (97, 101), (640, 480)]
pytestmark = pytest.mark.filterwarnings("ignore:the sentence has")
PILLOW_MODES = {"RGB": "RGB", "BGR": "RGB", "RGBA": "RGBA", "BGRA": "RGBA", "GREY": "L"}


def picture(size: tuple[int, int], kind: str, seed: int = 0) -> np.ndarray:
    """Random pixels in blocks, so that neighbours are alike in places."""
    width, height = size
    channels = {"GREY": (), "RGB": (3,), "BGR": (3,), "RGBA": (4,), "BGRA": (4,)}[kind]
    rng = np.random.default_rng([seed, width, height])
    fine = rng.integers(0, 256, (height, width, *channels), np.uint8)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, *channels), np.uint8)
    coarse = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.ascontiguousarray(
        np.where(rng.random((height, width, *channels)) < 0.5, fine, coarse)
    )


def as_pillow(pixels: np.ndarray, kind: str) -> PillowImage.Image:
    if kind in ("BGR", "BGRA"):
        pixels = np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    return PillowImage.fromarray(pixels, PILLOW_MODES[kind])


def assert_equal(native: SimpleNamespace, python: Any) -> None:
    np.testing.assert_array_equal(native.logits.view(np.uint32), python.logits.view(np.uint32))
    np.testing.assert_array_equal(native.mask, python.mask * np.uint8(255))
    assert native.score == pytest.approx(python.score, abs=2e-6)


@pytest.mark.parametrize("kind", PILLOW_MODES)
def test_equal_to_python(
    kind: str, open_runtime: Callable, shared_bundle: Path, python: Predictor
) -> None:
    runtime = open_runtime(shared_bundle)
    some = 0
    for size in SIZES:
        pixels = picture(size, kind)
        native = runtime.predict(make_image(pixels, kind), TEXT)
        assert_equal(native, python(as_pillow(pixels, kind), TEXT))
        some += native.mask.any() and not native.mask.all()
    # Masks that are neither empty nor full; the model takes red minus blue, so grey is even.
    assert some > 5 or kind == "GREY"


def test_fp8_graphs_run_as_they_stand(open_runtime: Callable, bundle: Path, seal: Callable) -> None:
    """ONNX Runtime's own fusion makes an integer product of them, which it then refuses."""
    model = onnx.load(bundle / "image.onnx")
    graph = model.graph
    graph.node[-1].output[0] = "exact"
    width = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    kind = onnx.TensorProto.FLOAT8E4M3FN
    eye = onnx.helper.make_tensor("eye", kind, [width, width], np.eye(width).ravel().tolist())
    zero = onnx.helper.make_tensor("zero", kind, [], [0.0])
    scales = (("fine", np.float32(0.01)), ("ones", np.ones(width, np.float32)))
    graph.initializer.extend([eye, zero])
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(s), n) for n, s in scales)
    output = graph.output[0].name
    for op, inputs, result, more in (
        ("QuantizeLinear", ["exact", "fine", "zero"], "q", {}),
        ("DequantizeLinear", ["q", "fine", "zero"], "dq", {}),
        ("DequantizeLinear", ["eye", "ones"], "weight_dq", {"axis": 1}),
        ("MatMul", ["dq", "weight_dq"], output, {}),
    ):
        graph.node.append(onnx.helper.make_node(op, inputs, [result], **more))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, bundle / "image.onnx")
    seal(bundle)
    pixels = picture((97, 101), "RGB")
    native = open_runtime(bundle).predict(make_image(pixels, "RGB"), TEXT)
    assert_equal(native, Predictor(bundle, threads=1)(as_pillow(pixels, "RGB"), TEXT))
    assert len(np.unique(native.logits)) <= 256  # no more numbers than FP8 has


def test_transparency_as_in_pillow(
    open_runtime: Callable, shared_bundle: Path, python: Predictor
) -> None:
    """Every value on white with every alpha, at the model's own width."""
    runtime = open_runtime(shared_bundle)
    values, alphas = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pairs = np.zeros((65536, 4), np.uint8)
    pairs[:, :3] = values.reshape(-1, 1)
    pairs[:, 3] = alphas.reshape(-1)
    for part in pairs[: 65536 // 1536 * 1536].reshape(-1, 32, 48, 4):
        pixels = np.ascontiguousarray(part)
        native = runtime.preprocess(make_image(pixels, "RGBA"))
        np.testing.assert_array_equal(native, python.preprocess(as_pillow(pixels, "RGBA"))[0])


def test_reductions_and_enlargements_of_all_kinds(
    open_runtime: Callable, shared_bundle: Path, python: Predictor
) -> None:
    """Widths and heights around the model's, its multiples and fractions."""
    runtime = open_runtime(shared_bundle)
    facts = python.bundle.manifest.preprocessing
    sides = [2, 3, 15, 16, 24, 31, 47, 48, 49, 63, 64, 65, 95, 96, 97, 144, 333]
    for size in itertools.product(sides, sides):
        pixels = picture(size, "RGB", seed=1)
        native = runtime.preprocess(make_image(pixels, "RGB"))
        expected = image_to_tensor(as_pillow(pixels, "RGB"), facts.size, (0.5,) * 3, (0.5,) * 3)
        np.testing.assert_array_equal(native, expected, err_msg=str(size))


def test_mask_at_any_size(open_runtime: Callable, shared_bundle: Path, python: Predictor) -> None:
    runtime = open_runtime(shared_bundle)
    for size in itertools.product([2, 7, 32, 48, 63, 480], [2, 9, 32, 48, 97, 640]):
        pixels = picture(size, "RGB", seed=2)
        native = runtime.predict(make_image(pixels, "RGB"), TEXT)
        mask, _ = logits_to_mask(native.logits, (size[1], size[0]))
        np.testing.assert_array_equal(native.mask, mask * np.uint8(255), err_msg=str(size))


def test_scores_of_all_logits(
    open_runtime: Callable, shared_bundle: Path, python: Predictor
) -> None:
    """Pictures of one colour: the mask is full or empty, the score that of a single logit."""
    runtime = open_runtime(shared_bundle)
    seen = set()
    for level in range(0, 256, 5):
        pixels = np.full((32, 48, 3), 127, np.uint8)
        pixels[..., 0] = level
        native = runtime.predict(make_image(pixels, "RGB"), TEXT)
        expected = python(as_pillow(pixels, "RGB"), TEXT)
        assert native.score == pytest.approx(expected.score, rel=3e-7)
        seen.add(native.score == 0)
    assert seen == {True, False}


@pytest.mark.parametrize("size", [(65_536, 2), (2, 65_536), (32_000_000, 2), (2, 32_000_000)])
def test_long_pictures_are_refused(
    size: tuple[int, int], open_runtime: Callable, python: Predictor,
    shared_bundle: Path,
) -> None:  # fmt: skip
    """In Python's words; no pixel is read, so none need be there."""
    with pytest.raises(ImageError) as expected:
        python(PillowImage.new("RGB", size), TEXT)
    image = make_image(picture((2, 2), "RGB"), "RGB")
    image.width, image.height = size
    with pytest.raises(Exception, match="a side may have at most 65,535") as caught:
        open_runtime(shared_bundle).predict(image, TEXT)
    assert str(caught.value) == str(expected.value)
    assert caught.value.status == "BAD_IMAGE"


def test_the_longest_pictures(
    open_runtime: Callable, shared_bundle: Path, python: Predictor
) -> None:
    for size in ((65_535, 3), (3, 65_535)):
        pixels = picture(size, "RGB")
        native = open_runtime(shared_bundle).predict(make_image(pixels, "RGB"), TEXT)
        assert_equal(native, python(as_pillow(pixels, "RGB"), TEXT))


@pytest.mark.parametrize("size", [(4, 40_000), (40_000, 4)])
@pytest.mark.parametrize("pre", [STRETCHED, BOXED], ids=["stretched", "boxed"])
def test_resizes_that_take_too_much_are_refused(
    size: tuple[int, int], pre: Preprocessing, open_runtime: Callable, tmp_path: Path
) -> None:
    """With a model of 16,000 pixels a side, whose own tensors would be made behind that."""
    model = image_model()
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis in value.type.tensor_type.shape.dim[2:]:
            axis.dim_value = 16_000
    pre = replace(pre, size=(16_000, 16_000))
    bundle = write_bundle(tmp_path / "bundle", model, preprocessing=pre)
    with pytest.raises(ImageError) as expected:
        Predictor(bundle, threads=1)(PillowImage.new("RGB", size), TEXT)
    runtime, image = open_runtime(bundle), make_image(picture((2, 2), "RGB"), "RGB")
    image.width, image.height = size
    for call in (lambda: runtime.predict(image, TEXT), lambda: runtime.preprocess(image)):
        with pytest.raises(
            Exception, match=r"resizing it would take 2,560,000,000 bytes"
        ) as caught:
            call()
        assert str(caught.value) == str(expected.value)
        assert caught.value.status == "BAD_IMAGE"


def test_gaps_between_rows(open_runtime: Callable, shared_bundle: Path) -> None:
    runtime = open_runtime(shared_bundle)
    for kind, gap in itertools.product(PILLOW_MODES, (1, 2, 61)):
        pixels = picture((33, 21), kind)
        row = pixels[0].size
        room = np.full((21, row + gap), 99, np.uint8)
        room[:, :row] = pixels.reshape(21, row)
        with_gap = make_image(pixels, kind, row + gap)
        with_gap.pixels = room.ctypes.data
        np.testing.assert_array_equal(
            runtime.preprocess(with_gap), runtime.preprocess(make_image(pixels, kind))
        )


def test_with_the_operator_library(open_runtime: Callable, scan_bundle: Path) -> None:
    runtime, python = open_runtime(scan_bundle), Predictor(scan_bundle, threads=1)
    assert Path(runtime.info().op_library.decode()).resolve() == ort_library_path().resolve()
    for size in SIZES:
        pixels = picture(size, "RGB")
        native = runtime.predict(make_image(pixels, "RGB"), TEXT)
        assert_equal(native, python(as_pillow(pixels, "RGB"), TEXT))


@pytest.mark.parametrize("bundle_name", ["shared_bundle", "scan_bundle"])
def test_batches(bundle_name: str, open_runtime: Callable, request: pytest.FixtureRequest) -> None:
    """One picture with many sentences equals Python's list; many pictures equal single calls."""
    path = request.getfixturevalue(bundle_name)
    runtime, python = open_runtime(path), Predictor(path, threads=1)
    texts = ["red", "a blue dog", "the left one", "2", "it's there", "", "seven"]
    texts[5] = "x" * 100
    sentences = [runtime.encode(text) for text in texts]
    handles = (c_void_p * len(texts))(*(sentence.value for sentence in sentences))
    pixels = [picture((30 + 9 * i, 40 - 3 * i), "RGB", seed=i) for i in range(len(texts))]
    images = (type(make_image(pixels[0], "RGB")) * len(texts))(
        *(make_image(one, "RGB") for one in pixels)
    )
    out = (c_void_p * len(texts))()
    runtime.check(runtime.api.predict_batch(runtime.handle, images, 1, handles, len(texts), out))
    for one, expected in zip(out, python(as_pillow(pixels[0], "RGB"), texts), strict=True):
        assert_equal(runtime.take(one), expected)
    runtime.check(
        runtime.api.predict_batch(runtime.handle, images, len(texts), handles, len(texts), out)
    )
    for one, own, text in zip(out, pixels, texts, strict=True):
        native, expected = runtime.take(one), python(as_pillow(own, "RGB"), text)
        np.testing.assert_array_equal(native.mask, expected.mask * np.uint8(255))
        np.testing.assert_allclose(native.logits, expected.logits, rtol=1e-6, atol=1e-6)
    for sentence in sentences:
        runtime.api.sentence_free(sentence)


def test_tensors_and_token_ids(
    open_runtime: Callable, shared_bundle: Path, python: Predictor
) -> None:
    runtime = open_runtime(shared_bundle)
    ids, mask, _ = runtime.tokenize(TEXT.encode())
    sentence = c_void_p()
    runtime.check(
        runtime.api.encode_tokens(
            runtime.handle, ids.ctypes.data, mask.ctypes.data, ids.size, byref(sentence)
        )
    )
    pixels = [picture((60, 50), "RGB", seed=i) for i in range(3)]
    tensors = np.stack([runtime.preprocess(make_image(one, "RGB")) for one in pixels])
    handles = (c_void_p * 3)(*[sentence.value] * 3)
    logits = np.zeros((3, 1, 32, 48), np.float32)
    runtime.check(
        runtime.api.predict_tensors(
            runtime.handle, tensors.ctypes.data, handles, 3, logits.ctypes.data, logits.size
        )
    )
    expected = python.predict_tensors(tensors, python.encode_text(TEXT))
    np.testing.assert_array_equal(logits, expected)
    runtime.api.sentence_free(sentence)


def test_callbacks_come_in_order(open_runtime: Callable, shared_bundle: Path) -> None:
    runtime = open_runtime(shared_bundle)
    sentence = runtime.encode(TEXT)
    all_pixels = [picture((20 + i, 20), "RGB", seed=i) for i in range(20)]
    expected = [runtime.predict(make_image(one, "RGB"), TEXT).mask for one in all_pixels]
    got: list[tuple[int, int, np.ndarray, bytes]] = []
    done = threading.Event()

    def take(user: int, status: int, prediction: int, message: bytes) -> None:
        got.append((user, status, runtime.take(prediction).mask, message))
        if len(got) == len(all_pixels):
            done.set()

    callback = CALLBACK(take)
    for number, pixels in enumerate(all_pixels, start=1):
        image = make_image(pixels, "RGB")
        runtime.check(
            runtime.api.predict_async(runtime.handle, byref(image), sentence, callback, number)
        )
        pixels[:] = 0  # it may be reused at once
    runtime.api.sentence_free(sentence)
    assert done.wait(HANGS)
    assert [user for user, *_ in got] == list(range(1, 21))
    for (_, status, mask, message), known in zip(got, expected, strict=True):
        assert (status, message) == (0, b"")
        np.testing.assert_array_equal(mask, known)


def test_many_threads_give_equal_masks(open_runtime: Callable, shared_bundle: Path) -> None:
    runtime = open_runtime(shared_bundle, cache=2)
    texts = ["red", "a blue dog", "the left one", "2"]
    pixels = [picture((50 + i, 40), "RGB", seed=i) for i in range(4)]
    expected = {
        (i, text): runtime.predict(make_image(pixels[i], "RGB"), text).mask
        for i in range(4)
        for text in texts
    }
    wrong: list[Any] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            i, text = int(rng.integers(4)), texts[rng.integers(4)]
            try:
                mask = runtime.predict(make_image(pixels[i], "RGB"), text).mask
                if not np.array_equal(mask, expected[i, text]):
                    wrong.append((i, text))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_waits_for_a_call_in_another_thread(
    api: SimpleNamespace, shared_bundle: Path
) -> None:
    runtime = Runtime(api, shared_bundle)
    sentence, pixels = runtime.encode(TEXT), picture((1280, 960), "RGB")
    image, count = make_image(pixels, "RGB"), 60
    handles, out = (c_void_p * count)(*[sentence.value] * count), (c_void_p * count)()
    out[count - 1] = 1  # set to null when the call begins
    statuses: list[int] = []

    def predict() -> None:
        arguments = runtime.handle, byref(image), 1, handles, count, out
        statuses.append(api.predict_batch(*arguments))

    thread = threading.Thread(target=predict)
    thread.start()
    while out[count - 1]:
        time.sleep(0.001)
    assert api.close(runtime.handle) == 0  # as a rule amid the pictures
    thread.join()
    assert statuses == [0]
    for one in out:
        assert runtime.take(one).mask.shape == (960, 1280)
    api.sentence_free(sentence)


def test_closing_waits_for_callbacks_and_lets_no_call_in(
    api: SimpleNamespace,
    shared_bundle: Path,
) -> None:
    runtime = Runtime(api, shared_bundle)
    sentence, pixels = runtime.encode(TEXT), picture((40, 40), "RGB")
    image, info = make_image(pixels, "RGB"), runtime.info()
    told, order = threading.Event(), []

    def take(user: int, status: int, prediction: int, message: bytes) -> None:
        assert told.wait(HANGS)
        order.append("callback")
        api.prediction_free(prediction)

    callback = CALLBACK(take)
    assert api.predict_async(runtime.handle, byref(image), sentence, callback, None) == 0

    def close() -> None:
        assert api.close(runtime.handle) == 0
        order.append("closed")

    thread = threading.Thread(target=close)
    thread.start()
    while (status := api.get_info(runtime.handle, byref(info))) == 0:
        time.sleep(0.001)
    assert status == -8  # TFANET_CLOSED
    assert b"the runtime is being closed" in api.error(runtime.handle)
    assert order == []
    told.set()
    thread.join()
    assert order == ["callback", "closed"]
    api.sentence_free(sentence)


def test_timings_and_facts(open_runtime: Callable, shared_bundle: Path) -> None:
    runtime = open_runtime(shared_bundle)
    info = runtime.info()
    assert (info.image_width, info.image_height, info.text_length) == (48, 32, 8)
    assert (info.backend, info.model, info.dynamic_batch) == (b"onnxruntime-cpu", b"by-hand", 1)
    result = runtime.predict(make_image(picture((640, 480), "RGB"), "RGB"), TEXT).result
    parts = result.preprocess_ms, result.text_ms, result.image_ms, result.postprocess_ms
    assert min(parts) > 0
    assert result.total_ms == pytest.approx(sum(parts))
    assert ctypes.string_at(runtime.api.version()).decode()


def test_memory_does_not_grow(open_runtime: Callable, shared_bundle: Path) -> None:
    """Over 10,000 predictions of pictures and sentences of many sizes: below one percent."""
    runtime = open_runtime(shared_bundle, cache=16)
    pixels = [picture((40 + 7 * i, 90 - 5 * i), "RGB", seed=i) for i in range(10)]
    images = [make_image(one, "RGB") for one in pixels]

    def predict(count: int) -> int:
        for number in range(count):
            runtime.predict(images[number % 10], f"circle {number % 50}")
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = predict(1_000)
    assert predict(10_000) < 1.01 * before
