"""The next item of a stream is made while the one before it is used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

__all__ = ["ahead"]

Item = TypeVar("Item")
_END: Any = object()


def ahead(source: Generator[Item, None, None]) -> Iterator[Item]:
    """The items of a generator, in order, each made in another thread before it is due.

    Two items are held at most. An error of the generator is raised where its item would come. When
    this iterator ends or is closed, the generator is closed too, after the item in the making.
    """
    with closing(source), ThreadPoolExecutor(1, "tfanet-ahead") as thread:
        waiting = thread.submit(next, source, _END)
        while (item := waiting.result()) is not _END:
            waiting = thread.submit(next, source, _END)
            yield item
