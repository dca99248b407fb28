"""Arrays that are mapped from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.arrays import map_array


def test_an_array_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(7))
    found = map_array(tmp_path / "a.npy")
    assert isinstance(found, np.memmap) and found.tolist() == list(range(7))


@pytest.mark.parametrize("damage", [b"", b"no array", b"\x93NUMPY\x01\x00\x76\x00{'descr': ((((("])
def test_a_torn_array_is_refused_by_name(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(damage)
    with pytest.raises(IntegrityError, match=r"incomplete or not an array: .*a\.npy"):
        map_array(path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(IntegrityError, match="incomplete or not an array"):
        map_array(tmp_path / "a.npy")


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"file is missing: .*b\.npy"):
        map_array(tmp_path / "b.npy")
