"""One flipped bit anywhere in what a run starts from, its data or its checkpoint, and the start is refused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.checkpoint.integrity import verify_checkpoint
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import HuatuoError
from tests.unit.flips import random_flip

FLIPS = 100


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path) -> Path:
    """The sample's blend, with indexes of its own."""
    root = tmp_path_factory.mktemp("flips")
    shutil.copytree(sample_blend.parent / "index", root / "index")
    names = ("sft", "books", "web")
    sources = [{"name": name, "path_prefix": str(root / "index" / name), "level": 0} for name in names]
    content = {"seq_length": 256, "seed": 5, "packing": {"window": 16}, "sources": sources}
    return build_blend(parse_blend_config(content, "flips"), root / "blend")


def accepts(start: Callable[[], Any]) -> bool:
    try:
        start()
    except HuatuoError:
        return False
    return True


def test_none_of_100_random_bit_flips_is_accepted(blend: Path, saved_checkpoint: Path) -> None:
    """Every file has its turn: order, rows, schedule and indexes of the blend, tensors, settings and tokenizer of the
    checkpoint, and all manifests. Both checks are those that a run starts with."""
    draw = random.Random(11)

    def files_below(*folders: Path) -> list[Path]:
        return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())

    data, state = files_below(blend, blend.parent / "index"), files_below(saved_checkpoint)
    assert {path.suffix for path in data} >= {".bin", ".idx", ".json", ".npy"} and len(data) + len(state) < FLIPS / 2

    def start(path: Path) -> Any:
        return PackedRows(blend) if path in data else verify_checkpoint(saved_checkpoint)

    accepted = []
    for number in range(FLIPS):
        files = (data, state)[number % 2]
        path = files[number // 2 % len(files)]
        with random_flip(path, draw) as place:
            if accepts(lambda path=path: start(path)):
                accepted.append((path.name, place))
    assert accepted == []
    assert accepts(lambda: start(data[0])) and accepts(lambda: start(state[0])), "undone flips leave sound files"
