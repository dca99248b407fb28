"""Fixtures of the whole suite."""

from __future__ import annotations

import dataclasses
import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the suite in the background leaves SIGINT ignored in all children, also in those that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until the tests are collected


def pytest_collection_finish() -> None:
    """Let later collections of garbage leave out all that the imports have defined: 5 % of the suite's processor time."""
    gc.freeze()
    gc.enable()


DATA = Path(__file__).parent.parent / "examples" / "toy_cpu" / "data"


@pytest.fixture(scope="session")
def sample_blend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blend of about 100 rows of 256 tokens, made from the bundled sample by the project's own stages.

    Three sources (web, books, sft) in `index/` and the tokenizer in `tokenizer/` beside the returned directory; treat
    all as read-only.
    """
    from megatron_huatuo.blend.blend_build import build_blend
    from megatron_huatuo.blend.blend_settings import parse_blend_config
    from megatron_huatuo.corpus import CurationSettings, curate
    from megatron_huatuo.index.build_index import build_index
    from megatron_huatuo.index.train_tokenizer import train_tokenizer
    from megatron_huatuo.unify import unify

    root = tmp_path_factory.mktemp("sample")
    inputs = [DATA / "web.jsonl", DATA / "books.jsonl"]
    curate(inputs, root / "corpus", settings=CurationSettings(max_characters_zh=110, max_words_en=55))
    unify([root / "corpus" / "documents.jsonl"], root / "unified", backend="template")
    pairs, sft = root / "unified" / "conversations.jsonl", DATA / "sft.jsonl"
    train_tokenizer([pairs, sft], root / "tokenizer", 2048)
    sources = []
    for level, name in enumerate(("sft", "books", "web")):
        prefix = root / "index" / name
        build_index([sft if name == "sft" else pairs], prefix, root / "tokenizer", workers=1, source=name)
        sources.append({"name": name, "path_prefix": str(prefix), "level": level, "epochs": 2 if name == "sft" else 1})
    content = {"seq_length": 256, "seed": 5, "packing": {"window": 16}, "sources": sources}
    return build_blend(parse_blend_config(content, "sample"), root / "blend")


def _write_config(directory: Path, num_layers: int) -> Path:
    """A Hugging Face directory with the config.json of a model that fits the sample's tokenizer; no weights."""
    from megatron_huatuo.models.hf_config import config_json
    from megatron_huatuo.storage.manifest import write_json
    from tests.unit.convert.small_models import SMALL

    architecture = dataclasses.replace(
        SMALL["llama"],
        num_layers=num_layers,
        hidden_size=64,
        ffn_hidden_size=160,
        num_attention_heads=4,
        vocab_size=2048,
        norm_epsilon=1e-6,
        rope_theta=1e4,
        max_position_embeddings=512,
    )
    write_json(directory / "config.json", config_json(architecture, "float32"))
    return directory


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers: enough for two stages of two virtual ones."""
    return _write_config(tmp_path_factory.mktemp("small_model"), 4)


@pytest.fixture(scope="session")
def smallest_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, whose steps take half the time."""
    return _write_config(tmp_path_factory.mktemp("smallest_model"), 2)


@pytest.fixture(scope="session")
def saved_checkpoint(tmp_path_factory: pytest.TempPathFactory, sample_blend: Path, small_model: Path) -> Path:
    """The checkpoint of a real run of one step on two ranks; treat it as read-only."""
    from tests.distributed.engine import make_config, train_rank
    from tests.distributed.runner import run_ranks

    run_dir = tmp_path_factory.mktemp("saved")
    model = {"preset": None, "hf": str(small_model)}
    run_ranks(2, train_rank, make_config(run_dir, sample_blend, model=model, training={"train_iters": 1}))
    return run_dir / "checkpoints" / "iter_0000001"


@pytest.fixture
def alone() -> Iterator[None]:
    """Process groups of one rank on the CPU, with megatron-core's seeds."""
    import torch
    from megatron.core import tensor_parallel

    from megatron_huatuo.parallel.host import enable_host
    from megatron_huatuo.parallel.parallel_config import ParallelConfig
    from megatron_huatuo.parallel.process_groups import destroy_process_groups, initialize_process_groups

    enable_host()
    initialize_process_groups(ParallelConfig(), torch.device("cpu"))
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    yield
    destroy_process_groups()
