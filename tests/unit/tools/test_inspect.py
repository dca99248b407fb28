"""What a person sees of each artifact, and that damaged or hostile ones are named and not opened."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.inspect.show_hf_directory import describe_safetensors
from megatron_huatuo.inspect.show_index import describe_segments
from megatron_huatuo.inspect.show_manifest import describe_array, describe_record, format_bytes, join, shorten
from megatron_huatuo.storage.jsonl import write_jsonl
from megatron_huatuo.storage.manifest import sealed, write_json, write_manifest
from tests.distributed.engine import make_config, train_rank
from tests.distributed.runner import run_ranks

ROOT = Path(__file__).parents[3]


def _load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inspect_artifact", ROOT / "tools" / "inspect_artifact.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _load_tool()


def show(path: Path | str, number: int | None = None) -> str:
    return "\n".join(TOOL.describe(Path(path), number))


@pytest.fixture(scope="module")
def finished_run(sample_blend: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the smallest model on one rank."""
    run_dir = tmp_path_factory.mktemp("run") / "train"
    config = make_config(run_dir, sample_blend, training={"train_iters": 2, "global_batch_size": 1})
    run_ranks(1, train_rank, config)
    return run_dir


def test_row_shows_its_documents_and_what_is_trained_on(sample_blend: Path) -> None:
    text = show(sample_blend, 0)
    assert text.startswith("row 0 of ")
    contexts = [line for line in text.splitlines() if line.startswith("  context")]
    trained = [line for line in text.splitlines() if line.startswith("  TRAINED")]
    assert contexts and len(trained) >= len(contexts)
    assert all("<问>：" in line for line in contexts) and all("<问>：" not in line for line in trained)
    lengths = [int(line.split()[1]) for line in contexts + trained]
    padding = int(text.splitlines()[0].split()[-2])
    assert sum(lengths) + padding == 256


def test_row_outside_the_blend_is_refused(sample_blend: Path) -> None:
    with pytest.raises(ConfigError, match="wrong row: got 100000, need 0 to"):
        show(sample_blend, 100_000)


def test_blend_shows_sources_and_shares(sample_blend: Path) -> None:
    text = show(sample_blend)
    assert text.startswith("blend ") and "rows of 256 tokens" in text
    rows = {line.split()[0]: line for line in text.splitlines()[2:5]}
    assert {"web", "books", "sft"} == rows.keys()
    shares = [[float(share[:-1]) for share in line.split()[4:]] for line in rows.values()]
    assert all(abs(sum(fifth) - 100) < 0.3 for fifth in zip(*shares, strict=True))


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx", ".json"])
def test_index_is_found_by_its_prefix_and_each_of_its_files(sample_blend: Path, suffix: str) -> None:
    text = show(f"{sample_blend.parent}/index/web{suffix}")
    assert text.startswith("index ") and "documents" in text and "trained on" in text and "chat_format: huatuo2" in text


def test_document_is_decoded_with_its_origin_and_end(sample_blend: Path) -> None:
    text = show(sample_blend.parent / "index" / "sft", 0)
    lines = text.splitlines()
    assert "made from" in lines[0] and ".jsonl:" in lines[0]
    assert lines[-1].startswith("  TRAINED") and lines[-1].endswith("<eos>")


def test_document_outside_the_index_is_refused(sample_blend: Path) -> None:
    with pytest.raises(ConfigError, match="wrong document: got -1, need 0 to"):
        show(sample_blend.parent / "index" / "sft", -1)


def test_a_row_is_traced_to_pair_passage_and_byte(sample_blend: Path) -> None:
    corpus = sample_blend.parent / "corpus" / "documents.jsonl"
    passages = {row["id"]: row for row in map(json.loads, corpus.read_text("utf-8").splitlines())}
    rows = len(np.load(sample_blend / "row_start.npy")) - 1
    lines = TOOL.describe(sample_blend, rows // 3, trace=True)
    traced = [position for position, line in enumerate(lines) if line.startswith("  passage ")]
    assert traced and len(traced) + sum("not made from a passage" in line for line in lines) == sum(
        line.startswith("document ") for line in lines
    )
    for position in traced:
        head, made_by, passage, text, source = lines[position - 2 : position + 3]
        name = passage.split()[1]
        assert f"pair {name}, {sample_blend.parent}/unified/conversations.jsonl:" in head
        assert made_by.startswith("  made by backend template") and text == f"  {passages[name]['text']}"
        origin = passages[name]["metadata"]["origin"]
        with open(origin["file"], "rb") as handle:
            handle.seek(origin["offset"])
            record = json.loads(handle.readline())
        assert record["id"] == origin["document"] and f"of document {origin['document']}" in passage
        place = f"  source {origin['file']}:{origin['line']}, byte {origin['offset']}: "
        assert source == place + shorten(record["text"])


def test_a_document_is_traced_and_what_is_gone_is_said(tmp_path: Path, sample_blend: Path) -> None:
    index = sample_blend.parent / "index"
    assert "no provenance: the pair was not made from a passage" in "\n".join(
        TOOL.describe(index / "sft", 0, trace=True)
    )
    source, pairs = tmp_path / "a.jsonl", tmp_path / "pairs.jsonl"
    source.write_text('{"text": "原文。"}\n', "utf-8")
    provenance = {
        "passage": "p",
        "document": "d",
        "file": str(source),
        "line": 1,
        "offset": 0,
        "model": "m",
        "part": 2,
        "parts": 3,
    }
    turns = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
    write_jsonl(pairs, [{"id": "a", "conversations": turns, "provenance": provenance}])
    (tmp_path / "manifest.json").write_text('{"kind": "no unification"}')
    build_index([pairs], tmp_path / "p", sample_blend.parent / "tokenizer", workers=1)
    assert TOOL.describe(tmp_path / "p.bin", 0, trace=True) == [
        f"document 0 of {tmp_path}/p: pair a, {pairs}:1",
        "  made by model m",
        "  passage p of document d, part 2 of 3",
        "  (its text is gone with the file that unification read)",
        f"  source {source}:1, byte 0: 原文。",
    ]
    source.unlink()
    assert TOOL.describe(tmp_path / "p", 0, trace=True)[-1].endswith("byte 0: (the file is gone)")
    pairs.unlink()
    assert TOOL.describe(tmp_path / "p", 0, trace=True) == [f"document 0 of {tmp_path}/p: {pairs}:1, which is gone"]
    with pytest.raises(ConfigError, match="wrong document: got 1, need 0 to 0"):
        TOOL.describe(tmp_path / "p", 1, trace=True)
    with pytest.raises(ConfigError, match="nothing to trace: need the row or document too"):
        TOOL.describe(tmp_path / "p", None, trace=True)


def test_ids_are_shown_where_the_tokenizer_is_gone(sample_blend: Path, tmp_path: Path) -> None:
    for path in (sample_blend.parent / "index").glob("sft*"):
        shutil.copy(path, tmp_path)
    manifest = json.loads((tmp_path / "sft.json").read_text())
    manifest["tokenizer"]["path"] = str(tmp_path / "gone")
    (tmp_path / "sft.json").write_text(json.dumps(sealed(manifest)))
    assert "  context" in show(tmp_path / "sft", 0) and "  ids " in show(tmp_path / "sft", 0)


def test_segments_by_hand() -> None:
    lines = describe_segments(np.array([5, 6, 7, 8, 9]), np.array([0, 0, 1, 0, 1]), None)
    assert lines == [
        "  context      2  ids 5 6",
        "  TRAINED      1  ids 7",
        "  context      1  ids 8",
        "  TRAINED      1  ids 9",
    ]
    assert describe_segments(np.array([], dtype=int), np.array([], dtype=int), None) == ["  (no tokens)"]


def test_checkpoint_shows_layout_and_tensors(finished_run: Path) -> None:
    text = show(finished_run / "checkpoints" / "iter_0000002")
    assert '"tensor_model_parallel_size": 1' in text and "iteration: 2" in text
    assert "[3072, 192]" in text and "embedding.word_embeddings.weight" in text
    assert "optimizer.state.exp_avg" in text and "of tensors" in text


def test_one_shard_of_a_checkpoint_is_a_part_of_it(finished_run: Path) -> None:
    state = finished_run / "checkpoints" / "iter_0000002" / "state"
    shards = sorted(state.glob("*.distcp"))
    listed = [set(show(shard).splitlines()[1:-1]) for shard in shards]
    whole = {line for line in show(state.parent).splitlines() if " pieces  " in line}
    assert all(listed) and set.union(*listed) >= whole


def test_checkpoint_that_would_execute_code_is_not_opened(finished_run: Path, tmp_path: Path) -> None:
    directory = tmp_path / "iter_0000002"
    shutil.copytree(finished_run / "checkpoints" / "iter_0000002", directory)
    metadata = directory / "state" / ".metadata"
    size = metadata.stat().st_size
    hostile = b"cposix\nsystem\n(S'touch " + str(tmp_path / "executed").encode() + b"'\ntR."
    metadata.write_bytes(hostile + b"\0" * (size - len(hostile)))
    with pytest.raises(IntegrityError, match="would execute code or is damaged"):
        show(directory)
    assert not (tmp_path / "executed").exists()


def test_run_shows_state_last_step_and_checkpoints(finished_run: Path) -> None:
    text = show(finished_run)
    assert "state: finished" in text and "lm_loss: " in text and "  iter_0000002" in text and "preset: toy" in text


def test_records_and_manifest_of_a_stage(tmp_path: Path) -> None:
    records = [{"id": str(number), "text": f"文本 {number}\n第二行"} for number in range(3)]
    write_jsonl(tmp_path / "documents.jsonl", records)
    write_manifest(tmp_path, "corpus", {"settings": {"a": 1}}, ["documents.jsonl"])
    text = show(tmp_path)
    assert text.startswith("corpus, format 1") and "3 lines" in text and "文本 0" in text
    assert '"id": "2"' in show(tmp_path, 3) and '"id": "1"' in show(tmp_path / "documents.jsonl", 2)
    with pytest.raises(DataError, match="no line 4"):
        show(tmp_path, 4)


def test_line_that_is_no_json_is_shown_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \xff\n')
    assert describe_record(path, 2) == [f"{path}:2 is not JSON:", '{"a": \\xff\n']


def test_array_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.arange(20, dtype=np.int64))
    assert describe_array(tmp_path / "good.npy")[0].endswith("int64 [20], 160 B")
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="would execute code"):
        show(tmp_path / "bad.npy")


def test_hugging_face_directory_shows_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a.weight": np.zeros((3, 4), np.float32)}, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    text = show(tmp_path)
    assert "model_type: llama" in text and "F32    [3, 4]" in text and "1 tensors in model.safetensors" in text


@pytest.mark.parametrize("damage", ["empty", "header", "cut", "longer"])
def test_torn_safetensors_are_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(4, np.float32)}, path)
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "header": struct.pack("<Q", 1 << 60) + content[8:],
        "cut": content[:-1],
        "longer": content + b"x",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(IntegrityError, match="file is incomplete or not safetensors"):
        describe_safetensors(path)


def test_what_lies_in_a_folder_is_listed(sample_blend: Path) -> None:
    text = show(sample_blend.parent / "index")
    assert text.splitlines()[0].endswith("holds these; inspect one of them:")
    assert {Path(line.strip()).name for line in text.splitlines()[1:]} >= {"web", "books", "sft"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "holds nothing that this project wrote"),
        ("a.txt", "unknown kind of file"),
    ],
)
def test_other_paths_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError, match=message):
        show(tmp_path / name)


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert join(["a\x1b[31mb\t中\u202e"]) == "a\\x1b[31mb\t中\\u202e"


def test_long_values_are_cut_and_say_so() -> None:
    assert shorten("x" * 400) == "x" * 300 + "… (400 characters)" and shorten({"a": "中"}) == '{"a": "中"}'
    assert [format_bytes(size) for size in (0, 1023, 1536, 3 << 40)] == ["0 B", "1023 B", "1.5 KiB", "3.0 TiB"]


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["inspect_artifact.py", *arguments])
    return int(TOOL.main())


def test_verify_finds_a_flipped_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "documents.jsonl", [{"id": "1"}])
    write_manifest(tmp_path, "corpus", {}, ["documents.jsonl"])
    assert run_main(monkeypatch, str(tmp_path), "--verify") == 0
    assert "verified: every file" in capsys.readouterr().out
    (tmp_path / "documents.jsonl").write_bytes(b'{"id": "3"}\n')
    assert run_main(monkeypatch, str(tmp_path), "--verify") == 1
    assert "differs from its manifest" in capsys.readouterr().err


def test_verify_without_a_manifest_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"id": "1"}])
    assert run_main(monkeypatch, str(tmp_path / "a.jsonl"), "--verify") == 1
    assert "nothing to verify with" in capsys.readouterr().err
