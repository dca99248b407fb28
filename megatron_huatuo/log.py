"""Logging and progress bars, both on stderr, so that stdout stays free for results."""

from __future__ import annotations

import datetime
import logging
import sys
import threading
import warnings
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_FORMAT = "%(asctime)s %(levelname)s %(message)s"

# tqdm's own lock is shared with forked processes: one that is killed while it holds the lock would stop all the others.
tqdm.set_lock(threading.RLock())


def get_logger(name: str) -> logging.Logger:
    """Logger below `megatron_huatuo`, whose handler is set up on first use."""
    root = logging.getLogger("megatron_huatuo")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return logging.getLogger(name if name.startswith("megatron_huatuo") else f"megatron_huatuo.{name}")


def now() -> str:
    """Date and time with the zone's offset, to the second, as ISO 8601 writes them."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def silence_known_warnings() -> None:
    """Hide what torch and megatron-core say about absent optional packages and names that they will rename.

    Call it before they are imported. What is absent is said once, in one line, by the run itself.
    """
    for module in ("megatron", "torch"):
        for category in (UserWarning, FutureWarning, DeprecationWarning, SyntaxWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{module}($|\.)")
    # megatron-core 0.19 recommends HybridModel, which 0.16 does not have, at every build of a GPTModel.
    logging.getLogger("megatron.core.models.gpt.gpt_model").addFilter(
        lambda record: "DEPRECATED" not in record.getMessage()
    )


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    description: str,
    unit: str = "it",
    unit_scale: bool = False,
    disable: bool = False,
) -> Any:
    """Progress bar on stderr: live on a terminal, a line every 10 s in a log file. disable: show nothing."""
    interval_s = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit_scale,
        disable=disable,
        mininterval=interval_s,
        maxinterval=max(interval_s, 10.0),
        file=sys.stderr,
        dynamic_ncols=sys.stderr.isatty(),
    )
