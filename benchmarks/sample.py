"""A blend of the bundled sample, made by the project's own stages, for benchmarks that need real rows."""

from __future__ import annotations

from pathlib import Path

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.corpus import curate
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.unify import unify

SAMPLE = Path(__file__).parents[1] / "examples" / "toy_cpu" / "data"
SOURCES = ("web", "literature", "encyclopedia", "books")


def build_sample_blend(directory: Path, *, seq_length: int, vocab_size: int, epochs: int) -> Path:
    """Build everything below `directory` and return the blend directory. Raises ConfigError without the sample."""
    if not SAMPLE.is_dir():
        raise ConfigError(f"sample is missing: {SAMPLE}. Run the benchmark from a checkout of the repository.")
    curate([SAMPLE / f"{source}.jsonl" for source in SOURCES], directory / "corpus")
    unify([directory / "corpus" / "documents.jsonl"], directory / "unified", backend="template")
    pairs, sft = directory / "unified" / "conversations.jsonl", SAMPLE / "sft.jsonl"
    train_tokenizer([pairs, sft], directory / "tokenizer", vocab_size)
    sources = []
    for level, name in enumerate(("sft", *reversed(SOURCES))):
        prefix = directory / "index" / name
        build_index([sft if name == "sft" else pairs], prefix, directory / "tokenizer", workers=1, source=name)
        sources.append({"name": name, "path_prefix": str(prefix), "level": level, "epochs": epochs})
    content = {"seq_length": seq_length, "seed": 1, "sources": sources}
    return build_blend(parse_blend_config(content, "sample"), directory / "blend")
