"""An exam as tasks of lm-evaluation-harness: YAML over local files, so that others can repeat a score with their own tool.

Invariant: the harness gets finished texts and does nothing to them, so both tools ask the same tokens. A task of log-likelihood
picks the option that `--scoring loglikelihood` picks; a task of generation gives the replies that are read here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_huatuo.evaluate.asked_exam import AskedExam, ExamSettings, open_exam
from megatron_huatuo.exams.likeliest_option import with_one_letter
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.jsonl import BadLines, write_jsonl
from megatron_huatuo.storage.manifest import describe_input, write_manifest


def export_tasks(
    questions: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: ExamSettings,
    max_new_tokens: int,
) -> list[str]:
    """Write one task of log-likelihood and one of generation for each exam of the files; returns their names.

    questions: files of exam questions (`read_questions`). output: a directory that does not exist; for `--include_path`.
    settings: which questions, in which words. max_new_tokens: of a generated reply.
    Raises: DataError for the questions and for an output that exists, ConfigError for the settings.
    """
    bad_lines = BadLines(settings.max_bad_lines)
    asked = open_exam(questions, settings, bad_lines)
    one_letter = set(with_one_letter(asked.questions))
    target, names = Path(output), []
    with atomic_directory(target) as folder:
        for exam in dict.fromkeys(question.exam for question in asked.questions):
            own = [number for number, question in enumerate(asked.questions) if question.exam == exam]
            scored = [_scored_record(asked, number) for number in own if number in one_letter]
            replied = [_replied_record(asked, number) for number in own]
            tasks = {f"huatuo_{exam}_loglikelihood": (scored, _LIKELIHOOD)} if scored else {}
            generation = {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens}
            tasks[f"huatuo_{exam}_generation"] = (replied, {**_GENERATION, "generation_kwargs": generation})
            for name, (records, content) in tasks.items():
                write_jsonl(folder / f"{name}.jsonl", records)
                data = {"data_files": {"test": os.fspath(target.resolve() / f"{name}.jsonl")}}
                task = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **content}
                (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True), "utf-8")
                names.append(name)
        files = [f"{name}{suffix}" for name in names for suffix in (".jsonl", ".yaml")]
        about = {
            "questions": [describe_input(path) for path in questions],
            "left_out": len(asked.questions) - len(one_letter),
            "bad_lines": [bad._asdict() for bad in bad_lines.lines],
        }
        write_manifest(folder, "harness_tasks", about, files)
    return names


_COMMON: dict[str, Any] = {"num_fewshot": 0, "metadata": {"version": 1.0}}
_LIKELIHOOD: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    **_COMMON,
}
_GENERATION: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "prompt",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "bypass", "aggregation": "bypass"}],
    **_COMMON,
}


def _scored_record(asked: AskedExam, number: int) -> dict[str, Any]:
    question = asked.questions[number]
    context, choices = asked.option_texts(question)
    letters = list(choices)
    return {
        "id": question.id,
        "context": context,
        "choices": [*choices.values()],
        "letters": letters,
        "gold": letters.index(question.answer),
    }


def _replied_record(asked: AskedExam, number: int) -> dict[str, Any]:
    question = asked.questions[number]
    return {"id": question.id, "prompt": asked.prompt(question), "answer": question.answer}
