"""`Predictor`: a bundle, a picture and a sentence in; a mask at the picture's own size out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from tfanet.errors import InputError, plain, shown
from tfanet.runtime.ahead import ahead
from tfanet.runtime.answers import Asked, Prepared, answers, prepare
from tfanet.runtime.picture import ImageError, Picture
from tfanet.runtime.postprocess import INSTANCE
from tfanet.runtime.prediction import Prediction, Sentence
from tfanet.runtime.running import RunningBundle
from tfanet.runtime.tokenizer import check_text, listed
from tfanet.runtime.video import video_frames

__all__ = ["Predictor"]

Text = str | Sentence
OnError = Callable[[int, ImageError], object]


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
        self._options: dict[str, Any] = {
            "backend": backend,
            "threads": threads,
            "device": device,
            "op_library": op_library,
            "cache_size": cache_size,
            "host_code": tuple(host_code),
        }
        self._running = RunningBundle(bundle, digest=digest, **self._options)
        self.bundle = self._running.bundle

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> Self:
        """A predictor by name.

        Args:
            name: of a bundle that is shipped with tfanet, such as "tfanet-tiny"; a folder; or a
                repository of the Hugging Face hub, as owner/name, which is downloaded into the
                hub's cache where it is not there yet.
            revision: branch, tag or commit of the repository. cache_dir: the cache's folder.
                local_files_only: take what is in the cache, without the network. token: for private
                repositories; None takes what `hf auth login` left.
            options: of `Predictor`; `digest` checks what was downloaded.

        Raises:
            InputError: where there is no such bundle, naming one with a similar name, or the
                repository is none of tfanet's. MissingDependencyError: where the hub cannot be
                reached. Others as `Predictor`.
        """
        from tfanet.runtime.hub import find_bundle

        found = find_bundle(
            name,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(found, **options)

    def info(self) -> dict[str, Any]:
        """The backend, why better ones were passed over, what runs the scan and INT8, the model."""
        return self._running.info()

    # A str is a Sequence of str, too: the first form that fits is meant.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, image: Picture, text: Text, *, threshold: float | None = None
    ) -> Prediction: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        image: Picture,
        text: Sequence[Text],
        *,
        threshold: float | None = None,
    ) -> list[Prediction]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        image: Sequence[Picture],
        text: Text,
        *,
        threshold: float | None = None,
    ) -> list[Prediction]: ...
    @overload
    def __call__(
        self,
        image: Sequence[Picture],
        text: Sequence[Text],
        *,
        threshold: float | None = None,
    ) -> list[list[Prediction]]: ...
    def __call__(self, image: Any, text: Any, *, threshold: float | None = None) -> Any:
        """Segment what `text` names in `image`.

        Args:
            image: a picture of any size, as `load_image` takes it: a path, bytes, an open file, a
                PIL image, an array or a tensor; or a list or tuple of them.
            text: a sentence, as text or as `encode_text` gives it, or a list or tuple of them.
            threshold: how likely a pixel of a mask is to be meant at least, between 0 and 1; None
                takes the bundle's own, in most 0.5.

        Each picture is prepared once and each sentence encoded once; up to 4 pairs of them run
        together where the bundle's batch is dynamic.

        Returns:
            A Prediction; for several sentences or several pictures a list of them in that order;
            for both, of each picture the list of its sentences' predictions.

        Raises:
            ImageError, TextError: naming what is wrong with a picture or a sentence.
            InputError: for an empty list, a threshold that is none, or another model's sentence.
            BundleError: where a graph fails in its runtime.
        """
        asked = self._asked(text, threshold)
        if isinstance(image, str | bytes | bytearray) or not isinstance(image, Sequence):
            found = list(
                answers(self._running, [prepare(image, self.bundle.manifest.preprocessing)], asked)
            )
            return found[0] if _single(text) else found
        if not image:
            raise InputError("the list of pictures is empty: pass one or more")
        found = list(answers(self._running, ahead(self._prepared(image, "picture", None)), asked))
        if _single(text):
            return found
        count = len(asked.sentences)
        return [found[start : start + count] for start in range(0, len(found), count)]

    @overload
    def stream(  # type: ignore[overload-overlap]
        self,
        frames: str | Path | Iterable[Picture],
        text: Text,
        *,
        threshold: float | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]: ...
    @overload
    def stream(
        self,
        frames: str | Path | Iterable[Picture],
        text: Sequence[Text],
        *,
        threshold: float | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[list[Prediction]]: ...
    def stream(
        self,
        frames: Any,
        text: Any,
        *,
        threshold: float | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Any]:
        """Segment what `text` names in each frame of a video, in order.

        The next frame is decoded and prepared while one runs; no more than these two are held, so
        a video may be of any length, and a camera's never end.

        Args:
            frames: the path of a video (needs `pip install 'tfanet[video]'`), or anything that
                gives pictures one after the other.
            text, threshold: as of a call.
            on_error: called with the number of a frame that cannot be used, from 0, and its error;
                the frame is left out. Without it, the error ends the stream. It is called from
                another thread.

        Returns:
            An iterator of what a call gives for each frame.

        Raises:
            ImageError: naming the video or the frame. Others as a call's. What concerns no frame is
                raised at once, the rest when the frame is due.
        """
        asked = self._asked(text, threshold)
        if isinstance(frames, str | Path):
            frames = video_frames(frames)
        elif isinstance(frames, bytes) or not isinstance(frames, Iterable):
            raise InputError(
                f"the frames are a {type(frames).__name__}: give the path of a video, or a list or "
                "generator of pictures"
            )
        return self._stream(frames, asked, _single(text), on_error)

    def encode_text(self, text: str) -> Sentence:
        """The features of a sentence, read-only, from the cache where they are.

        A sentence that is too long is cut, with a warning when it is encoded.
        """
        return self._running.encode(text)

    def tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (1, L) int64 and word mask (1, L) float32 of a sentence."""
        return self._running.tokenizer(check_text(text))

    def predict_tensors(self, image: Any, sentence: Sentence) -> np.ndarray:
        """Logits (B, 1, h, w) of a preprocessed image (B, 3, h, w), as `image_to_tensor` makes it.

        The sentence is used for every image of the batch, as over the frames of a video. An engine
        also takes an image in the memory of its GPU: any array with DLPack or
        `__cuda_array_interface__`, such as a torch or CuPy one; its values are not looked at.

        Raises:
            InputError: for another shape or type, and for inf and NaN in a NumPy array.
        """
        if not isinstance(image, np.ndarray) and not self._running.takes_device_arrays:
            raise InputError(
                f"the image is a {type(image).__name__}: {self._running.name} takes NumPy arrays"
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
        return self._running.run(image, [sentence] * shape[0])["mask"]

    def preprocess(self, image: Picture) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture as (3, h, w) float32 for `predict_tensors`, and its own size (H, W)."""
        tensor, picture, _ = prepare(image, self.bundle.manifest.preprocessing)
        return tensor, (picture.height, picture.width)

    def close(self) -> None:
        """Give back what is held beyond Python's memory: on a GPU, contexts and buffers.

        Call it when nothing runs; `with Predictor(...) as predictor:` does at the end. Afterwards
        it runs nothing more. TensorRT-RTX also keeps what it compiled for the next start.
        """
        self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        model = self.bundle.manifest.preset or self.bundle.manifest.family
        what = f"{plain(model)} on {plain(self._running.name)}"
        return f"Predictor({str(self.bundle.path)!r}, {what})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled is how it was opened: the same bundle is opened again where it is unpickled."""
        opener = partial(type(self), self.bundle.path, digest=self.bundle.digest, **self._options)
        return opener, ()

    def _asked(self, text: Any, threshold: float | None) -> Asked:
        texts = [text] if isinstance(text, Sentence) else listed(text)
        if not texts:
            raise InputError("the list of sentences is empty: pass one or more")
        mask, instance = self.bundle.manifest.postprocessing, INSTANCE
        if threshold is not None:
            if isinstance(threshold, bool) or not isinstance(threshold, int | float):
                raise InputError(f"threshold is {shown(threshold)}: give a number between 0 and 1")
            if not 0 < threshold < 1:
                raise InputError(f"threshold is {threshold}: give a probability between 0 and 1")
            mask, instance = mask.above(threshold), instance.above(threshold)
        started = time.perf_counter()
        sentences = [self._sentence(one) for one in texts]
        return Asked(sentences, mask, instance, 1e3 * (time.perf_counter() - started))

    def _sentence(self, text: Any) -> Sentence:
        if not isinstance(text, Sentence):
            return self.encode_text(text)
        for name, shape in self._running.interface.text_outputs.items():
            if name not in text.features or text.features[name].shape != (1, *shape):
                raise InputError(
                    f"the sentence {shown(text.text)} was encoded by another model: encode it with "
                    "this predictor's `encode_text`"
                )
        return text

    def _prepared(
        self, sources: Iterable[Any], name: str, on_error: OnError | None
    ) -> Generator[Prepared, None, None]:
        """Pictures one after the other; an error begins with the name and number of its picture."""
        for number, source in enumerate(sources):
            try:
                prepared = prepare(source, self.bundle.manifest.preprocessing)
            except ImageError as error:
                told = ImageError(f"{name} {number}: {error}")
                told.__cause__ = error
                if on_error is None:
                    raise told from error
                on_error(number, told)
                continue
            yield prepared

    def _stream(
        self, frames: Iterable[Any], asked: Asked, single: bool, on_error: OnError | None
    ) -> Iterator[Any]:
        for picture in ahead(self._prepared(frames, "frame", on_error)):
            found = list(answers(self._running, [picture], asked))
            yield found[0] if single else found


def _single(text: Any) -> bool:
    """Whether one sentence was asked for, and not a list."""
    return isinstance(text, str | bytes | Sentence)
