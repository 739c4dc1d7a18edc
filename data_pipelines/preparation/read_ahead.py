"""Reading the next images while the present one is encoded."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence

from data_pipelines.sources import Item, Source

# A read from a bucket takes tens of milliseconds: many at once keep a core busy.
_REMOTE_THREADS = 16

Read = Callable[[], bytes]


def read_ahead(
    source: Source, items: Sequence[Item], wanted: Callable[[Item], bool]
) -> Iterator[tuple[Item, Read]]:
    """Yields every item, in order, with a function that gives its bytes or raises its error.

    Of the items that are wanted a few are read before their turn, in threads; the others are not
    read unless their function is called.
    """
    threads = _threads(source, items)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    window: collections.deque[tuple[Item, Read]] = collections.deque()
    try:
        for item in items:
            read: Read = functools.partial(source.read, item.locator)
            window.append((item, pool.submit(read).result if wanted(item) else read))
            if len(window) > 2 * threads:
                yield window.popleft()
        while window:
            yield window.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _threads(source: Source, items: Sequence[Item]) -> int:
    at_random = all(source.unit(item) == item.key for item in items)
    return _REMOTE_THREADS if at_random and "://" in source.spec else 1
