"""How fast conversations become an index: against the tokenizer alone, and against Megatron's own preprocessing loop.

The text is the bundled sample, repeated; every candidate encodes the same segments with the same tokenizer, with as many
processes (or threads) as the others. Megatron's loop is that of its tools/preprocess_data.py (a pool, `imap` with chunks
of 32 lines, one encode a text, one writer), which megatron-core does not ship, around megatron-core's own builder.
"""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from benchmarks.measure import Timing, interleave, peak_mib, rate_record, surroundings
from benchmarks.settings import IndexBenchmark
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index import pair_encoder
from megatron_huatuo.index.blocks import CHUNK_BYTES
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.formats.chat_format import encode_tag, segment_texts
from megatron_huatuo.index.formats.chat_template import read_chat_template
from megatron_huatuo.index.formats.format_table import CHAT_FORMATS, FormatSettings, open_format
from megatron_huatuo.index.tokenizer import Tokenizer, load_tokenizer
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.index.workers import available_cores
from megatron_huatuo.storage.indexed import token_dtype
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from megatron_huatuo.storage.jsonl import dump_line, write_jsonl
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import Conversation, Turn, parse_document

SAMPLE = Path(__file__).parents[1] / "examples/toy_cpu/data"
_PACKAGES = ("numpy", "sentencepiece", "tokenizers", "torch", "megatron-core")


def run(settings: IndexBenchmark) -> list[dict[str, Any]]:
    """All records of the index benchmark."""
    if settings.megabytes < 2:
        raise ConfigError(f"too little text to measure: got {settings.megabytes} megabytes, need at least 2.")
    workers = settings.workers or available_cores()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer = settings.tokenizer
        if tokenizer is None:
            train_tokenizer(_sample_files(), directory / "tokenizer", 3072)
            tokenizer = str(directory / "tokenizer")
        path = directory / "conversations.jsonl"
        _write_corpus(path, settings.megabytes)
        return [
            *_pipeline_records(path, tokenizer, workers, settings.repeats),
            *_native_records(path, tokenizer, settings.repeats),
            _writer_record(directory, load_tokenizer(tokenizer).vocab_size, settings.repeats),
            *_memory_records(directory, tokenizer, settings.megabytes),
        ]


def _sample_files() -> list[Path]:
    files = [SAMPLE / f"{name}.jsonl" for name in ("web", "literature", "encyclopedia", "books", "sft")]
    if not all(file.is_file() for file in files):
        raise ConfigError(f"no sample data in {SAMPLE}: need the repository's examples. Run from a checkout of it.")
    return files


def _write_corpus(path: Path, megabytes: float) -> None:
    """Pairs of a title and five passages, about as long as the released HuatuoGPT-II pairs, up to a size."""
    documents = [
        document
        for file in _sample_files()[:-1]
        for document in read_records(file, lambda raw, where: [parse_document(raw, where)])
        if document.text.strip()
    ]
    records = []
    for number, document in enumerate(documents):
        passages = [documents[(number * 7 + step * 11) % len(documents)].text for step in range(5)]
        turns = (Turn("human", document.title or document.id), Turn("gpt", "\n".join(passages)))
        records.append(Conversation(document.id, turns, document.source).to_record())
    size = sum(len(dump_line(record)) for record in records)
    write_jsonl(path, (record for _ in range(max(1, round(megabytes * 1e6 / size))) for record in records))


def _pipeline_records(path: Path, tokenizer: str, workers: int, repeats: int) -> list[dict[str, Any]]:
    opened = load_tokenizer(tokenizer)
    texts = [text for one in read_records(path, parse_conversations) for text in segment_texts(one.turns)]
    work = sum(len(text.encode()) for text in texts) / 1e6
    short = path.with_name("short.jsonl")
    _write_corpus(short, 2.5 * CHUNK_BYTES / 1e6)
    share = short.stat().st_size / path.stat().st_size
    prefix = str(path.with_suffix(""))
    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: build_index([path], prefix, tokenizer, workers=workers),
        "ours, short": lambda: build_index([short], prefix + "-short", tokenizer, workers=workers),
        "raw": functools.partial(_encode_apart, opened, texts, workers),
        "raw, short": functools.partial(_encode_apart, opened, texts[: round(share * len(texts))], workers),
        "megatron": functools.partial(_megatron_preprocess, path, prefix + "-megatron", tokenizer, workers),
    }
    # The short text must go the same way as the long one, so that what is taken off is the start of that way.
    with mock.patch.object(pair_encoder, "WORTH_A_START_BYTES", 0):
        timings = interleave(candidates, repeats, warm_up=False)
    record = functools.partial(rate_record, threads=workers, unit="MB of text/s", packages=_PACKAGES)
    return [
        record(
            "index: preprocess_data against the tokenizer alone",
            work=work * (1 - share),
            ours=_added(timings["ours"], timings["ours, short"]),
            peer=_added(timings["raw"], timings["raw, short"]),
            peer_name=f"{type(opened).__name__}, one batch in each of {workers} processes, texts in memory; "
            "the start of the processes is taken off on both sides",
        ),
        record(
            "index: preprocess_data against Megatron's loop",
            work=work,
            ours=timings["ours"],
            peer=timings["megatron"],
            peer_name=f"multiprocessing pool of {workers}, imap, IndexedDatasetBuilder",
        ),
    ]


def _native_records(path: Path, tokenizer: str, repeats: int) -> list[dict[str, Any]]:
    """The tokenizer's own chat template against the recipe's format, in this process; none where it has no template."""
    if read_chat_template(tokenizer) is None:
        return []
    opened = load_tokenizer(tokenizer)
    conversations = list(itertools.islice(read_records(path, parse_conversations), 1000))
    huatuo, native = (open_format(FormatSettings(chat_format=name), opened) for name in CHAT_FORMATS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    timings = interleave(
        {"ours": lambda: native.encode(conversations), "peer": lambda: huatuo.encode(conversations)}, repeats
    )
    return [
        rate_record(
            "index: native chat template against the recipe's format",
            work=len(conversations),
            unit="conversations/s",
            ours=timings["ours"],
            peer=timings["peer"],
            peer_name="the same conversations as <问>：…\\n<答>：…, one process each",
            packages=_PACKAGES,
        )
    ]


def _added(long: list[Timing], short: list[Timing]) -> list[Timing]:
    """What a longer input adds: the start of the processes is in both runs and falls out, as in a run of hours."""
    return [Timing(one.wall_s - other.wall_s, one.cpu_s - other.cpu_s) for one, other in zip(long, short, strict=True)]


def _encode_apart(tokenizer: Tokenizer, texts: list[str], processes: int) -> None:
    """The library's own batch call at its best: equal shares of the texts, in memory, in processes of their own."""
    context = multiprocessing.get_context("fork")
    cuts = [len(texts) * number // processes for number in range(processes + 1)]
    shares = [texts[start:end] for start, end in itertools.pairwise(cuts)]
    crew = [context.Process(target=_encode_batch, args=(tokenizer, share)) for share in shares]
    for process in crew:
        process.start()
    for process in crew:
        process.join()


def _encode_batch(tokenizer: Tokenizer, texts: list[str]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer.encode_batch(texts)


class _MegatronEncoder:
    """The encoder of Megatron's tool: state set once per process, one line in, ids and lengths out."""

    model: Any
    tag: int
    eos: int

    def __init__(self, tokenizer: str) -> None:
        self.tokenizer = tokenizer

    def initializer(self) -> None:
        opened = load_tokenizer(self.tokenizer)
        _MegatronEncoder.model, _MegatronEncoder.eos = opened._model, opened.eos_id  # type: ignore[attr-defined]
        _MegatronEncoder.tag = len(encode_tag(opened))

    def encode(self, line: str) -> tuple[list[int], list[int], list[int]]:
        turns = [Turn(turn["from"], turn["value"]) for turn in json.loads(line)["conversations"]]
        ids: list[int] = []
        lengths: list[int] = []
        for text in segment_texts(turns):
            encoded = _MegatronEncoder.model.encode(text)
            encoded = encoded if isinstance(encoded, list) else encoded.ids
            ids.extend(encoded)
            lengths.append(len(encoded))
        for answer in range(1, len(lengths), 2):
            lengths[answer - 1] += self.tag
            lengths[answer] -= self.tag
        ids.append(self.eos)
        lengths[-1] += 1
        return ids, lengths, [0, 1] * (len(lengths) // 2)


def _megatron_preprocess(path: Path, prefix: str, tokenizer: str, workers: int) -> None:
    encoder = _MegatronEncoder(tokenizer)
    dtype = DType.optimal_dtype(load_tokenizer(tokenizer).vocab_size)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=True)
    context = multiprocessing.get_context("fork")
    with open(path, encoding="utf-8") as lines, context.Pool(workers, initializer=encoder.initializer) as pool:
        for ids, lengths, modes in pool.imap(encoder.encode, lines, 32):
            builder.add_document(ids, lengths, modes)
        pool.close()
        pool.join()
    builder.finalize(f"{prefix}.idx")


def _writer_record(directory: Path, vocab_size: int, repeats: int) -> dict[str, Any]:
    """The writer alone, from arrays: 100,000 documents of two segments, 300 tokens in the median."""
    num_documents, block = 100_000, 1000
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, rng.lognormal(np.log(150), 0.5, size=2 * num_documents)).astype(np.int64)
    tokens = rng.integers(0, vocab_size, size=int(lengths.sum()), dtype=np.int32)
    bounds = np.concatenate([[0], np.cumsum(lengths)])[::2]
    modes, counts = np.tile([0, 1], num_documents).astype(np.int8), np.full(num_documents, 2)

    def write_ours() -> None:
        with IndexedWriter(directory / "ours", vocab_size) as writer:
            for start in range(0, num_documents, block):
                stop = start + block
                segments = slice(2 * start, 2 * stop)
                ids = tokens[bounds[start] : bounds[stop]]
                writer.add_documents(ids, lengths[segments], modes[segments], counts[start:stop])
            writer.finish()

    def write_stock() -> None:
        builder = IndexedDatasetBuilder(str(directory / "stock.bin"), token_dtype(vocab_size).type, multimodal=True)
        for number in range(num_documents):
            document = torch.from_numpy(tokens[bounds[number] : bounds[number + 1]])
            builder.add_document(document, lengths[2 * number : 2 * number + 2].tolist(), [0, 1])
        builder.finalize(str(directory / "stock.idx"))

    timings = interleave({"ours": write_ours, "stock": write_stock}, repeats)
    return rate_record(
        "index: writer alone, from arrays (ours hashes and flushes to disk)",
        work=num_documents,
        unit="documents/s",
        ours=timings["ours"],
        peer=timings["stock"],
        peer_name="megatron-core IndexedDatasetBuilder.add_document",
        packages=_PACKAGES,
    )


def _memory_records(directory: Path, tokenizer: str, megabytes: float) -> list[dict[str, Any]]:
    """Peak memory of one process of the tool: by the kernel over a quarter of the text and over all of it, and by the library
    over the quarter."""
    quarter, whole = directory / "quarter.jsonl", directory / "whole.jsonl"
    _write_corpus(quarter, megabytes / 4)
    _write_corpus(whole, megabytes)
    of_quarter = _peak_mib(quarter, directory / "memory", tokenizer)
    of_whole = _peak_mib(whole, directory / "memory", tokenizer)
    by_library = _peak_mib(quarter, directory / "memory", tokenizer, by_library=True)
    compared = (
        ("4 times the text", of_whole, of_quarter, "the same build of a quarter of the text"),
        ("encoded by the compiled kernel", of_quarter, by_library, "the same build by the tokenizer's own library"),
    )
    return [
        {
            "name": f"index: peak memory, {what}",
            "ours": ours,
            "peer": peer,
            "peer_name": peer_name,
            "ratio": ours / peer,
            "unit": "MiB (smaller is better)",
            "runs": {"ours": [ours], "peer": [peer]},
            **surroundings(_PACKAGES),
        }
        for what, ours, peer, peer_name in compared
    ]


def _peak_mib(path: Path, prefix: Path, tokenizer: str, *, by_library: bool = False) -> float:
    """Peak resident memory of a process of its own, which builds with one worker; by the kernel where it can, however short
    the text is, or by the tokenizer's library."""
    code = (
        "import sys; from megatron_huatuo.index import pair_encoder; "
        f"pair_encoder.WORTH_A_START_BYTES = {sys.maxsize if by_library else 0}; "
        "from megatron_huatuo.index.build_index import build_index; "
        "build_index([sys.argv[1]], sys.argv[2], sys.argv[3], workers=1)"
    )
    return peak_mib(code, str(path), str(prefix), tokenizer)
