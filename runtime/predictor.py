"""`Predictor`: a bundle, a picture and a sentence in; a mask at the picture's own size out."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from tfanet.errors import InputError, MissingDependencyError, TfanetError, plain
from tfanet.plugins.libraries import ort_library_path
from tfanet.runtime.backends.choose import Options, open_graphs
from tfanet.runtime.backends.engine import EngineGraph
from tfanet.runtime.backends.session import Shapes, check_interface
from tfanet.runtime.bundle.graphs import IMAGE, TEXT, image_feed
from tfanet.runtime.bundle.read import FILES, Bundle, BundleError
from tfanet.runtime.preprocess import image_to_tensor, load_image, logits_to_mask
from tfanet.runtime.tokenizer import TextTokenizer, check_text, listed

__all__ = ["Prediction", "Predictor", "Sentence"]

BATCH = 4  # sentences that run together: a larger batch is no faster and takes more memory
Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Sentence:
    """An encoded sentence, usable on any number of pictures.

    Attributes:
        words: (1, T, L) float32. sentence: (1, T) float32. mask: (1, L) float32.
    """

    words: np.ndarray
    sentence: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a sentence means in a picture.

    Attributes:
        mask: (H, W) bool, at the picture's own size.
        score: mean probability of the mask's pixels, 0 to 1; 0 where the mask is empty.
        logits: (h, w) float32 at the model's size; probability = sigmoid(logit).
        timings: milliseconds of preprocess, text (near 0 when cached), image, postprocess, total.
    """

    mask: np.ndarray
    score: float
    logits: np.ndarray
    timings: dict[str, float]


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
        manifest = self.bundle.manifest
        self._tokenizer = TextTokenizer(
            self.bundle.file("tokenizer.json"),
            manifest.text["length"],
            self.bundle.read("tokenizer.json"),
        )
        self._library = _library(op_library)
        options = Options(threads, device, self._library, host_code)
        self._running = open_graphs(self.bundle, backend, options)
        self.bundle.check_unread()
        self._text, self._image = self._running.text, self._running.image
        self._check()
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
            "model": self.bundle.manifest.preset,
            "image_size": list(self.bundle.manifest.preprocessing["size"]),
            "text_length": self.bundle.manifest.text["length"],
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
        words, sentence = self._call(TEXT, {"token_ids": ids})
        encoded = Sentence(words, sentence, mask)
        for array in (words, sentence, mask):
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
        expected = (3, *self.bundle.manifest.preprocessing["size"])
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1:] != expected or shape[0] < 1:
            raise InputError(f"the image has shape {shape}, expected {('batch', *expected)}")
        if isinstance(image, np.ndarray):
            if image.dtype != np.float32:
                raise InputError(f"the image is {image.dtype}, expected float32")
            if not np.isfinite(image).all():
                raise InputError("the image holds inf or NaN: a mask of it would mean nothing")
        return self._run(image, [sentence] * shape[0])

    def preprocess(self, image: Picture) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture as (3, h, w) float32 for `predict_tensors`, and its own size (H, W)."""
        picture = load_image(image)
        facts = self.bundle.manifest.preprocessing
        size, mean, std = (tuple(facts[key]) for key in ("size", "mean", "std"))
        return image_to_tensor(picture, size, mean, std), (picture.height, picture.width)

    def close(self) -> None:
        """Give back what is held beyond Python's memory: on a GPU, contexts and buffers.

        Call it when nothing runs. TensorRT-RTX then also keeps what it compiled for the next start.
        """
        self._running.close()

    def _check(self) -> None:
        """That the graphs and the tokenizer are what the manifest says."""
        manifest, tokenizer = self.bundle.manifest, self._tokenizer
        for name in ("sos_id", "eos_id", "pad_id"):
            said, found = manifest.text[name], getattr(tokenizer, name)
            if said != found:
                raise BundleError(
                    f"{self.bundle.path}: the tokenizer's {name} is {found}, the manifest says "
                    f"{said}: export the model again"
                )
        length, size = tokenizer.length, manifest.preprocessing["size"]
        features: Shapes = {"word_features": (None, length), "sentence_feature": (None,)}
        check_interface(self._text, self.bundle.file(TEXT), {"token_ids": (length,)}, features)
        check_interface(
            self._image,
            self.bundle.file(IMAGE),
            {"image": (3, *size), **features, "word_mask": (length,)},
            {"mask_logit": (1, *size)},
        )

    def _predict(self, image: Picture, texts: list[Any]) -> list[Prediction]:
        if not texts:
            raise InputError("the list of sentences is empty: pass one or more")
        started = time.perf_counter()
        tensor, size = self.preprocess(image)
        prepared = time.perf_counter()
        sentences = [self.encode_text(text) for text in texts]
        encoded = time.perf_counter()
        logits: list[np.ndarray] = []
        batch = min(BATCH, self._running.batches[1])
        for start in range(0, len(texts), batch):
            part = sentences[start : start + batch]
            images = np.broadcast_to(tensor, (len(part), *tensor.shape))
            logits.extend(self._run(np.ascontiguousarray(images), part)[:, 0])
        ran = time.perf_counter()
        threshold = self.bundle.manifest.threshold
        results = []
        for plane in logits:
            mask, resized = logits_to_mask(plane, size, threshold)
            results.append((mask, _score(resized, mask), plane))
        done = time.perf_counter()
        timings = {
            "preprocess": prepared - started,
            "text": encoded - prepared,
            "image": ran - encoded,
            "postprocess": done - ran,
            "total": done - started,
        }
        milliseconds = {name: 1e3 * value for name, value in timings.items()}
        return [Prediction(*result, timings=milliseconds) for result in results]

    def _run(self, image: Any, sentences: list[Sentence]) -> np.ndarray:
        def stacked(name: str) -> np.ndarray:
            parts = [getattr(sentence, name) for sentence in sentences]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        feed = image_feed(image, map(stacked, ("words", "sentence")), stacked("mask"))
        logits = self._call(IMAGE, feed)[0]
        expected = (len(sentences), 1, *self.bundle.manifest.preprocessing["size"])
        if logits.shape != expected or not np.issubdtype(logits.dtype, np.floating):
            raise BundleError(
                f"{self.bundle.file('image.onnx')} gives {logits.dtype} {logits.shape}, the "
                f"manifest says floats {expected}: export the model again"
            )
        return logits

    def _call(self, name: str, feed: dict[str, Any]) -> list[np.ndarray]:
        graph = self._text if name == TEXT else self._image
        try:
            return graph.run(None, feed)
        except TfanetError:
            raise
        except Exception as error:  # ONNX Runtime has a class for every status, all bare Exception
            words = plain(str(error)) or type(error).__name__
            raise BundleError(
                f"{self.bundle.file(name)} does not run on {self._running.backend} "
                f"({words:.300}): check the bundle with `tfanet parity`, or export it again"
            ) from error


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


def _score(logits: np.ndarray, mask: np.ndarray) -> float:
    inside = logits[mask]
    if not inside.size:
        return 0.0
    # In place: of 64 megapixels each step would take 256 MB.
    np.negative(inside, out=inside)
    np.exp(inside, out=inside)
    inside += 1
    return float(np.mean(np.divide(1, inside, out=inside)))
