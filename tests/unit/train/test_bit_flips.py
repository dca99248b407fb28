"""One flipped bit anywhere in what a run starts from, its data or its checkpoint, and the start is refused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.blend.build import build_blend
from megatron_huatuo.blend.config import parse_blend_config
from megatron_huatuo.checkpoint.integrity import verify_checkpoint
from megatron_huatuo.dataset.packed_rows import PackedRows
from megatron_huatuo.errors import HuatuoError
from tests.distributed.engine import make_config, train_rank
from tests.distributed.runner import run_ranks

FLIPS = 100


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path) -> Path:
    """The sample's blend, with indexes of its own."""
    root = tmp_path_factory.mktemp("flips")
    shutil.copytree(sample_blend.parent / "index", root / "index")
    names = ("sft", "books", "web")
    sources = [{"name": name, "path_prefix": str(root / "index" / name), "level": 0} for name in names]
    content = {"seq_length": 256, "seed": 5, "packing": {"window": 16}, "sources": sources}
    return build_blend(parse_blend_config(content, "flips"), root / "blend", num_threads=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path, small_model: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    model = {"preset": None, "hf": str(small_model)}
    run_ranks(2, train_rank, make_config(run_dir, sample_blend, model=model, training={"train_iters": 1}))
    return run_dir / "checkpoints" / "iter_0000001"


def flip(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as handle:
        handle.seek(place)
        [byte] = handle.read(1)
        handle.seek(place)
        handle.write(bytes([byte ^ bit]))


def accepts(start: Callable[[], Any]) -> bool:
    try:
        start()
    except HuatuoError:
        return False
    return True


def test_none_of_100_random_bit_flips_is_accepted(blend: Path, checkpoint: Path) -> None:
    """Every file has its turn: order, rows, schedule and indexes of the blend, tensors, settings and tokenizer of the
    checkpoint, and all manifests. Both checks are those that a run starts with."""
    draw = random.Random(11)

    def files_below(*folders: Path) -> list[Path]:
        return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())

    data, state = files_below(blend, blend.parent / "index"), files_below(checkpoint)
    assert {path.suffix for path in data} >= {".bin", ".idx", ".json", ".npy"} and len(data) + len(state) < FLIPS / 2

    def start(path: Path) -> Any:
        return PackedRows(blend) if path in data else verify_checkpoint(checkpoint)

    accepted = []
    for number in range(FLIPS):
        files = (data, state)[number % 2]
        path = files[number // 2 % len(files)]
        place, bit = draw.randrange(path.stat().st_size), 1 << draw.randrange(8)
        flip(path, place, bit)
        if accepts(lambda path=path: start(path)):
            accepted.append((path.name, place, bit))
        flip(path, place, bit)
    assert accepted == []
    assert accepts(lambda: start(data[0])) and accepts(lambda: start(state[0])), "undone flips leave sound files"
