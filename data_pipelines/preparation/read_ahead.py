"""Reading the next images while the present one is encoded."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator

from data_pipelines.sources import Item, Source

# A read from a bucket takes tens of milliseconds, from a disk a fraction of one.
_REMOTE_THREADS, _LOCAL_THREADS = 16, 1

Read = Callable[[], bytes]


def read_ahead(
    source: Source, items: Iterable[Item], wanted: Callable[[Item], bool]
) -> Iterator[tuple[Item, Read]]:
    """Yields every item, in order, with a function that gives its bytes or raises its error.

    Of the items that are wanted a few are read before their turn, in threads; the others are not
    read unless their function is called.
    """
    threads = _REMOTE_THREADS if "://" in source.spec else _LOCAL_THREADS
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
