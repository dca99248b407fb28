"""Looking into a blend: rows, places and compositions agree with the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.inspect.show_blend import BlendView
from megatron_huatuo.storage.indexed import IndexedReader
from tests.unit.blend.orders import write_index


@pytest.fixture
def view(tmp_path: Path) -> BlendView:
    rng = np.random.default_rng(3)
    sources = [
        {
            "name": name,
            "path_prefix": str(write_index(tmp_path / name, rng.integers(3, 90, size))),
            "priority": 1,
            "epochs": 2,
        }
        for name, size in (("a", 120), ("b", 60))
    ]
    return BlendView(
        build_blend(parse_blend_config({"seq_length": 64, "seed": 1, "sources": sources}, "t"), tmp_path / "o")
    )


def test_row_shows_its_documents_their_tokens_and_the_padding(view: BlendView) -> None:
    cut = 0
    for row in range(len(view.row_start) - 1):
        content = view.row(row)
        assert content.padding == 64 - sum(document.length for document in content.documents) >= 0
        for document, entry in zip(content.documents, range(view.row_start[row], view.row_start[row + 1]), strict=True):
            assert document.source == view.names[view.source[entry]] and document.document == view.document[entry]
            index = IndexedReader(view.manifest["sources"][view.source[entry]]["path_prefix"])
            tokens = index.document(document.document)[0]
            assert document.length + document.cut_tokens == len(tokens)
            assert document.tokens.tolist() == tokens[: len(document.tokens)].tolist()
            assert len(document.tokens) == (63 if document.cut_tokens else len(tokens))
            cut += document.cut_tokens > 0
    assert cut > 0


def test_places_of_a_document_are_found_once_an_epoch(view: BlendView) -> None:
    for document in (0, 59):
        places = view.places("b", document)
        assert len(places) == 2
        for place in places:
            assert view.source[place.entry] == 1 and view.document[place.entry] == document
            assert view.row_start[place.row] <= place.entry < view.row_start[place.row + 1]
            assert place.progress == place.entry / 360


def test_composition_counts_a_range_of_rows(view: BlendView) -> None:
    rows = len(view.row_start) - 1
    assert view.composition(0, rows) == {"a": 240, "b": 120}
    assert view.composition(5, 5) == {"a": 0, "b": 0}
    first = view.composition(2, 3)
    assert sum(first.values()) == len(view.row(2).documents)


def test_what_is_not_there_is_refused(view: BlendView) -> None:
    with pytest.raises(ConfigError, match=r"wrong row: got -1, need 0 to"):
        view.row(-1)
    with pytest.raises(ConfigError, match=r"wrong rows: got 3 to 2, need a range within"):
        view.composition(3, 2)
    with pytest.raises(ConfigError, match=r"unknown source: got 'c', need one of a, b"):
        view.places("c", 0)
    with pytest.raises(ConfigError, match=r"wrong document of source 'b': got 60, need 0 to 59"):
        view.places("b", 60)
