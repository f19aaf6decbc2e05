"""Training batches as a pure function of (seed, position): resuming needs no sampler state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from tfanet.data.masks import mask_to_size
from tfanet.data.refer import ReferDataset
from tfanet.runtime.bundle.contract import Preprocessing
from tfanet.runtime.picture import load_image
from tfanet.runtime.preprocess import picture_to_tensor
from tfanet.runtime.tokenizer import TextTokenizer

__all__ = ["make_loader", "together"]

_Item = dict[str, torch.Tensor]


class _Stream(Dataset[_Item]):
    """Item p of an endless stream: epoch p // n, drawn in that epoch's own random order.

    An item is a ref with a sentence drawn at random, or with `all_sentences` one (ref, sentence).
    `by_picture` shuffles pictures and puts the items of one side by side, so that a batch shows
    the same picture with several sentences and only the words tell its targets apart.
    """

    def __init__(
        self,
        source: ReferDataset,
        preprocessing: Preprocessing,
        tokenizer: TextTokenizer,
        seed: int,
        all_sentences: bool,
        by_picture: bool,
    ) -> None:
        self.source, self.preprocessing, self.tokenizer = source, preprocessing, tokenizer
        self.seed = seed
        self.all_sentences = all_sentences
        self.count = len(source) if all_sentences else len(source.refs)
        refs = (s.ref for s in source) if all_sentences else source.refs
        names = [ref.image_path.name for ref in refs] if by_picture else []
        # The number of each item's picture, where items are kept together.
        self._pictures = np.unique(names, return_inverse=True)[1] if by_picture else None
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def _draw(self, position: int) -> tuple[int, int]:
        """(epoch, index in it) of a position."""
        epoch, offset = divmod(position, self.count)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(self.count)
            if self._pictures is not None:
                rank = rng.permutation(int(self._pictures.max()) + 1)
                order = order[np.argsort(rank[self._pictures[order]], kind="stable")]
            self._order = (epoch, order)
        return epoch, int(self._order[1][offset])

    def __getitem__(self, position: int) -> _Item:
        epoch, index = self._draw(position)
        if self.all_sentences:
            sample = self.source[index]
            ref, sentence = sample.ref, sample.sentence
        else:
            ref = self.source.refs[index]
            rng = np.random.default_rng([self.seed, epoch, index])
            sentence = ref.sentences[int(rng.integers(len(ref.sentences)))]
        ids, words = self.tokenizer([sentence])
        image = picture_to_tensor(load_image(ref.image_path), self.preprocessing)
        instances = [mask_to_size(mask, self.preprocessing) for mask in ref.masks()]
        kept = np.array([mask for mask in instances if mask.any()], dtype=np.float32)
        kept = kept.reshape(-1, *self.preprocessing.size)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "token_ids": torch.from_numpy(ids[0]),
            "word_mask": torch.from_numpy(words[0]),
            "target": torch.from_numpy(kept.max(0, keepdims=True, initial=0)),
            "instances": torch.from_numpy(kept),
            "no_target": torch.tensor(ref.no_target),
        }


def together(items: list[_Item], lists: tuple[str, ...] = ("instances",)) -> dict[str, Any]:
    """A batch of items: what they have different numbers of, `lists` by name, stays a list."""
    kept = {name: [item.pop(name) for item in items] for name in lists}
    return {**default_collate(items), **kept}


class _Positions:
    """This process's share of every global batch, from `first_step` to `steps`."""

    def __init__(self, batch: int, first_step: int, steps: int, rank: int, processes: int) -> None:
        self.batch, self.first_step, self.steps = batch, first_step, steps
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            start = (step * self.processes + self.rank) * self.batch
            yield list(range(start, start + self.batch))

    def __len__(self) -> int:
        return self.steps - self.first_step


def make_loader(
    source: ReferDataset,
    *,
    preprocessing: Preprocessing,
    tokenizer: TextTokenizer,
    batch: int,
    first_step: int,
    steps: int,
    seed: int,
    all_sentences: bool = False,
    by_picture: bool = False,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader[dict[str, Any]]:
    """Loader of the batches `first_step` to `steps` - 1 of process `rank` out of `processes`.

    Each batch: image (B, 3, H, W) float32, token_ids (B, L) int64, word_mask (B, L) float32, target
    (B, 1, H, W) float32 in {0, 1}, which is the union of instances, a list of (n, H, W), one for
    each annotation that has a pixel left at this size, and no_target (B,) bool.
    """
    stream = _Stream(source, preprocessing, tokenizer, seed, all_sentences, by_picture)
    positions = _Positions(batch, first_step, steps, rank, processes)
    return DataLoader(stream, batch_sampler=positions, num_workers=workers, collate_fn=together)
