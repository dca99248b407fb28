"""What the gates at their defaults find in 200 real abstracts with planted faults, and what they refuse in faithful text.

The table of docs/corpus_and_unification.md: run with `-s` to print it. A pair of the template backend repeats the
abstract; people's own summaries (the title; the title and the last sentence) stand for answers in other words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.records import Document, parse_document
from megatron_huatuo.text.sentences import split_sentences
from megatron_huatuo.unify import QualitySettings
from megatron_huatuo.unify.gates import Gates, measure_support
from megatron_huatuo.unify.gates_support import content_pieces, share_supported
from megatron_huatuo.unify.writers.writer_template import template_question

ABSTRACTS = Path(__file__).parents[4] / "shared" / "data" / "pubmed_abstracts_200.jsonl"
pytestmark = pytest.mark.skipif(not ABSTRACTS.is_file(), reason=f"real abstracts are not here: {ABSTRACTS.name}")
NUMBER = re.compile(r"(?<![\w.,])\d+(?:\.\d+)?(?![\w,.]*\d)")
DOSE = re.compile(r"(?<![\w.,])(\d+(?:\.\d+)?)(?=\s?(?:mg|g|kg|ml|mL|%|mmol|hours?|days?|weeks?|months?|years?)\b)")


@pytest.fixture(scope="module")
def abstracts() -> list[Document]:
    return [parse_document(line.record, "") for line in read_jsonl(ABSTRACTS)]


def change_digit(pattern: re.Pattern[str], text: str, choose: random.Random) -> str | None:
    """One digit of one number is another one now."""
    found = list(pattern.finditer(text))
    if not found:
        return None
    number = choose.choice(found)
    place = choose.choice([i for i in range(number.start(), number.end()) if text[i].isdigit()])
    other = choose.choice([digit for digit in "123456789" if digit != text[place]])
    return text[:place] + other + text[place + 1 :]


def foreign_sentence(text: str, other: str, choose: random.Random) -> str | None:
    """A sentence of another abstract stands inside."""
    long_ones = [s for s in split_sentences(other) if len(content_pieces(s, "en")) >= 8 and not NUMBER.search(s)]
    if not long_ones:
        return None
    sentences = split_sentences(text)
    sentences.insert(choose.randrange(1, len(sentences) + 1), f" {choose.choice(long_ones).strip()} ")
    return "".join(sentences)


def keep(share: float, text: str) -> str | None:
    """The first sentences."""
    sentences = split_sentences(text)
    return "".join(sentences[: max(1, round(share * len(sentences)))]) if len(sentences) >= 5 else None


def refused(
    documents: list[Document], answer_of: Callable[[int, Document], str | None], gates: Gates
) -> tuple[int, int]:
    """(answers refused by what checks against the passage, answers made)."""
    count = total = 0
    for index, document in enumerate(documents):
        if (answer := answer_of(index, document)) is not None:
            reason = gates._refuse_unsupported(answer, template_question(document), document, "en")
            count, total = count + (reason is not None), total + 1
    return count, total


@pytest.mark.slow
def test_precision_and_recall_of_planted_faults_at_the_defaults(abstracts):
    choose = random.Random(5)

    def other(index: int) -> str:
        return abstracts[(index + 37) % len(abstracts)].text

    kinds = {
        "faithful: the abstract": (lambda i, d: d.text, False),
        "faithful: title and last sentence": (lambda i, d: f"{d.title} {split_sentences(d.text)[-1]}", False),
        "number changed in one digit": (lambda i, d: change_digit(NUMBER, d.text, choose), True),
        "dose, share or duration changed in one digit": (lambda i, d: change_digit(DOSE, d.text, choose), True),
        "sentence of another abstract inserted": (lambda i, d: foreign_sentence(d.text, other(i), choose), True),
        "another abstract": (lambda i, d: other(i), True),
        "four fifths dropped": (lambda i, d: keep(0.2, d.text), True),
        "half dropped": (lambda i, d: keep(0.5, d.text), True),
    }
    gates = Gates(QualitySettings())
    found = {name: refused(abstracts, answer_of, gates) for name, (answer_of, _) in kinds.items()}
    for name, (count, total) in found.items():
        print(f"| {name} | {count} of {total} | {count / total:.3f} |")
    wrongly = sum(count for name, (count, _) in found.items() if name.startswith("faithful"))
    for name in list(kinds)[2:]:
        count = found[name][0]
        print(f"{name}: precision {count / max(1, count + wrongly):.3f}")

    def rate(name: str) -> float:
        return found[name][0] / found[name][1]

    assert rate("faithful: the abstract") == 0 and rate("faithful: title and last sentence") <= 0.05
    assert rate("number changed in one digit") >= 0.75  # the rest are names: 3D, IL-7, 16S
    assert rate("dose, share or duration changed in one digit") >= 0.8
    assert rate("sentence of another abstract inserted") >= 0.85
    assert rate("another abstract") == 1
    # Half an abstract covers more than people's own summaries do: no threshold tells the two apart.
    assert rate("half dropped") <= 0.05


def test_the_default_thresholds_lie_between_faithful_and_foreign_text(abstracts):
    """A title summarises its own abstract in other words; the next abstract's title does not."""
    limits = QualitySettings()
    own, foreign, sentences, coverage = [], [], [], []
    for index, document in enumerate(abstracts):
        another = abstracts[(index + 37) % len(abstracts)]
        passage = Document("p", "s", "en", document.text)
        own.append(measure_support(document.title, "", passage, "en")[0])
        foreign.append(measure_support(another.text, "", passage, "en")[0])
        pieces = [content_pieces(sentence, "en") for sentence in split_sentences(another.text)]
        by = content_pieces(document.text, "en")
        sentences += [share_supported(found, by) for found in pieces if len(found) >= 6]
        last = split_sentences(document.text)[-1]
        coverage.append(measure_support(last, document.title, passage, "en")[1])

    def below(values: list[float], limit: float) -> float:
        return sum(value < limit for value in values) / len(values)

    for name, values in (("title", own), ("another abstract", foreign), ("foreign sentence", sentences)):
        shown = ", ".join(f"{below(values, limit):.3f} below {limit}" for limit in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4))
        print(f"faithfulness of {name}: {shown}")
    print("coverage of title and last sentence:", {limit: below(coverage, limit) for limit in (0.05, 0.1, 0.15, 0.2)})
    assert below(own, limits.min_faithfulness) <= 0.01 and below(foreign, limits.min_faithfulness) == 1
    assert below(own, limits.min_sentence_faithfulness) <= 0.01
    assert below(sentences, limits.min_sentence_faithfulness) >= 0.9
    assert below(coverage, limits.min_coverage) <= 0.03
