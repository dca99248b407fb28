"""Every tool explains itself quickly, without loading torch, and has the flags that are promised to users."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))

# Promised to users, tests and other tools: a flag goes from this list only with an entry in the change log.
FLAGS: dict[tuple[str, ...], list[str]] = {
    ("curate_corpus",): ["--input", "--source", "--output", "--executor", "--workers", "--lexicon", "--max-bad-lines"],
    ("unify_corpus",): [
        "--input",
        "--output",
        "--backend",
        "--base-url",
        "--model",
        "--api-key-env",
        "--language",
        "--max-concurrency",
        "--budget-usd",
        "--preview",
        "--max-bad-lines",
    ],
    ("preprocess_data",): ["--input", "--output-prefix", "--tokenizer", "--workers", "--max-bad-lines"],
    ("merge_index",): ["--input", "--output-prefix"],
    ("register_index",): ["--input-prefix", "--tokenizer", "--without-eos"],
    ("train_tokenizer",): ["--input", "--output", "--vocab-size"],
    ("build_blend",): ["--config", "--output", "--megatron-indices", "--replan"],
    ("train",): [
        "--config",
        "--run_dir",
        "--dry-run",
        "--model.preset",
        "--model.hf",
        "--model.init_from",
        "--data.blend",
        "--data.validation",
        "--parallel.tensor_model_parallel_size",
        "--parallel.pipeline_model_parallel_size",
        "--parallel.virtual_pipeline_model_parallel_size",
        "--optimizer.lr",
        "--schedule.style",
        "--schedule.decay_passes",
        "--schedule.min_lr",
        "--schedule.wsd_decay_fraction",
        "--schedule.warmup_fraction",
        "--model.attention",
        "--training.micro_batch_size",
        "--training.global_batch_size",
        "--training.train_iters",
        "--training.precision",
        "--training.fp8",
        "--training.seed",
        "--checkpoint.save_interval",
        "--checkpoint.keep",
        "--checkpoint.export_hf",
        "--logging.log_interval",
        "--runtime.device",
        "--runtime.deterministic",
        "--runtime.distributed_timeout_minutes",
    ],
    ("convert_checkpoint",): ["import", "runs", "code", "export", "published", "verify", "Compare", "continuation"],
    ("convert_checkpoint", "import"): ["--hf", "--checkpoint", "--ignore-config-key"],
    ("convert_checkpoint", "export"): ["--checkpoint", "--hf", "--base-hf", "--dtype", "--skip-verification"],
    ("convert_checkpoint", "verify"): ["--checkpoint", "--hf"],
    ("evaluate",): ["exam", "questions", "judge", "orders", "rate", "grade", "compare", "table"],
    ("evaluate", "compare"): ["--results", "--output"],
    ("evaluate", "table"): ["--results", "--layout", "--exams", "--output"],
    ("evaluate", "exam"): [
        *("--model", "--base-url", "--questions", "--output", "--scoring", "--few-shot", "--votes"),
        *("--format", "--subset", "--limit", "--seed"),
    ],
    ("evaluate", "judge"): ["--answers-a", "--answers-b", "--base-url", "--model", "--output", "--judges"],
    ("evaluate", "rate"): ["--answers", "--rubric", "--base-url", "--model", "--output", "--judges"],
    ("evaluate", "grade"): ["--answers", "--criteria", "--base-url", "--model", "--output", "--judges"],
    ("chat",): ["--model"],
    ("report",): ["RUN_DIR", "--output", "--hf", "--evaluation"],
    ("convert_checkpoint", "average"): ["--checkpoints", "--weights", "--checkpoint"],
    ("benchmark",): ["blend", "unify", "index", "loader", "convert", "train", "start", "save"],
    ("benchmark", "blend"): ["--json"],
    ("benchmark", "compare"): ["A", "B", "--repeats"],
    ("benchmark", "start"): ["--documents", "--directory", "--json"],
    ("benchmark", "save"): ["--gigabytes", "--saves", "--json"],
    ("plan_run",): ["--config", "--gpu", "--gpus", "a100-80gb", "h100", "h200"],
    ("check_cluster",): ["--directory", "--device"],
    ("inspect_artifact",): ["PATH", "--number", "--verify"],
}


def ask_for_help(*command: str) -> subprocess.CompletedProcess[str]:
    tool, *subcommand = command
    return subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "tools" / f"{tool}.py"), *subcommand, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", FLAGS, ids=" ".join)
def test_help_names_every_promised_flag_without_loading_torch(command: tuple[str, ...]) -> None:
    done = ask_for_help(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    words = {word.strip("[](){},.;:").split("=")[0] for word in done.stdout.replace("{", " ").replace(",", " ").split()}
    assert [flag for flag in FLAGS[command] if flag not in words] == []
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & {"torch", "transformers", "megatron.core"}, "help must not wait for heavy packages"


def test_every_tool_is_in_the_list() -> None:
    assert {command[0] for command in FLAGS} == set(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_is_one_page_and_names_itself(tool: str) -> None:
    """A tool parses arguments and makes one call: the work lies in the package, where it is tested."""
    text = (ROOT / "tools" / f"{tool}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert 'if __name__ == "__main__":' in text and "exit_on_error" in text


@pytest.mark.parametrize("command", [("curate_corpus",), ("plan_run",), ("inspect_artifact",)], ids=" ".join)
def test_unknown_flag_is_an_error_that_names_it(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{command[0]}.py"), "--no-such-flag"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "--no-such-flag" in done.stderr + done.stdout
