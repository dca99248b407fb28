"""What an exam format says of itself: how its files look, how a question is asked, and how an answer is scored.

Invariant: a format knows its own files and nothing of models. What every exam shares (ids, checks, sampling, scoring) is
done outside, once.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.record_files import csv_reader, read_records
from megatron_huatuo.storage.records import Question
from megatron_huatuo.storage.text_files import open_binary

CSV_SUFFIXES = (".csv", ".csv.gz")
_RECIPE_INSTRUCTION = {"zh": "请回答下面选择题。", "en": "Please answer the following multiple-choice question."}
_SINGLE_CHOICE = re.compile(r"单选|单项|最佳选择|^\s*[AＡ][1-4]|\bsingle\b", re.IGNORECASE)
ANSWER_TAG = {"zh": "答案：", "en": "Answer:"}


@dataclass(frozen=True)
class ExamQuestion(Question):
    """A question and where it comes from. exam: name of its format. subset: part of the exam ("anatomy"), if it has any."""

    exam: str = "own"
    subset: str | None = None


class FileHead(NamedTuple):
    """The beginning of a question file: all that a format is recognised by.

    columns: the first line of a CSV file; empty for JSON. record: the first object of a JSON file; None for CSV.
    """

    path: Path
    columns: tuple[str, ...]
    record: Any


class QuestionPlace(NamedTuple):
    """Where a record stands: file, and number of the record from 1. Its text goes into messages."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"


class ExamFormat:
    """One exam format. A subclass states the facts below and says how a record becomes questions.

    Prompts come in two forms: `prompt` is a request to a model that chats, `completion` a text that a model continues with
    the answer. Both are the ones published with the exam.
    """

    name: str
    """What --format calls it"""
    title: str
    """What a table calls it"""
    language: str = "zh"
    """zh or en: language of the prompt and of the words around it"""
    obtain: str
    """One sentence: where people get the real exam"""
    mean_over: str = "questions"
    """What the published score is the mean of: "questions", or "subsets" where each subset counts alike"""
    few_shot_rule: str = "sample"
    """How examples are chosen: "first" takes the first ones of the subset, "sample" draws them by the seed"""
    subsets: ClassVar[Mapping[str, str]] = {}
    """{subset: its name in the prompt}, where the exam is cut into subsets; only these are medical"""

    def language_of(self, question: ExamQuestion) -> str:
        """zh or en: the language that this question is asked in."""
        return self.language

    def stem(self, question: ExamQuestion) -> str:
        """The words that tell whether the right option or the wrong one is asked for; the reader of replies needs them."""
        return question.question

    def recognises(self, head: FileHead) -> bool:
        """Whether a file that begins like this is in this format."""
        raise NotImplementedError

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """The questions of one record. Raises: DataError naming key and place."""
        raise NotImplementedError

    def read(
        self, path: Path, bad_lines: BadLines, answer_key: Mapping[str, Any] | None = None
    ) -> Iterator[ExamQuestion]:
        """The questions of one file, in order. Bad records are counted in `bad_lines`.

        answer_key: {id: answer} of a file of its own; then only the questions in it are given, with its answers.
        """
        yield from self.parse_all(self.records(path, bad_lines), path, bad_lines, answer_key)

    def records(self, path: Path, bad_lines: BadLines) -> Iterable[tuple[int, Any]]:
        """(number, record) of one file, ready for `parse`."""
        return read_raw(path, bad_lines)

    def of_subject(
        self, place: QuestionPlace, number: object, question: str, options: Iterable[str], answer: str
    ) -> ExamQuestion:
        """A question of a file whose name is its subject; number: its own in the file."""
        subject = subject_of(place.path)
        return ExamQuestion(
            id=f"{subject}-{number}",
            question=question,
            option=lettered_options(options),
            answer=answer,
            source=self.title,
            exam=self.name,
            subset=subject,
        )

    def answer_from_key(self, value: Any, place: QuestionPlace) -> str:
        """The letters of an answer in an answer key. Raises: DataError naming the place."""
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"wrong value of 'answer': got {value!r} in the answer key, need letters ({place})")
        return value.strip()

    def parse_all(
        self,
        records: Iterable[tuple[int, Any]],
        path: Path,
        bad_lines: BadLines,
        answer_key: Mapping[str, Any] | None = None,
    ) -> Iterator[ExamQuestion]:
        """The questions of numbered records; one that does not parse, or cannot be answered, costs only itself."""
        first_place: dict[tuple[str | None, str], QuestionPlace] = {}
        for number, raw in records:
            place = QuestionPlace(path, number)
            try:
                questions = self.parse(raw, place)
            except DataError as error:
                bad_lines.add_error(path, number, error)
                continue
            for question in questions:
                try:
                    if answer_key is not None:
                        if question.id not in answer_key:
                            continue
                        question = replace(question, answer=self.answer_from_key(answer_key[question.id], place))
                    check_answerable(question, place)
                    if (first := first_place.setdefault((question.source, question.id), place)) is not place:
                        raise DataError(
                            f"repeated id: got {question.id!r} again, first at {first}, need each once ({place})"
                        )
                except DataError as error:
                    bad_lines.add_error(path, number, error)
                    continue
                yield question

    def block(self, question: ExamQuestion) -> str:
        """The question with its options, one a line; options without text are left out."""
        kind = f"[{question.question_type}]" if question.question_type else ""
        return "\n".join([f"{kind}{question.question}", *option_lines(question.option)])

    def instruction(self, question: ExamQuestion) -> str:
        """What stands before the question, and before the examples."""
        return _RECIPE_INSTRUCTION[self.language_of(question)]

    def prompt(self, question: ExamQuestion, examples: Sequence[ExamQuestion] = ()) -> str:
        """The request to a model that chats. Without examples it is the zero-shot prompt of the recipe."""
        if not examples:
            return f"{self.instruction(question)}\n{self.block(question)}"
        return self.completion(question, examples)

    def completion(
        self, question: ExamQuestion, examples: Sequence[ExamQuestion] = (), *, by_text: bool = False
    ) -> str:
        """A text that goes on with one of `choices`: the instruction, the examples with their answers, the question.

        by_text: the options are not shown, since their texts are what goes on.
        """
        tag = ANSWER_TAG[self.language_of(question)]
        blocks = {id(q): q.question if by_text else self.block(q) for q in (*examples, question)}
        solved = [
            f"{blocks[id(example)]}\n{tag}{self.choices(example, by_text=by_text)[example.answer]}"
            for example in examples
        ]
        return "\n\n".join([self.instruction(question), *solved, f"{blocks[id(question)]}\n{tag}"])

    def choices(self, question: ExamQuestion, *, by_text: bool = False) -> dict[str, str]:
        """{answer: how it goes on after `completion`}: letters, or the options' texts; a blank before them in English.

        The right answer is always among them, also where it has several letters (examples are shown with it).
        """
        blank, option = " " if self.language_of(question) == "en" else "", filled_options(question.option)
        letters = dict.fromkeys([*option, question.answer])
        texts = {letter: "、".join(option[part] for part in letter) if by_text else letter for letter in letters}
        return {letter: f"{blank}{text}" for letter, text in texts.items()}


def check_answerable(question: Question, place: QuestionPlace) -> None:
    """Refuse a question that nobody can answer rightly. Raises: DataError naming the place.

    The answer must be letters of the options in alphabetical order, the right options must have a text, two options at
    least, and a single-choice question one right letter.
    """
    filled = filled_options(question.option)
    letters = "".join(question.option)
    if not question.answer:
        raise DataError(f"no answer: the exam keeps its answers elsewhere; name their file with --answer-key ({place})")
    if question.answer != "".join(sorted(set(question.answer))) or any(k not in letters for k in question.answer):
        raise DataError(
            f"wrong value of 'answer': got {question.answer!r}, need letters of {letters} in alphabetical order ({place})"
        )
    if blank := [letter for letter in question.answer if letter not in filled]:
        raise DataError(f"right option is blank: got no text under {', '.join(blank)}, need text ({place})")
    if len(filled) < 2:
        raise DataError(f"missing options: got {len(filled)} with a text, need at least two ({place})")
    if len(question.answer) > 1 and question.question_type and _SINGLE_CHOICE.search(question.question_type):
        raise DataError(
            f"{len(question.answer)} right letters in a single-choice question: got {question.answer!r} under "
            f"{question.question_type!r}, need one ({place})"
        )


def filled_options(option: Mapping[str, str]) -> dict[str, str]:
    """The options that have a text; published exams pad the others with empty ones."""
    return {letter: text for letter, text in option.items() if text.strip()}


def option_lines(option: Mapping[str, str]) -> list[str]:
    """ "A. text" of each option that has a text."""
    return [f"{letter}. {text}" for letter, text in filled_options(option).items()]


def read_raw(path: Path, bad_lines: BadLines) -> Iterator[tuple[int, Any]]:
    """(number, record) of a JSON Lines, JSON or CSV file; a record of a CSV file is a dict of its header's columns.

    Raises: DataError naming file and line for text that is not UTF-8.
    """
    if path.name.endswith(CSV_SUFFIXES):
        rows = read_csv_rows(path)
        header = next(rows, None)
        for number, row in enumerate(rows, start=2):
            if header is not None and len(row) != len(header):
                bad_lines.add(path, number, f"wrong number of columns: got {len(row)}, need {len(header)}")
            elif header is not None:
                yield number, dict(zip(header, row, strict=True))
        return
    yield from read_records(path, _with_number, bad_lines)


def _with_number(raw: Any, where: str) -> list[tuple[int, Any]]:
    return [(int(where.rpartition(":")[2]), raw)]


def read_csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV file in UTF-8 (`.gz` too), header included, blank rows left out; a cell may hold line breaks."""
    with open_binary(path) as handle:
        raw = handle.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"invalid UTF-8: byte {error.start} ({path}:{line}). If it is GB18030, convert it first: "
            "iconv -f GB18030 -t UTF-8 IN > OUT."
        ) from error
    try:
        yield from filter(None, csv_reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise DataError(f"not CSV: {error} ({path}). Save it again as CSV in UTF-8.") from error


def text_of(record: Mapping[str, Any], key: str, place: QuestionPlace) -> str:
    """The text under a key, ends trimmed. Raises: DataError when it is missing, no text, or blank."""
    value = record.get(key)
    if not isinstance(value, str):
        got = "nothing" if key not in record else type(value).__name__
        raise DataError(f"wrong value of {key!r}: got {got}, need text ({place})")
    if not value.strip():
        raise DataError(f"blank {key!r}: need text ({place})")
    return value.strip()


def lettered_options(texts: Iterable[Any]) -> dict[str, str]:
    """{"A": first text, …}. Blank ones keep their letter.

    >>> lettered_options(["yes", " no "])
    {'A': 'yes', 'B': 'no'}
    """
    return {chr(65 + number): str(text).strip() for number, text in enumerate(texts)}


def has_han(text: str) -> bool:
    """Whether a text holds Chinese characters."""
    return re.search("[\u3400-\u9fff]", text) is not None


def subject_of(path: Path) -> str:
    """The subject that a file of a subject is named after: "anatomy" of `anatomy_test.csv` and `anatomy.csv`."""
    return re.sub(r"_(?:test|val|dev|train)$", "", path.name.split(".")[0])


def letter_of(number: Any, letters: str, place: QuestionPlace, key: str = "answer") -> str:
    """The letter of an answer given as a number from 0. Raises: DataError when there is no such option."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(letters):
        raise DataError(f"wrong value of {key!r}: got {number!r}, need a number from 0 to {len(letters) - 1} ({place})")
    return letters[number]
