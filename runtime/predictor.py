"""`Predictor`: a bundle, a picture and a sentence in; a mask at the picture's own size out."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from tfanet.errors import InputError, MissingDependencyError, TfanetError, plain
from tfanet.plugins.libraries import ort_library_path
from tfanet.runtime.backends.choose import Options, open_graphs
from tfanet.runtime.backends.engine import EngineGraph
from tfanet.runtime.backends.session import check_interface
from tfanet.runtime.bundle.contract import Postprocessing
from tfanet.runtime.bundle.graphs import IMAGE, TEXT, image_feed, names_of
from tfanet.runtime.bundle.read import FILES, Bundle, BundleError
from tfanet.runtime.prediction import Instance, Prediction, Sentence, words_of
from tfanet.runtime.preprocess import (
    load_image,
    picture_to_tensor,
    plane_to_mask,
    probability,
)
from tfanet.runtime.tokenizer import check_text, listed, tokenizer_of

__all__ = ["Predictor"]

RELEVANT = 0.5  # an instance is meant from here on
INSTANCE = Postprocessing("logit", 0.0)
BATCH = 4  # sentences that run together: a larger batch is no faster and takes more memory
Picture = str | Path | Image.Image | np.ndarray


class Predictor:
    """Runs a bundle on its best backend. One predictor may serve many threads.

    Args:
        bundle: the bundle's directory. digest: of the bundle that is meant, as `tfanet info` prints
            it: another one, or an altered one, is refused.
        backend: "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu", or the name of
            one of the bundle's engines; "auto" takes the first of them that can run here, and
            `info()` says which, and why the others were passed over.
        threads: of a single run on the CPU, 1 to 1024; None takes all cores that this process may
            use. device: index of the GPU.
        op_library: for ONNX Runtime. "auto" loads our scan kernel if it is installed, and else
            runs the function body in the ONNX file, several times slower (`info()` says which); a
            path loads that library; None never loads one.
        cache_size: encoded sentences kept, least recently used dropped first.
        host_code: names of engines that may run the CPU code which they carry; by default none,
            since that is code from the file.

    Raises:
        BundleError: where the bundle is incomplete or altered.
        MissingDependencyError: where onnxruntime, a GPU, or a library that the model needs, is
            missing. EngineError: where the engine asked for cannot run here.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        digest: str | None = None,
        backend: str = "auto",
        threads: int | None = None,
        device: int = 0,
        op_library: str | Path | None = "auto",
        cache_size: int = 256,
        host_code: Sequence[str] = (),
    ) -> None:
        if cache_size < 0:
            raise InputError(f"cache_size is {cache_size}: give the number of sentences, 0 or more")
        self.bundle = Bundle.open(bundle, digest=digest, later=FILES)
        self._tokenizer = tokenizer_of(self.bundle)
        self._interface = self.bundle.manifest.interface
        self._library = _library(op_library)
        options = Options(threads, device, self._library, host_code)
        self._running = open_graphs(self.bundle, backend, options)
        self.bundle.check_unread()
        self._text, self._image = self._running.text, self._running.image
        self._check()
        self._given = {
            name: names_of(graph.get_outputs())
            for name, graph in ((TEXT, self._text), (IMAGE, self._image))
        }
        self._cache: OrderedDict[str, Sentence] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()

    def info(self) -> dict[str, Any]:
        """The backend, why better ones were passed over, what runs the scan and INT8, the model."""
        running = self._running
        return {
            "backend": running.backend,
            "engine": running.engine,
            "device": running.device,
            "batches": list(running.batches),
            "passed_over": running.passed_over,
            "op_library": None if self._library is None else str(self._library),
            "scan": running.scan,
            "int8": running.int8,
            "bundle": str(self.bundle.path),
            "digest": self.bundle.digest,
            "family": self.bundle.manifest.family,
            "model": self.bundle.manifest.preset,
            "image_size": list(self.bundle.manifest.preprocessing.size),
            "text_length": self.bundle.manifest.text.length,
            "outputs": list(self._interface.image_outputs),
        }

    @overload
    def __call__(self, image: Picture, text: str) -> Prediction: ...
    @overload
    def __call__(self, image: Picture, text: list[str]) -> list[Prediction]: ...
    def __call__(self, image: Picture, text: str | Sequence[str]) -> Prediction | list[Prediction]:
        """Segment what `text` names in `image`.

        Args:
            image: a path, a PIL image, or a uint8 array (H, W, 3), of any size.
            text: one sentence, or a list of them for the same picture, which then is prepared
                once and runs with up to 4 sentences at a time where the bundle's batch is dynamic.

        Returns:
            A Prediction, or for a list one for each sentence, in its order.

        Raises:
            ImageError, TextError: naming what is wrong with the picture or a sentence.
            BundleError: where a graph fails in its runtime.
        """
        predictions = self._predict(image, listed(text))
        return predictions[0] if isinstance(text, str | bytes) else predictions

    def encode_text(self, text: str) -> Sentence:
        """The features of a sentence, read-only, from the cache where they are.

        A sentence that is too long is cut, with a warning when it is encoded.
        """
        text = check_text(text)
        with self._lock:
            known = self._cache.get(text)
            if known is not None:
                self._cache.move_to_end(text)
                return known
        ids, mask = self._tokenizer(text)
        features = self._call(TEXT, {"token_ids": ids})
        encoded = Sentence(features, mask, self._tokenizer.words(text))
        for array in (*encoded.features.values(), mask):
            array.flags.writeable = False  # it may serve other threads from the cache
        with self._lock:
            self._cache[text] = encoded
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return encoded

    def tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (1, L) int64 and word mask (1, L) float32 of a sentence."""
        return self._tokenizer(check_text(text))

    def predict_tensors(self, image: Any, sentence: Sentence) -> np.ndarray:
        """Logits (B, 1, h, w) of a preprocessed image (B, 3, h, w), as `image_to_tensor` makes it.

        The sentence is used for every image of the batch, as over the frames of a video. An engine
        also takes an image in the memory of its GPU: any array with DLPack or
        `__cuda_array_interface__`, such as a torch or CuPy one; its values are not looked at.

        Raises:
            InputError: for another shape or type, and for inf and NaN in a NumPy array.
        """
        if not isinstance(image, np.ndarray) and not isinstance(self._image, EngineGraph):
            raise InputError(
                f"the image is a {type(image).__name__}: {self._running.backend} takes NumPy arrays"
            )
        if not isinstance(sentence, Sentence):
            raise InputError(
                f"the sentence is a {type(sentence).__name__}: pass what `encode_text` returns"
            )
        expected = (3, *self.bundle.manifest.preprocessing.size)
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1:] != expected or shape[0] < 1:
            raise InputError(f"the image has shape {shape}, expected {('batch', *expected)}")
        if isinstance(image, np.ndarray):
            if image.dtype != np.float32:
                raise InputError(f"the image is {image.dtype}, expected float32")
            if not np.isfinite(image).all():
                raise InputError("the image holds inf or NaN: a mask of it would mean nothing")
        return self._run(image, [sentence] * shape[0])["mask"]

    def preprocess(self, image: Picture) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture as (3, h, w) float32 for `predict_tensors`, and its own size (H, W)."""
        picture = load_image(image)
        tensor = picture_to_tensor(picture, self.bundle.manifest.preprocessing)
        return tensor, (picture.height, picture.width)

    def close(self) -> None:
        """Give back what is held beyond Python's memory: on a GPU, contexts and buffers.

        Call it when nothing runs. TensorRT-RTX then also keeps what it compiled for the next start.
        """
        self._running.close()

    def _check(self) -> None:
        """That the graphs are what the manifest says."""
        says = self._interface
        length = self.bundle.manifest.text.length
        text, image = (self.bundle.file(name) for name in (TEXT, IMAGE))
        check_interface(self._text, text, {"token_ids": (length,)}, says.text_outputs)
        check_interface(self._image, image, says.image_inputs, dict(says.image_outputs.values()))

    def _predict(self, image: Picture, texts: list[Any]) -> list[Prediction]:
        if not texts:
            raise InputError("the list of sentences is empty: pass one or more")
        started = time.perf_counter()
        tensor, size = self.preprocess(image)
        prepared = time.perf_counter()
        sentences = [self.encode_text(text) for text in texts]
        encoded = time.perf_counter()
        outputs: list[dict[str, np.ndarray]] = []  # of each sentence, by role
        batch = min(BATCH, self._running.batches[1])
        for start in range(0, len(texts), batch):
            part = sentences[start : start + batch]
            images = np.broadcast_to(tensor, (len(part), *tensor.shape))
            found = self._run(np.ascontiguousarray(images), part)
            outputs += [
                {role: values[row] for role, values in found.items()} for row in range(len(part))
            ]
        ran = time.perf_counter()
        results = [
            self._result(found, sentence, size)
            for found, sentence in zip(outputs, sentences, strict=True)
        ]
        done = time.perf_counter()
        timings = {
            "preprocess": prepared - started,
            "text": encoded - prepared,
            "image": ran - encoded,
            "postprocess": done - ran,
            "total": done - started,
        }
        milliseconds = {name: 1e3 * value for name, value in timings.items()}
        return [replace(result, timings=milliseconds) for result in results]

    def _result(
        self, found: Mapping[str, np.ndarray], sentence: Sentence, size: tuple[int, int]
    ) -> Prediction:
        """A prediction of the image graph's outputs for one sentence, by role."""
        manifest = self.bundle.manifest
        pre, post = manifest.preprocessing, manifest.postprocessing
        logits = found["mask"][0]
        mask, values = plane_to_mask(logits, size, pre, post)
        no_target, instances = None, None
        if "no_target" in found:
            no_target = float(probability(found["no_target"])[0])
            if found["no_target"][0] > 0:
                mask = np.zeros_like(mask)
        if "instances" in found:
            order = np.argsort(-found["relevance"], kind="stable")
            alignments = found.get("alignment", [None] * len(order))
            instances = tuple(
                Instance(
                    plane_to_mask(found["instances"][index], size, pre, INSTANCE)[0],
                    float(found["relevance"][index]),
                    alignments[index],
                    words_of(sentence, alignments[index]),
                )
                for index in order
                if found["relevance"][index] >= RELEVANT
            )
        score = _score(values, mask, post.value)
        return Prediction(mask, score, logits, {}, no_target, instances)

    def _run(self, image: Any, sentences: list[Sentence]) -> dict[str, np.ndarray]:
        """The image graph's outputs by role, of a batch."""

        def stacked(parts: list[np.ndarray]) -> np.ndarray:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        features = {
            name: stacked([sentence.features[name] for sentence in sentences])
            for name in self._interface.text_outputs
        }
        mask = stacked([sentence.mask for sentence in sentences])
        feed = image_feed(self._interface.image_inputs, image, features, mask)
        given = self._call(IMAGE, feed)
        found = {}
        for role, (name, shape) in self._interface.image_outputs.items():
            values, expected = given[name], (len(sentences), *shape)
            if values.shape != expected or not np.issubdtype(values.dtype, np.floating):
                raise BundleError(
                    f"{self.bundle.file(IMAGE)} gives {values.dtype} {values.shape} for '{name}', "
                    f"the manifest says floats {expected}: export the model again"
                )
            found[role] = values
        return found

    def _call(self, name: str, feed: dict[str, Any]) -> dict[str, np.ndarray]:
        graph = self._text if name == TEXT else self._image
        try:
            values = graph.run(None, feed)
        except TfanetError:
            raise
        except Exception as error:  # ONNX Runtime has a class for every status, all bare Exception
            words = plain(str(error)) or type(error).__name__
            raise BundleError(
                f"{self.bundle.file(name)} does not run on {self._running.backend} "
                f"({words:.300}): check the bundle with `tfanet parity`, or export it again"
            ) from error
        return dict(zip(self._given[name], values, strict=True))


def _library(choice: str | Path | None) -> Path | None:
    if choice is None:
        return None
    if choice == "auto":
        try:
            return ort_library_path()
        except MissingDependencyError:
            return None
    path = Path(choice)
    if not path.is_file():
        raise MissingDependencyError(f"the operator library {path} does not exist: check its path")
    return path.resolve()


def _score(values: np.ndarray, mask: np.ndarray, kind: str) -> float:
    """Mean probability of a mask's pixels; `values` are logits or probabilities."""
    inside = values[mask]
    if not inside.size:
        return 0.0
    if kind == "logit":
        # In place: of 64 megapixels each step would take 256 MB.
        np.negative(inside, out=inside)
        np.exp(inside, out=inside)
        inside += 1
        np.divide(1, inside, out=inside)
    return float(np.mean(inside))
