#!/usr/bin/env python3
"""The whole corridor on the bundled sample: raw text → pairs → tokens → blend → training → Hugging Face model → exam.

Every step is one of the project's commands and is printed before it runs, so that it can be repeated by hand. Results go
to runs/demo below the working directory; finished data stages are done again (they take seconds), training resumes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parent
ROOT = EXAMPLE.parent.parent
DATA = EXAMPLE / "data"
DEMO = Path("runs/demo")
RESULTS = {
    "corpus": "documents.jsonl, and report.json: what was dropped and why",
    "unified": "conversations.jsonl: the question-answer pairs",
    "index": "tokens of every source, and the tokenizer",
    "blend": "schedule.png: the mixture over the run",
    "train": "log.jsonl: loss by source at every step; tensorboard --logdir here",
    "hf": "the model for transformers, README.md is its card",
    "evaluation": "scores.json, replies.jsonl: the exam; answers.json: the two questions above",
    "report": "index.html: one page about all of it, for a browser",
}
SOURCES = ("web", "literature", "encyclopedia", "books")


def run(title: str, *command: str | Path) -> None:
    """Show one step and run it; a failure ends the demo with its exit code."""
    words = [os.fspath(word) for word in command]
    print(f"\n── {title}\n   $ {shlex.join([os.path.relpath(sys.executable), *words])}", flush=True)
    code = subprocess.run([sys.executable, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
    if code:
        sys.exit(f"demo: the step above failed with exit code {code}")


def tool(name: str) -> Path:
    """Path of a tool, short where the demo runs inside the checkout."""
    path = ROOT / "tools" / name
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def prepare_data() -> None:
    """Corpus, pairs, tokenizer, indexes, blend."""
    for stage in ("corpus", "unified"):
        shutil.rmtree(DEMO / stage, ignore_errors=True)
    inputs = [DATA / f"{source}.jsonl" for source in SOURCES]
    corpus, pairs = DEMO / "corpus", DEMO / "unified" / "conversations.jsonl"
    limits = ["--max-characters-zh", "110", "--max-words-en", "55"]
    run(
        "Clean and segment the raw documents", tool("curate_corpus.py"), "--input", *inputs, "--output", corpus, *limits
    )
    run(
        "Rewrite every passage as a question and its answer",
        *(tool("unify_corpus.py"), "--input", corpus / "documents.jsonl"),
        *("--output", DEMO / "unified", "--backend", "template"),
    )
    tokenizer = DEMO / "index" / "tokenizer"
    shutil.rmtree(tokenizer, ignore_errors=True)
    run(
        "Train a small tokenizer",
        *(tool("train_tokenizer.py"), "--input", pairs, DATA / "sft.jsonl", "--output", tokenizer),
        *("--vocab-size", "3072"),
    )
    for source in (*SOURCES, "sft"):
        run(
            f"Tokenise {source}",
            *(tool("preprocess_data.py"), "--input", DATA / "sft.jsonl" if source == "sft" else pairs),
            *("--source", source, "--output-prefix", DEMO / "index" / source, "--tokenizer", tokenizer),
        )
    run(
        "Draw the priority order and pack rows",
        *(tool("build_blend.py"), "--config", EXAMPLE / "blend.yaml", "--output", DEMO / "blend"),
    )


def blend_has_changed() -> bool:
    """Whether an earlier demo's training used another blend than the one that lies there now."""
    noted, now = DEMO / "train" / "blend_manifest.json", DEMO / "blend" / "manifest.json"
    changed = not noted.is_file() or json.loads(noted.read_text("utf-8")) != json.loads(now.read_text("utf-8"))
    return (DEMO / "train").exists() and changed


def train_and_export() -> None:
    """Two ranks (data parallel), then a Hugging Face directory that is compared with the trained model."""
    import torch

    if blend_has_changed():
        print("\n── The blend changed since the last demo: training begins again", flush=True)
        shutil.rmtree(DEMO / "train")
    (DEMO / "train").mkdir(exist_ok=True)
    shutil.copyfile(DEMO / "blend" / "manifest.json", DEMO / "train" / "blend_manifest.json")
    ranks = min(2, torch.cuda.device_count()) if torch.cuda.is_available() else 2
    run(
        f"Train on {ranks} ranks",
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)),
        *(tool("train.py"), "--config", EXAMPLE / "train.yaml"),
    )
    shutil.rmtree(DEMO / "hf", ignore_errors=True)
    run(
        "Export to Hugging Face and compare logits",
        *(tool("convert_checkpoint.py"), "export", "--checkpoint", DEMO / "train", "--hf", DEMO / "hf"),
        *("--dtype", "float32"),
    )


def evaluate() -> None:
    """The bundled exam, by generation."""
    shutil.rmtree(DEMO / "evaluation", ignore_errors=True)
    run(
        "Sit the exam",
        *(tool("evaluate.py"), "exam", "--model", DEMO / "hf", "--questions", DATA / "exam.jsonl"),
        *("--output", DEMO / "evaluation", "--max-new-tokens", "96"),
    )


def report() -> None:
    """One page about the run, its export and its exam."""
    (DEMO / "report").mkdir(exist_ok=True)
    run(
        "Write one page about all of it",
        *(tool("report.py"), DEMO / "train", "--output", DEMO / "report" / "index.html"),
        *("--hf", DEMO / "hf", "--evaluation", DEMO / "evaluation"),
    )


def character_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over characters, blanks left out."""
    got, want = Counter("".join(answer.split())), Counter("".join(reference.split()))
    common = sum((got & want).values())
    return 2 * common / (sum(got.values()) + sum(want.values()))


def ask_questions() -> list[dict[str, Any]]:
    """The first two SFT questions, the model's greedy answers, and how close they come to the taught ones."""
    taught = [json.loads(line)["conversations"] for line in (DATA / "sft.jsonl").read_text("utf-8").splitlines()[:2]]
    asked = []
    for question, reference in ((turns[0]["value"], turns[1]["value"]) for turns in taught):
        command = [sys.executable, tool("chat.py"), "--model", DEMO / "hf", "--question", question]
        command += ["--max-new-tokens", "96"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            sys.exit(f"demo: asking the model failed\n{done.stderr}")
        answer = done.stdout.partition("\n")[2].strip()  # the first line is the medical disclaimer
        asked.append(
            {"question": question, "answer": answer, "taught": reference, "f1": character_f1(answer, reference)}
        )
    (DEMO / "evaluation" / "answers.json").write_text(json.dumps(asked, ensure_ascii=False, indent=2), "utf-8")
    return asked


def count_reasons(path: Path) -> str:
    """Rejected records by reason, for the table."""
    reasons = Counter(json.loads(line)["reason"].split(":")[0] for line in path.read_text("utf-8").splitlines())
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"


def summarise(asked: list[dict[str, Any]], seconds: float) -> None:
    """The closing table."""
    documents = sum(len((DATA / f"{source}.jsonl").read_text("utf-8").splitlines()) for source in SOURCES)
    pairs = len((DEMO / "unified" / "conversations.jsonl").read_text("utf-8").splitlines())
    blend = json.loads((DEMO / "blend" / "manifest.json").read_text("utf-8"))
    log = [json.loads(line) for line in (DEMO / "train" / "log.jsonl").read_text("utf-8").splitlines()]
    scores = json.loads((DEMO / "evaluation" / "scores.json").read_text("utf-8"))
    rows = [
        ("documents in", f"{documents:,}; dropped: {count_reasons(DEMO / 'corpus' / 'rejected.jsonl')}"),
        ("pairs kept", f"{pairs:,}; rejected: {count_reasons(DEMO / 'unified' / 'rejected.jsonl')}"),
        ("tokens drawn", f"{blend['tokens']:,} in {blend['rows']:,} rows, {blend['padding_fraction']:.1%} padding"),
        ("training loss", f"{log[0]['lm_loss']:.2f} → {log[-1]['lm_loss']:.2f} in {log[-1]['iteration']} steps"),
        (
            "exam score",
            f"{scores['accuracy']:.1%} of {scores['count']} questions (chance {scores['chance']:.1%}, "
            f"{scores['unparsed']} replies without an answer)",
        ),
        ("time", f"{seconds / 60:.1f} minutes"),
    ]
    print("\n" + "═" * 100)
    for name, value in rows:
        print(f"{name:>14}  {value}")
    for item in asked:
        print(
            f"\n             Q  {item['question']}\n             A  {item['answer']}   (character F1 {item['f1']:.2f})"
        )
    print("\nThe toy model learns its sample by heart: a check of the machinery. Its output is no medical advice.\n")
    for folder, look_at in RESULTS.items():
        print(f"{DEMO / folder!s:>22}/  {look_at}")
    question = asked[0]["question"]
    python = os.path.relpath(sys.executable)
    print(f"\nAsk it something:\n  {python} {tool('chat.py')} --model {DEMO / 'hf'} --question '{question}'")
    print(
        f"Begin with your own files (JSON Lines of id, source, language, title, text):\n"
        f"  {python} {tool('curate_corpus.py')} --input 'my_texts/*.jsonl' --output runs/mine/corpus"
    )


def main() -> None:
    """All stages, then the table."""
    started = time.monotonic()
    prepare_data()
    train_and_export()
    evaluate()
    report()
    summarise(ask_questions(), time.monotonic() - started)


if __name__ == "__main__":
    main()
