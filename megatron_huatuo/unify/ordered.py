"""Concurrent work with results in the order of the input.

Invariant: at most `max_in_flight` items are between input and output, so memory is flat and order needs no sorting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def ordered_map(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], max_in_flight: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Yield (item, await function(item)) in the order of `items`.

    The first exception ends the run: tasks in flight are cancelled and awaited before it is raised.
    """
    waiting: deque[tuple[Item, asyncio.Task[Result]]] = deque()

    async def run(item: Item) -> Result:
        return await function(item)

    try:
        for item in items:
            waiting.append((item, asyncio.create_task(run(item))))
            if len(waiting) >= max_in_flight:
                first, task = waiting.popleft()
                yield first, await task
        while waiting:
            first, task = waiting.popleft()
            yield first, await task
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
