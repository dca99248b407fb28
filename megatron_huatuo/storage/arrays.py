"""Arrays on disk, mapped instead of read."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.errors import IntegrityError


def map_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array of a `.npy` file, read where it is touched. Raises IntegrityError when the file is incomplete or not an array."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise IntegrityError(f"file is missing: {path}. Restore it, or run its stage again.") from None
    except Exception as error:  # numpy parses the header as Python and passes on whatever that raises
        raise IntegrityError(f"file is incomplete or not an array: {path} ({error}). Restore or rebuild it.") from error
    return array
