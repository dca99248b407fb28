#!/usr/bin/env python3
"""A real pretrained model through the whole corridor: import, held-out loss, training with two ranks, export, chat.

SmolLM2-135M-Instruct learns the English passages of examples/one_stage_vs_two_stage/data in its own chat template, with which
it is exported again. Every step is one of the project's commands and is printed before it runs. Results go to runs/smollm2
below the working directory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from base_model import write_base_model

EXAMPLE = Path(__file__).resolve().parent
ROOT = EXAMPLE.parent.parent
DATA = ROOT / "examples" / "one_stage_vs_two_stage" / "data"
RUNS = Path("runs/smollm2")
SOURCES = ("web", "literature", "encyclopedia", "books")
QUESTION = "How should I rest before I measure my blood pressure at home?"


def run(title: str, tool: str, *arguments: str | Path, launcher: tuple[str, ...] = ()) -> str:
    """Show one step and run it, with its progress on stderr; returns what it said. A failure ends the example."""
    words = [*launcher, os.path.relpath(ROOT / "tools" / tool), *map(os.fspath, arguments)]
    print(f"\n── {title}\n   $ {' '.join(words)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    if done.returncode:
        sys.exit(f"smollm2: the step above failed with exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def english(source: str, split: str) -> Path:
    """The English records of a source's train or heldout part, in a file of their own."""
    records = map(json.loads, (DATA / f"{source}.jsonl").read_text("utf-8").splitlines())
    kept = [
        record
        for record in records
        if "-en-" in record["id"] and (record.get("metadata") or record["provenance"])["split"] == split
    ]
    path = RUNS / "data" / f"{source}-{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
    return path


def prepare_data() -> None:
    """Passages to pairs, indexes, general text as it is, and the blend."""
    for split in ("train", "heldout"):
        unified = RUNS / f"unified-{split}"
        run(
            f"Passages to pairs, {split}",
            *("unify_corpus.py", "--input", *(english(source, split) for source in SOURCES)),
            *("--output", unified, "--backend", "template"),
        )
        native = ("--chat-format", "native")
        files = dict.fromkeys(SOURCES, (unified / "conversations.jsonl", native))
        files["sft"] = (english("sft", split), native)
        files["general"] = (english("general", split), ("--format", "text"))
        for source, (path, form) in files.items():
            run(
                f"Tokenise {source}, {split}",
                *("preprocess_data.py", "--input", path, "--source", source, *form, "--workers", "1"),
                *("--output-prefix", RUNS / "index" / f"{source}-{split}", "--tokenizer", RUNS / "base"),
            )
    run(
        "Draw the priority order and pack rows",
        *("build_blend.py", "--config", EXAMPLE / "blend.yaml", "--output", RUNS / "blend"),
    )


def ask(model: Path) -> str:
    """The model's answer to QUESTION."""
    answer = run(f"Ask {model}", "chat.py", "--model", model, "--question", QUESTION, "--max-new-tokens", "60")
    return " ".join(answer.partition("\n")[2].split())  # the first line is the medical disclaimer


def train_and_export() -> None:
    """Two ranks, then a Hugging Face directory that is compared with the trained model."""
    run(
        "Train on two ranks",
        *("train.py", "--config", EXAMPLE / "train.yaml"),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    )
    run(
        "Export to Hugging Face and compare logits",
        *("convert_checkpoint.py", "export", "--checkpoint", RUNS / "train", "--hf", RUNS / "hf"),
        *("--base-hf", RUNS / "base", "--dtype", "float32"),
    )


def held_out_losses() -> dict[str, dict[str, Any]]:
    """{source: {base_loss, loss}} of the last checkpoint."""
    state = max((RUNS / "train" / "checkpoints").glob("iter_*/training.json"))
    return dict(json.loads(state.read_text("utf-8"))["forgetting"])


def summarise(before: str, after: str, seconds: float) -> None:
    """The closing table."""
    log = [json.loads(line) for line in (RUNS / "train" / "log.jsonl").read_text("utf-8").splitlines()]
    parity = json.loads((RUNS / "hf" / "manifest.json").read_text("utf-8"))["parity"]
    print("\n" + "═" * 100)
    print(f"{'held-out loss':>14}  {'before':>8}  {'after':>8}")
    for source, losses in held_out_losses().items():
        print(f"{source:>14}  {losses['base_loss']:8.3f}  {losses['loss']:8.3f}")
    print(
        f"\n{'training loss':>14}  {log[0]['lm_loss']:.2f} → {log[-1]['lm_loss']:.2f} in {log[-1]['iteration']} steps"
    )
    print(f"{'export':>14}  logits within {parity['max_logit_difference']:.1e} of the training model")
    print(f"{'time':>14}  {seconds / 60:.1f} minutes")
    print(f"\n{'Q':>14}  {QUESTION}\n{'before':>14}  {before}\n{'after':>14}  {after}")
    print("\nA check of the machinery on a very small model. Its output is no medical advice.")


def main() -> None:
    """All stages, then the table."""
    started = time.monotonic()
    if not (RUNS / "base" / "config.json").is_file():
        print("── SmolLM2-135M-Instruct to a Hugging Face directory", flush=True)
        write_base_model(RUNS / "base")
    for stage in ("data", "unified-train", "unified-heldout", "index", "blend", "checkpoint", "train", "hf"):
        shutil.rmtree(RUNS / stage, ignore_errors=True)
    prepare_data()
    run(
        "Import the weights into a checkpoint",
        *("convert_checkpoint.py", "import", "--hf", RUNS / "base", "--checkpoint", RUNS / "checkpoint"),
    )
    before = ask(RUNS / "base")
    train_and_export()
    summarise(before, ask(RUNS / "hf"), time.monotonic() - started)


if __name__ == "__main__":
    main()
