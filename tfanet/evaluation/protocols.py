"""How each family's authors evaluate: a figure can be compared with theirs by this way alone."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AT_MODEL_SIZE", "AT_PICTURE_SIZE", "PROTOCOLS", "Protocol"]

# The two tables of a report.
AT_PICTURE_SIZE, AT_MODEL_SIZE = "metrics", "metrics_at_model_size"


@dataclass(frozen=True)
class Protocol:
    """One family's way of evaluating.

    Attributes:
        name: for people. table: of the report, that follows it. says: what is done, in a line.
        strictly: P@X counts samples with an IoU above X; otherwise from X on.
    """

    name: str
    table: str
    says: str
    strictly: bool = False


PROTOCOLS = {
    "tfanet": Protocol(
        "TFANet's", AT_PICTURE_SIZE, "masks of the picture's own size; P@X counts IoU >= X"
    ),
    # By the official test.py, at 480x480.
    "crossvlt": Protocol(
        "CrossVLT's",
        AT_MODEL_SIZE,
        "masks of the model's size, true ones resized to it by nearest neighbour; P@X counts IoU "
        ">= X",
    ),
    # What its authors call overall IoU is the mean over samples, here mIoU.
    "asda": Protocol(
        "ASDA's",
        AT_PICTURE_SIZE,
        "probabilities resized to the picture's own size, means over samples; P@X counts IoU > X",
        strictly=True,
    ),
    "instalign": Protocol(
        "InstAlign's",
        AT_MODEL_SIZE,
        "masks of the model's size, true ones resized to it by nearest neighbour; the head for no "
        "target says whether anything is meant; P@X counts IoU >= X",
    ),
}
