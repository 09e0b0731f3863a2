"""Several items on their way at a time: decoding and resizing leave Python's lock to each other. Below all rooms."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = min(32, 2 * (os.cpu_count() or 1))  # items in memory
Place = TypeVar("Place")
Item = TypeVar("Item")


def in_threads(load: Callable[[Place], Item], places: Iterable[Place], at_once: int | None = None) -> Iterator[Item]:
    """What `load` makes of each place, in order, made ahead while the caller works on what it has.

    `at_once`: so many at most are in memory (default: `AT_ONCE`).
    """
    with ThreadPoolExecutor() as pool:
        waiting: deque[Future[Item]] = deque()
        for place in places:
            waiting.append(pool.submit(load, place))
            if len(waiting) >= (at_once or AT_ONCE):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
