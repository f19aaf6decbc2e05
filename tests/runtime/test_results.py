"""What a prediction can do: compare, print, draw, be pickled, and become another library's."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
import pytest
from hand_made import image_model, write_bundle
from PIL import Image, ImageShow

from tfanet import Predictor
from tfanet.errors import InputError, MissingDependencyError
from tfanet.runtime import ImageError, Instance, Prediction, Sentence
from tfanet.runtime.overlay import overlay


@pytest.fixture
def picture() -> np.ndarray:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 255
    pixels[:, 30:, 2] = 255
    return pixels


def test_importing_and_using_tfanet_imports_no_torch(shared_bundle):
    code = (
        "import sys; import tfanet; from tfanet import Predictor; import numpy as np\n"
        f"with Predictor({str(shared_bundle)!r}) as p:\n"
        "    r = p([np.zeros((40, 50, 3), np.uint8)] * 2, ['red', p.encode_text('big')])[0][1]\n"
        "    for _ in p.stream([np.zeros((40, 50, 3), np.uint8)], 'red'): pass\n"
        "r.box, r.area, r.polygons(), r.rle(), r.plot(), r == r, repr(r)\n"
        "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_results_are_equal_by_their_values(shared_bundle, picture):
    predictor = Predictor(shared_bundle)
    one, again = (predictor(picture, "the red one") for _ in range(2))
    assert one == again and one.timings != again.timings
    assert one != predictor(picture[:, ::-1], "the red one")
    assert one != replace(one, text="another") and one != "mask"
    changed = one.logits.copy()
    changed[0, 0] += 1
    assert one != replace(one, logits=changed)
    assert one != replace(one, logits=one.logits.astype(np.float64))
    sentence = predictor.encode_text("big")
    assert sentence == Predictor(shared_bundle).encode_text("big")
    assert sentence != predictor.encode_text("small")
    assert Instance(one.mask, 0.5) != Instance(one.mask, 0.5, np.zeros(3, np.float32))
    for value in (one, sentence):
        assert pickle.loads(pickle.dumps(value)) == value
        with pytest.raises(TypeError, match="unhashable"):
            hash(value)


def test_representations_are_one_short_line(shared_bundle, picture):
    predictor = Predictor(shared_bundle)
    assert repr(predictor) == f"Predictor('{shared_bundle}', by-hand on onnxruntime-cpu)"
    result = replace(predictor(picture, "the red one"), text="the red one " + "x" * 3000)
    for value in (result, predictor.encode_text("the red\none"), Instance(result.mask, 0.75)):
        assert len(repr(value)) < 120 and "\n" not in repr(value)
    sentence = predictor.encode_text("the red one")
    assert repr(sentence) == "Sentence('the red one', 5 tokens)"
    prediction = Prediction(result.mask, 0.5, result.logits, {}, text="a")
    pixels = int(result.mask.sum())
    assert repr(prediction) == f"Prediction('a': {pixels} of 2400 pixels, score 0.50)"
    assert repr(Instance(result.mask, 0.75)) == f"Instance({pixels} pixels, relevance 0.75)"


def test_a_predictor_is_pickled_as_it_was_opened(shared_bundle, picture, monkeypatch):
    with Predictor(shared_bundle, threads=1, op_library=None, cache_size=3) as predictor:
        dumped = pickle.dumps(predictor)
        assert len(dumped) < 2000
        expected = predictor(picture, "big")
    with pickle.loads(dumped) as again:
        assert again(picture, "big") == expected
        assert again.info()["op_library"] is None and again.bundle.digest in str(dumped)


def test_a_pickled_predictor_takes_no_other_bundle(bundle, edit):
    dumped = pickle.dumps(Predictor(bundle))
    edit(lambda manifest: manifest["model"].clear())
    with pytest.raises(InputError, match="another bundle, or it was altered"):
        pickle.loads(dumped)


def test_a_closed_predictor_says_so(shared_bundle, picture):
    with Predictor(shared_bundle) as predictor:
        sentence = predictor.encode_text("big")
        predictor(picture, "big")
    predictor.close()  # a second time
    for text in ("small", sentence):
        with pytest.raises(InputError, match="closed: open the bundle again"):
            predictor(picture, text)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.97])
def test_a_threshold_is_the_probability_of_a_pixel(shared_bundle, threshold):
    predictor = Predictor(shared_bundle)
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)  # the model's own size
    result = predictor(noise, "big", threshold=threshold)
    probable = 1 / (1 + np.exp(-result.logits.astype(np.float64)))
    sure = abs(probable - threshold) > 1e-6
    assert np.array_equal(result.mask[sure], (probable > threshold)[sure])
    if threshold == 0.5:
        assert result == predictor(noise, "big")
    for one in predictor.stream([noise], "big", threshold=threshold):
        assert one == result


def test_a_threshold_is_one_of_instances_too(tmp_path):
    predictor = Predictor(write_bundle(tmp_path / "b", image_model(instances=6)))
    noise = np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8)
    areas = [
        [one.area for one in predictor(noise, "big", threshold=threshold).instances]
        for threshold in (0.2, 0.5, 0.9)
    ]
    assert areas[1] == [one.area for one in predictor(noise, "big").instances]
    assert all(a >= b >= c for a, b, c in zip(*areas, strict=True))
    assert sum(areas[0]) > sum(areas[1]) > sum(areas[2])


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 50, float("nan"), "0.5", True])
def test_a_threshold_that_is_none(shared_bundle, picture, threshold):
    with pytest.raises(InputError, match=r"threshold is .*: give a .* between 0 and 1"):
        Predictor(shared_bundle)(picture, "big", threshold=threshold)


def test_a_result_is_drawn_written_and_shown(shared_bundle, picture, tmp_path, monkeypatch):
    result = Predictor(shared_bundle)(picture, "the red one")
    assert np.array_equal(result.image, picture)
    expected = overlay(Image.fromarray(picture), result.mask)
    assert np.array_equal(result.plot(), expected)
    result.save(tmp_path / "overlay.png")
    assert np.array_equal(Image.open(tmp_path / "overlay.png"), expected)
    with pytest.raises(ImageError, match=r"name a \.png file"):
        result.save(tmp_path / "overlay.doc")
    shown = []
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image) or True)
    result.show()
    assert np.array_equal(shown[0], expected)
    monkeypatch.setattr(ImageShow, "show", lambda image: False)
    with pytest.raises(MissingDependencyError, match="no program here to show pictures"):
        result.show()
    with pytest.raises(InputError, match="no picture"):
        replace(result, image=None).plot()


@dataclass
class Detections:
    """As supervision's, which checks the shapes and compares no further."""

    xyxy: np.ndarray
    mask: np.ndarray | None = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    data: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Detections:
        return cls(np.zeros((0, 4), np.float32))

    def __len__(self) -> int:
        return len(self.xyxy)


@pytest.fixture(params=["stand-in", "supervision"])
def supervision(request, monkeypatch):
    if request.param == "supervision":
        return pytest.importorskip("supervision")
    module = ModuleType("supervision")
    module.Detections = Detections
    monkeypatch.setitem(sys.modules, "supervision", module)
    return module


def test_detections_of_supervision(supervision, shared_bundle, picture, tmp_path):
    result = Predictor(shared_bundle)(picture, "the red one")
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 1
    assert found.xyxy.tolist() == [list(result.box)] and found.class_id.tolist() == [0]
    assert np.array_equal(found.mask[0], result.mask)
    assert found.confidence[0] == np.float32(result.score)
    assert found.data["class_name"].tolist() == ["the red one"]
    empty = replace(result, mask=np.zeros_like(result.mask))
    assert empty.box is None and len(empty.to_supervision()) == 0
    several = Predictor(write_bundle(tmp_path / "b", image_model(instances=6)))(picture, "red")
    whole = [one for one in several.instances if one.area]
    assert len(several.to_supervision()) == len(whole) > 1
    assert several.to_supervision().confidence.tolist() == [
        pytest.approx(one.relevance) for one in whole
    ]


def test_supervision_that_is_missing(shared_bundle, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tfanet\[supervision\]'"):
        Predictor(shared_bundle)(picture, "red").to_supervision()


def test_a_sentence_of_another_model_is_refused(shared_bundle, picture):
    predictor = Predictor(shared_bundle)
    good = predictor.encode_text("red")
    for features in ({}, {**good.features, "sentence_feature": np.zeros((1, 3), np.float32)}):
        other = Sentence(features, good.mask, text="red")
        with pytest.raises(InputError, match=r"'red' was encoded by another model"):
            predictor(picture, other)
