"""`RunningBundle`: a bundle's graphs on a backend; sentences and tensors in, arrays by role out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfanet.errors import InputError, MissingDependencyError, TfanetError, plain
from tfanet.plugins.libraries import ort_library_path
from tfanet.runtime.backends.choose import Options, open_graphs
from tfanet.runtime.backends.engine import EngineGraph
from tfanet.runtime.backends.session import check_interface
from tfanet.runtime.bundle.graphs import IMAGE, TEXT, image_feed, names_of
from tfanet.runtime.bundle.read import FILES, Bundle, BundleError
from tfanet.runtime.prediction import Sentence
from tfanet.runtime.tokenizer import check_text, tokenizer_of

__all__ = ["RunningBundle"]


class RunningBundle:
    """An opened bundle that runs, for any number of threads; arguments are those of `Predictor`."""

    def __init__(
        self,
        path: str | Path,
        *,
        digest: str | None,
        backend: str,
        threads: int | None,
        device: int,
        op_library: str | Path | None,
        cache_size: int,
        host_code: Sequence[str],
    ) -> None:
        if cache_size < 0:
            raise InputError(f"cache_size is {cache_size}: give the number of sentences, 0 or more")
        self.bundle = Bundle.open(path, digest=digest, later=FILES)
        self.tokenizer = tokenizer_of(self.bundle)
        self.interface = self.bundle.manifest.interface
        self._library = _library(op_library)
        options = Options(threads, device, self._library, host_code)
        self._running = open_graphs(self.bundle, backend, options)
        self.bundle.check_unread()
        self._graphs = {TEXT: self._running.text, IMAGE: self._running.image}
        self._check()
        self._given = {name: names_of(graph.get_outputs()) for name, graph in self._graphs.items()}
        self._cache: OrderedDict[str, Sentence] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """Of the engine that runs, or of the backend."""
        return self._running.engine or self._running.backend

    @property
    def largest_batch(self) -> int:
        return self._running.batches[1]

    @property
    def takes_device_arrays(self) -> bool:
        """Whether images may lie in the memory of a GPU."""
        return isinstance(self._graphs[IMAGE], EngineGraph)

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
            "outputs": list(self.interface.image_outputs),
        }

    def encode(self, text: str) -> Sentence:
        """The features of a sentence, read-only, from the cache where they are.

        A sentence that is too long is cut, with a warning when it is encoded.
        """
        text = check_text(text)
        with self._lock:
            known = self._cache.get(text)
            if known is not None:
                self._cache.move_to_end(text)
                return known
        ids, mask = self.tokenizer(text)
        features = self._call(TEXT, {"token_ids": ids})
        encoded = Sentence(features, mask, self.tokenizer.words(text), text)
        for array in (*encoded.features.values(), mask):
            array.flags.writeable = False  # it may serve other threads from the cache
        with self._lock:
            self._cache[text] = encoded
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return encoded

    def run(self, image: Any, sentences: list[Sentence]) -> dict[str, np.ndarray]:
        """The image graph's outputs by role, of a batch."""

        def stacked(parts: list[np.ndarray]) -> np.ndarray:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        features = {
            name: stacked([sentence.features[name] for sentence in sentences])
            for name in self.interface.text_outputs
        }
        mask = stacked([sentence.mask for sentence in sentences])
        feed = image_feed(self.interface.image_inputs, image, features, mask)
        given = self._call(IMAGE, feed)
        found = {}
        for role, (name, shape) in self.interface.image_outputs.items():
            values, expected = given[name], (len(sentences), *shape)
            if values.shape != expected or not np.issubdtype(values.dtype, np.floating):
                raise BundleError(
                    f"{self.bundle.file(IMAGE)} gives {values.dtype} {values.shape} for '{name}', "
                    f"the manifest says floats {expected}: export the model again"
                )
            found[role] = values
        return found

    def close(self) -> None:
        """Give back what is held beyond Python's memory; nothing runs afterwards."""
        if not self._closed:
            self._closed = True
            self._running.close()

    def _check(self) -> None:
        """That the graphs are what the manifest says."""
        says = self.interface
        length = self.bundle.manifest.text.length
        text, image = (self.bundle.file(name) for name in (TEXT, IMAGE))
        check_interface(self._graphs[TEXT], text, {"token_ids": (length,)}, says.text_outputs)
        check_interface(
            self._graphs[IMAGE], image, says.image_inputs, dict(says.image_outputs.values())
        )

    def _call(self, name: str, feed: dict[str, Any]) -> dict[str, np.ndarray]:
        if self._closed:
            raise InputError("the predictor is closed: open the bundle again, with Predictor")
        try:
            values = self._graphs[name].run(None, feed)
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
