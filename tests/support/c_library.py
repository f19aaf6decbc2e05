"""The C library through ctypes, with arrays in and out."""

from __future__ import annotations

import ctypes
import os
from ctypes import (  # fmt: skip
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_void_p,
)
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import tfanet  # noqa: F401  (switches telemetry off before onnxruntime is imported)

import onnxruntime

STATUS = {
    0: "OK", -1: "INVALID_ARGUMENT", -2: "BAD_BUNDLE", -3: "BAD_IMAGE", -4: "BAD_TEXT",
    -5: "MISSING_DEPENDENCY", -6: "OUT_OF_MEMORY", -7: "BUSY", -8: "CLOSED", -9: "FAILED",
}  # fmt: skip
FORMATS = {"RGB": 1, "BGR": 2, "RGBA": 3, "BGRA": 4, "GREY": 5}


def ort_library() -> Path:
    """The library inside the Python package of ONNX Runtime."""
    return next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


class Image(Structure):
    _fields_ = [
        ("size", c_size_t), ("pixels", c_void_p), ("width", c_int32), ("height", c_int32),
        ("stride", c_int64), ("format", c_int),
    ]  # fmt: skip


class Options(Structure):
    _fields_ = [
        ("size", c_size_t), ("backend", c_char_p), ("threads", c_int32), ("cache", c_int32),
        ("onnxruntime", c_char_p), ("op_library", c_char_p), ("device", c_int32),
        ("tensorrt", c_char_p), ("plugin_library", c_char_p), ("host_code", c_char_p),
        ("digest", c_char_p),
    ]  # fmt: skip


class Info(Structure):
    _fields_ = [
        ("size", c_size_t), ("backend", c_char_p), ("backend_version", c_char_p),
        ("op_library", c_char_p), ("bundle", c_char_p), ("model", c_char_p),
        ("image_width", c_int32), ("image_height", c_int32), ("text_length", c_int32),
        ("threshold", c_float), ("dynamic_batch", c_int32), ("engine", c_char_p),
        ("device", c_char_p), ("passed_over", c_char_p), ("min_batch", c_int32),
        ("max_batch", c_int32), ("digest", c_char_p), ("int8", c_char_p),
        ("logits_width", c_int32), ("logits_height", c_int32), ("family", c_char_p),
    ]  # fmt: skip


class Result(Structure):
    _fields_ = [
        ("size", c_size_t), ("width", c_int32), ("height", c_int32), ("mask", POINTER(c_uint8)),
        ("score", c_float), ("logits_width", c_int32), ("logits_height", c_int32),
        ("logits", POINTER(c_float)), ("preprocess_ms", c_double), ("text_ms", c_double),
        ("image_ms", c_double), ("postprocess_ms", c_double), ("total_ms", c_double),
        ("no_target", c_float), ("instance_count", c_int32),
    ]  # fmt: skip


class Instance(Structure):
    _fields_ = [
        ("size", c_size_t), ("mask", POINTER(c_uint8)), ("relevance", c_float),
        ("alignment", POINTER(c_float)), ("alignment_length", c_size_t), ("word_count", c_int32),
    ]  # fmt: skip


class Word(Structure):
    _fields_ = [
        ("size", c_size_t), ("text", c_void_p), ("bytes", c_size_t), ("share", c_float),
    ]  # fmt: skip


CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_char_p)
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "version": (c_char_p, []),
    "status_name": (c_char_p, [c_int]),
    "error": (c_char_p, [c_void_p]),
    "open": (c_int, [c_char_p, c_void_p, POINTER(c_void_p)]),
    "close": (c_int, [c_void_p]),
    "get_info": (c_int, [c_void_p, c_void_p]),
    "tokenize": (c_int, [c_void_p, c_char_p, c_size_t, c_void_p, c_void_p, c_size_t, c_void_p]),
    "encode": (c_int, [c_void_p, c_char_p, c_size_t, c_void_p]),
    "encode_tokens": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p]),
    "sentence_dropped": (c_size_t, [c_void_p]),
    "sentence_free": (None, [c_void_p]),
    "predict": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "predict_text": (c_int, [c_void_p, c_void_p, c_char_p, c_size_t, c_void_p]),
    "predict_batch": (c_int, [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p]),
    "predict_async": (c_int, [c_void_p, c_void_p, c_void_p, CALLBACK, c_void_p]),
    "preprocess": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t]),
    "predict_tensors": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t]),
    "prediction_get": (c_int, [c_void_p, c_void_p]),
    "prediction_instance": (c_int, [c_void_p, c_size_t, c_void_p]),
    "prediction_word": (c_int, [c_void_p, c_size_t, c_size_t, c_void_p]),
    "prediction_free": (None, [c_void_p]),
}


class NativeError(Exception):
    """A status of the library other than OK, and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = STATUS[status]


def make_image(pixels: np.ndarray, kind: str, stride: int = 0) -> Image:
    """A view of an array (H, W) or (H, W, C); the array must outlive it."""
    height, width = pixels.shape[:2]
    return Image(ctypes.sizeof(Image), pixels.ctypes.data, width, height, stride, FORMATS[kind])


class Runtime:
    """One open bundle, with arrays in and out."""

    def __init__(self, api: SimpleNamespace, path: Path | str, **options: Any) -> None:
        self.api, self.handle = api, c_void_p()
        options.setdefault("onnxruntime", str(ort_library()))
        options.setdefault("threads", 1)
        encoded = {k: os.fsencode(v) if isinstance(v, str) else v for k, v in options.items()}
        self.options = Options(size=ctypes.sizeof(Options), **encoded)
        status = api.open(os.fsencode(path), byref(self.options), byref(self.handle))
        try:
            self.check(status)
        except NativeError:
            self.close()
            raise

    def check(self, status: int) -> None:
        if status:
            raise NativeError(status, self.api.error(self.handle).decode())

    def close(self) -> None:
        self.check(self.api.close(self.handle))
        self.handle = c_void_p()

    def info(self) -> Info:
        info = Info(size=ctypes.sizeof(Info))
        self.check(self.api.get_info(self.handle, byref(info)))
        return info

    def tokenize(self, text: bytes) -> tuple[np.ndarray, np.ndarray, int]:
        length, count = self.info().text_length, c_size_t()
        ids, mask = np.zeros(length, np.int64), np.zeros(length, np.float32)
        self.check(
            self.api.tokenize(
                self.handle, text, len(text), ids.ctypes.data, mask.ctypes.data, length,
                byref(count),
            )
        )  # fmt: skip
        return ids, mask, count.value

    def encode(self, text: str | bytes) -> c_void_p:
        data, out = text.encode() if isinstance(text, str) else text, c_void_p()
        self.check(self.api.encode(self.handle, data, len(data), byref(out)))
        return out

    def predict(self, image: Image, text: str | c_void_p) -> SimpleNamespace:
        out = c_void_p()
        if isinstance(text, str):
            data = text.encode()
            status = self.api.predict_text(self.handle, byref(image), data, len(data), byref(out))
        else:
            status = self.api.predict(self.handle, byref(image), text, byref(out))
        self.check(status)
        return self.take(out)

    def take(self, prediction: c_void_p | int | None) -> SimpleNamespace:
        """The contents of a prediction, which is freed."""
        result = Result(size=ctypes.sizeof(Result))
        assert self.api.prediction_get(prediction, byref(result)) == 0
        mask = np.ctypeslib.as_array(result.mask, (result.height, result.width)).copy()
        shape = (result.logits_height, result.logits_width)
        logits = np.ctypeslib.as_array(result.logits, shape).copy()
        instances = None
        if result.instance_count >= 0:
            indices = range(result.instance_count)
            instances = [self._instance(prediction, index, mask.shape) for index in indices]
        end, instance = max(0, result.instance_count), Instance(size=ctypes.sizeof(Instance))
        assert self.api.prediction_instance(prediction, end, byref(instance)) == -1
        assert self.api.prediction_word(prediction, end, 0, byref(Word(ctypes.sizeof(Word)))) == -1
        self.api.prediction_free(prediction)
        return SimpleNamespace(
            mask=mask, logits=logits, score=result.score, result=result, instances=instances,
            no_target=None if result.no_target < 0 else result.no_target,
        )  # fmt: skip

    def _instance(
        self, prediction: c_void_p | int | None, index: int, shape: tuple[int, ...]
    ) -> SimpleNamespace:
        one, alignment, words = Instance(size=ctypes.sizeof(Instance)), None, None
        assert self.api.prediction_instance(prediction, index, byref(one)) == 0
        if one.alignment:
            alignment = np.ctypeslib.as_array(one.alignment, (one.alignment_length,)).copy()
        mask = np.ctypeslib.as_array(one.mask, shape).copy()
        word = Word(size=ctypes.sizeof(Word))
        if one.word_count >= 0:
            words = []
            for place in range(one.word_count):
                assert self.api.prediction_word(prediction, index, place, byref(word)) == 0
                text = ctypes.string_at(word.text, word.bytes + 1)
                assert text[-1] == 0
                words.append((text[:-1].decode(), word.share))
        beyond = max(0, one.word_count)
        assert self.api.prediction_word(prediction, index, beyond, byref(word)) == -1
        assert self.api.prediction_word(prediction, index, 0, None) == -1
        return SimpleNamespace(mask=mask, relevance=one.relevance, alignment=alignment, words=words)

    def preprocess(self, image: Image) -> np.ndarray:
        info = self.info()
        tensor = np.zeros((3, info.image_height, info.image_width), np.float32)
        self.check(self.api.preprocess(self.handle, byref(image), tensor.ctypes.data, tensor.size))
        return tensor


def load_api(path: Path) -> SimpleNamespace:
    """The functions of tfanet.h, without their prefix."""
    library = ctypes.CDLL(str(path))
    api = SimpleNamespace()
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, f"tfanet_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(api, name, function)
    return api
