"""Run a bundle without PyTorch: NumPy, Pillow, tokenizers and ONNX Runtime.

from tfanet.runtime import Predictor

prediction = Predictor("bundle")("picture.jpg", "the man in red on the left")
prediction.mask  # (H, W) bool
"""

from __future__ import annotations

from tfanet.runtime.bundle import Bundle, BundleError, Manifest
from tfanet.runtime.predictor import Prediction, Predictor, Sentence
from tfanet.runtime.preprocess import ImageError, image_to_tensor, load_image, logits_to_mask
from tfanet.runtime.tokenizer import TextError, TextTokenizer

__all__ = [
    "Bundle",
    "BundleError",
    "ImageError",
    "Manifest",
    "Prediction",
    "Predictor",
    "Sentence",
    "TextError",
    "TextTokenizer",
    "image_to_tensor",
    "load_image",
    "logits_to_mask",
]
