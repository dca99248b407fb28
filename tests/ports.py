"""Ports for servers that a test starts.

A port that the kernel hands out may be handed to another process between its choice and its use, because every connection and
every `bind` to port 0 takes one of the same range. These are taken from below that range, at random, so that two workers of
pytest do not choose the same.
"""

from __future__ import annotations

import contextlib
import random
import socket

_CHOICE = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """`count` consecutive ports that nothing listens on. Raises: OSError when there are none."""
    for _ in range(1000):
        first = _CHOICE.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as taken:
            for port in range(first, first + count):
                taken.enter_context(socket.create_server(("", port)))
            return list(range(first, first + count))
    raise OSError("no free ports between 20000 and 32000")


def free_port() -> int:
    """One port that nothing listens on."""
    return free_ports(1)[0]
