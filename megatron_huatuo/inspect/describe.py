"""What lies at a path, by its kind: the lines that `tools/inspect_artifact.py` prints.

Only the file of the kind that is met is imported, so that a manifest is shown without loading torch.
"""

from __future__ import annotations

from pathlib import Path

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.inspect.show_manifest import (
    describe_array,
    describe_json,
    describe_lines,
    describe_manifest,
    describe_record,
)
from megatron_huatuo.storage.manifest import MANIFEST_NAME, read_json
from megatron_huatuo.storage.run_files import is_run

_MAIN_RECORDS = ("documents.jsonl", "conversations.jsonl", "replies.jsonl", "verdicts.jsonl")


def describe(path: Path, number: int | None, *, trace: bool = False) -> list[str]:
    """Lines about one path, by what it is."""
    if path.suffix in (".bin", ".idx") or (path.suffix == ".json" and path.with_suffix(".idx").is_file()):
        path = path.with_suffix("")
    if trace:
        return describe_trace(path, number)
    if Path(f"{path}.idx").is_file():
        from megatron_huatuo.inspect.show_index import describe_document, describe_index

        return describe_index(path) if number is None else describe_document(path, number)
    if path.is_dir():
        return describe_directory(path, number)
    if not path.is_file():
        raise ConfigError(f"nothing to inspect: {path} does not exist. Check the path.")
    return describe_file(path, number)


def describe_trace(path: Path, number: int | None) -> list[str]:
    """The way back from a row of a blend, or a document of an index, to its source files."""
    from megatron_huatuo.inspect.trace_row import trace_document, trace_row

    if number is None:
        raise ConfigError("nothing to trace: need the row or document too. Add --number N.")
    return trace_document(path, number) if Path(f"{path}.idx").is_file() else trace_row(path, number)


def describe_file(path: Path, number: int | None) -> list[str]:
    """One file that is no part of an index."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return describe_lines(path) if number is None else describe_record(path, number)
    if path.suffix == ".npy":
        return describe_array(path)
    if path.suffix == ".json":
        return describe_json(path)
    if path.suffix == ".safetensors":
        from megatron_huatuo.inspect.show_hf_directory import describe_safetensors

        return describe_safetensors(path)
    if path.suffix == ".distcp":
        from megatron_huatuo.inspect.show_checkpoint import describe_checkpoint

        return describe_checkpoint(path.parent.parent, file=path.name)
    raise ConfigError(f"unknown kind of file: {path}. Need one of those that --help lists.")


def describe_directory(path: Path, number: int | None) -> list[str]:
    """A directory, by its manifest or by what lies in it."""
    manifest = read_json(path / MANIFEST_NAME) if (path / MANIFEST_NAME).is_file() else {}
    kind = manifest.get("kind")
    if kind == "blend":
        from megatron_huatuo.inspect.show_row import describe_blend, describe_row

        return describe_blend(path) if number is None else describe_row(path, number)
    if kind == "checkpoint":
        from megatron_huatuo.inspect.show_checkpoint import describe_checkpoint

        return describe_checkpoint(path)
    if (path / "config.json").is_file():
        from megatron_huatuo.inspect.show_hf_directory import describe_hf_directory

        return describe_hf_directory(path)
    if manifest:
        records = [path / name for name in _MAIN_RECORDS if (path / name).is_file()]
        if number is not None and records:
            return describe_record(records[0], number)
        return [
            *describe_manifest(manifest),
            *(line for file in records for line in describe_lines(file)),
        ]
    if is_run(path):
        from megatron_huatuo.inspect.show_run import describe_run

        return describe_run(path)
    inside = {item.with_suffix("") for item in path.glob("*.idx")}
    inside |= {item.parent for name in (MANIFEST_NAME, "status.json", "*.idx") for item in path.glob(f"*/{name}")}
    if inside:
        return [f"{path} holds these; inspect one of them:", *(f"  {item}" for item in sorted(inside))]
    raise ConfigError(f"nothing to inspect: {path} holds nothing that this project wrote. Check the path.")


def manifest_of(path: Path) -> Path:
    """The manifest that covers a directory, an index or one of its files. Raises: ConfigError when there is none."""
    candidates = [path / MANIFEST_NAME, Path(f"{path}.json"), path.with_suffix(".json"), path.parent / MANIFEST_NAME]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(f"nothing to verify with: {path} has no manifest. Leave out --verify.")
