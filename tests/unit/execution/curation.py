"""Curation as the stage that executors run: small inputs, the tool, and the process that is at work."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil

from tests.unit import kill

FILES = ("documents.jsonl", "rejected.jsonl", "report.json", "report.png")


def write_inputs(folder: Path, number_files: int, number_documents: int) -> Path:
    folder.mkdir()
    for file in range(number_files):
        with open(folder / f"{file}.jsonl", "w", encoding="utf-8") as handle:
            for index in range(number_documents):
                text = (
                    f"第{file}批第{index * 31}号患者因反复头痛{index}天入院，血压{120 + index % 60}毫米汞柱。给予降压治疗，并于{index % 9}周后复查。"
                    * 3
                )
                row = {"id": f"{file}-{index}", "source": f"s{file}", "language": "zh", "text": text}
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder


def start(folder: Path, output: Path, *flags: str) -> subprocess.Popen[bytes]:
    return kill.start_tool("curate_corpus", "--input", f"{folder}/*.jsonl", "--output", output, *flags)


def assert_equal(output: Path, expected: dict[str, bytes]) -> None:
    for name in FILES:
        assert (output / name).read_bytes() == expected[name], name


def find_worker(pid: int, output: Path) -> psutil.Process:
    """The process that writes an unfinished shard of `output`."""
    return kill.find_writer(pid, rf"/\.{output.name}\.work/.*shards/")
