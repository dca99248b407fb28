"""The reader of a blend directory: what it gives, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.blend_files import ORDER_DOCUMENT, ORDER_SOURCE, ROW_START, BlendReader
from megatron_huatuo.storage.manifest import write_manifest

ARRAYS = {
    ORDER_SOURCE: np.array([0, 0, 1, 0, 1], dtype=np.uint8),
    ORDER_DOCUMENT: np.array([7, 3, 0, 1, 2], dtype=np.uint32),
    ROW_START: np.array([0, 3, 5], dtype=np.int64),
}


def _write(directory: Path, **changed: np.ndarray) -> Path:
    """The worked example of docs/blending.md: two rows of three and two documents."""
    directory.mkdir()
    for name, array in ARRAYS.items():
        np.save(directory / name, changed.get(name.removesuffix(".npy"), array))
    sources = [{"name": name, "path_prefix": f"p/{name}", "index": {"bin": name}} for name in ("web", "sft")]
    write_manifest(directory, "blend", {"seq_length": 16, "sources": sources}, list(ARRAYS))
    return directory


def test_rows_hold_their_documents_in_order(tmp_path: Path) -> None:
    blend = BlendReader(_write(tmp_path / "blend"))
    assert len(blend) == 2 and blend.seq_length == 16
    assert [blend.documents_of(row) for row in range(2)] == [[(0, 7), (0, 3), (1, 0)], [(0, 1), (1, 2)]]
    assert (blend.source_names, blend.path_prefixes) == (["web", "sft"], ["p/web", "p/sft"])
    for row in (-1, 2):
        with pytest.raises(IndexError, match=rf"no row {row}: .*blend has 2"):
            blend.documents_of(row)


def test_sha256_follows_order_rows_and_indexes(tmp_path: Path) -> None:
    first = BlendReader(_write(tmp_path / "a")).sha256
    assert first == BlendReader(_write(tmp_path / "b")).sha256
    assert first != BlendReader(_write(tmp_path / "c", row_start=np.array([0, 2, 5]))).sha256


@pytest.mark.parametrize(
    "changed",
    [
        {"row_start": np.array([0, 3, 6])},
        {"row_start": np.array([0, 4, 3, 5])},
        {"row_start": np.array([1, 3, 5])},
        {"row_start": np.array([0, 3, 5], dtype=np.int32)},
        {"row_start": np.array([], dtype=np.int64)},
        {"order_document": np.arange(4, dtype=np.uint32)},
        {"order_document": np.arange(5)},
        {"order_source": np.zeros((5, 1), dtype=np.uint8)},
        {"order_source": np.zeros(5)},
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    with pytest.raises(IntegrityError, match=r"blend's files do not fit together: .*blend\. Build it again"):
        BlendReader(_write(tmp_path / "blend", **changed))


def test_missing_torn_and_flipped_files_are_named(tmp_path: Path) -> None:
    directory = _write(tmp_path / "blend")
    content = bytearray((directory / ORDER_DOCUMENT).read_bytes())
    content[-1] ^= 1
    (directory / ORDER_DOCUMENT).write_bytes(content)
    blend = BlendReader(directory)  # sizes alone
    with pytest.raises(IntegrityError, match=r"file differs from its manifest: .*order_document.npy"):
        blend.verify()
    (directory / ORDER_DOCUMENT).write_bytes(content[:-3])
    with pytest.raises(IntegrityError, match=r"file has a wrong size: .*order_document.npy"):
        BlendReader(directory)
    (directory / ORDER_DOCUMENT).unlink()
    with pytest.raises(IntegrityError, match=r"file is missing: .*order_document.npy"):
        BlendReader(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "seq_length": 8}))
    with pytest.raises(IntegrityError, match="manifest is damaged or was edited"):
        BlendReader(directory)
