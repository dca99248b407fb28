"""A small exam while a run goes on: the ranks that train say which option of each question they find likeliest.

Invariant: it asks what `tools/evaluate.py exam --scoring loglikelihood` asks of the exported model, and changes no weight.
Each option with its question is a document of a packed row, and each is a source of its own to the loss, so that the sums of
`run_microbatches` are the options' log-likelihoods on any layout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from megatron_huatuo.blend import pack_rows
from megatron_huatuo.dataset.batch import build_batch
from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.dataset.row import Row, empty_row
from megatron_huatuo.dataset.row_block import stack_rows
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.exams.exam_format import filled_options
from megatron_huatuo.exams.likeliest_option import likeliest, option_texts, part_tokens, with_one_letter
from megatron_huatuo.exams.questions import chance_level, read_questions, select_questions
from megatron_huatuo.index.tokenizer import Tokenizer
from megatron_huatuo.train.setup import Training
from megatron_huatuo.train.step import run_microbatches
from megatron_huatuo.train.train_config import ExamInTraining

_MOST_OPTIONS = np.iinfo(np.int16).max  # `Row.source_of_token` numbers them


class AskedQuestion(NamedTuple):
    """A question with one right letter. options: numbers of its options among those of the exam."""

    id: str
    letters: tuple[str, ...]
    answer: str
    options: range
    chance: float


class SmallExam:
    """The questions as token rows, options in file order.

    questions: all that are asked. left_out: those that ask for several letters, or are longer than a row.
    """

    def __init__(self, settings: ExamInTraining, tokenizer: Tokenizer, seq_length: int) -> None:
        """Read, choose and encode the questions. Raises: ConfigError and DataError for files that hold none to ask."""
        chosen = select_questions(read_questions(settings.questions), limit=settings.limit)
        asked = [
            (question, option_texts(question)) for question in (chosen[index] for index in with_one_letter(chosen))
        ]
        if (count := sum(len(choices) for _, (_, choices) in asked)) > _MOST_OPTIONS:
            raise ConfigError(
                f"too many questions for logging.exam: got {len(asked)} with {count:,} options, need at most {_MOST_OPTIONS:,} "
                "options. Set logging.exam.limit."
            )
        self.questions: list[AskedQuestion] = []
        self._seq_length, self._pad_id = seq_length, tokenizer.eos_id
        self._documents: list[tuple[np.ndarray, int]] = []  # (tokens, those of the context among them)
        for question, (context, choices) in asked:
            parted = [part_tokens(tokenizer.encode, context, text) for text in choices.values()]
            if max(len(before) + len(after) - 1 for before, after in parted) > seq_length:
                continue
            options = range(len(self._documents), len(self._documents) + len(parted))
            chance = chance_level(len(filled_options(question.option)), 0)
            self.questions.append(AskedQuestion(question.id, tuple(choices), question.answer, options, chance))
            self._documents += [(np.array(before + after, np.int64), len(before)) for before, after in parted]
        self.left_out = len(chosen) - len(self.questions)
        if not self.questions:
            raise DataError(
                f"no question for logging.exam: all {len(chosen)} ask for several letters or are longer than {seq_length} "
                f"tokens ({', '.join(settings.questions)}). Give questions with one right letter."
            )
        lengths = np.array([len(tokens) - 1 for tokens, _ in self._documents])
        self._order, self._row_start = pack_rows(lengths, seq_length, 1)

    def __len__(self) -> int:
        return len(self._row_start) - 1

    def row(self, row: int) -> Row:
        """Row number `row`, its options as sources; beyond the last one, an empty row."""
        filled = empty_row(self._seq_length, self._pad_id)
        if row >= len(self):
            return filled
        bounds = [0]
        for option in self._order[self._row_start[row] : self._row_start[row + 1]].tolist():
            tokens, context = self._documents[option]
            start, end = bounds[-1], bounds[-1] + len(tokens) - 1
            filled.tokens[start:end], filled.labels[start:end] = tokens[:-1], tokens[1:]
            filled.loss_mask[start + context - 1 : end] = 1
            filled.source_of_token[start:end] = option
            bounds.append(end)
        if bounds[-1] < self._seq_length:
            bounds.append(self._seq_length)
        return Row(filled.tokens, filled.labels, filled.loss_mask, np.array(bounds, np.int32), filled.source_of_token)

    def likelihoods(self, training: Training, layout: BatchLayout, device: torch.device) -> list[float]:
        """Log-likelihood of each option; all ranks take part, data-parallel ones with different rows, and get all."""
        own = _small_layout(layout, len(self), len(training.wrapped) > 1)
        total = torch.zeros(len(self._documents), dtype=torch.float64, device=device)
        for chunk in training.wrapped:
            chunk.eval()
        with torch.no_grad():
            for start in range(0, len(self), own.global_batch_size):
                batches = [
                    build_batch(stack_rows([self.row(row) for row in own.rows(start, m)]), device)
                    for m in range(own.num_microbatches)
                ]
                sums = run_microbatches(training, batches, len(self._documents), forward_only=True)
                total -= sums[:, 0].sum(dim=0)
        for chunk in training.wrapped:
            chunk.train()
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def picked(self, likelihoods: list[float]) -> list[str]:
        """The likeliest letter of each question."""
        return [likeliest(q.letters, [likelihoods[option] for option in q.options]) for q in self.questions]

    def score(self, likelihoods: list[float]) -> dict[str, float]:
        """For the log: accuracy, questions that were asked, those of them that are right, and the level of chance."""
        count = len(self.questions)
        right = sum(
            letter == question.answer for letter, question in zip(self.picked(likelihoods), self.questions, strict=True)
        )
        chance = sum(question.chance for question in self.questions) / count
        return {"accuracy": right / count, "correct": right, "count": count, "chance": chance}


def _small_layout(layout: BatchLayout, rows: int, interleaved: bool) -> BatchLayout:
    """As many micro-batches as the rows fill, at most those of a training step; virtual stages need a step's number."""
    per_microbatch = layout.micro_batch_size * layout.data_parallel_size
    wanted = layout.num_microbatches if interleaved else min(layout.num_microbatches, -(-rows // per_microbatch))
    return BatchLayout(
        wanted * per_microbatch, layout.micro_batch_size, layout.data_parallel_rank, layout.data_parallel_size
    )
