"""Reads the next items of a source in threads while the current one is encoded."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence

from data_pipelines.sources import Item, Source

# A read from a bucket takes tens of milliseconds, so many run at once.
_REMOTE_THREADS = 16

Read = Callable[[], bytes]


def read_ahead(
    source: Source, items: Sequence[Item], is_needed: Callable[[Item], bool]
) -> Iterator[tuple[Item, Read]]:
    """Yields every item, in order, with a function that returns its bytes or raises its error.

    A few of the needed items are read in advance, in threads; other items are read only when their
    function is called.
    """
    threads = _threads(source, items)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    window: collections.deque[tuple[Item, Read]] = collections.deque()
    finished = False
    try:
        for item in items:
            read: Read = functools.partial(source.read, item.locator)
            window.append((item, pool.submit(read).result if is_needed(item) else read))
            if len(window) > 2 * threads:
                yield window.popleft()
        while window:
            yield window.popleft()
        finished = True
    finally:
        pool.shutdown(cancel_futures=not finished)  # the last reads may be asked for later


def _threads(source: Source, items: Sequence[Item]) -> int:
    random_access = all(source.unit(item) == item.key for item in items)
    return _REMOTE_THREADS if random_access and "://" in source.spec else 1
