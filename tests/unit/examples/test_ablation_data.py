"""The sample of the comparison of one stage with two keeps the promises of its README, read with the project's readers."""

import collections
import pathlib
import re

import numpy as np
import pytest

from megatron_huatuo.corpus.contamination import ExamIndex
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import parse_document, parse_questions
from megatron_huatuo.text.minhash import signature

DATA = pathlib.Path(__file__).parents[3] / "examples" / "one_stage_vs_two_stage" / "data"
MEDICAL = ("web", "literature", "encyclopedia", "books")
SOURCES = (*MEDICAL, "general")
SINGLE_TYPES = {"zh": "最佳选择题", "en": "single choice"}
MULTIPLE_TYPES = {"zh": "多项选择题", "en": "multiple choice"}
PRACTICE_PROMPT = re.compile(
    r"请回答下面选择题。\n\[(?P<type>[^\]\n]+)\](?P<question>[^\n]+)\n(?P<options>[^\n]+(?:\n[^\n]+)+)"
)
OPTION_LINE = re.compile(r"([A-E])\. (\S.*)")
FINAL_LETTERS = re.compile(r"[^\n]+(?:。因此答案是([A-E]{1,4})。|\. Therefore the answer is ([A-E]{1,4})\.)")


def read(name, parse):
    """Every record of one file by the project's reader, which stops at the first bad line."""
    return list(read_records(DATA / f"{name}.jsonl", parse))


def number(identifier):
    """The running number that ends an id."""
    return int(identifier.rsplit("-", 1)[1])


def language(identifier):
    """The language in an id such as web-zh-001 or exam-en-001."""
    return identifier.split("-")[1]


def length_and_limit(text, *, chinese, english):
    """Characters and their limit for Chinese, words and theirs for English."""
    return (len(text), chinese) if re.search("[\u4e00-\u9fff]", text) else (len(text.split()), english)


def sentences(text):
    """Sentences of a passage. An English full stop counts only before white space or the end."""
    return re.findall(r"[^。！？]+[。！？]" if "。" in text else r".+?[.!?](?=\s|$)", text)


DOCUMENTS = {s: read(s, lambda raw, where: [parse_document(raw, where)]) for s in SOURCES}
PASSAGES = {document.id: document for source in SOURCES for document in DOCUMENTS[source]}
SFT = read("sft", parse_conversations)
EXAM = read("exam", parse_questions)
# The reader leaves out keys that are no part of a question; the passage is one of them.
PASSAGE_OF = dict(read("exam", lambda raw, where: [(raw["id"], raw["passage"])]))
PRACTICE = [c for c in SFT if c.turns[0].value.startswith("请回答下面选择题。")]


def is_held_out(record):
    """Whether a document or conversation is marked as held out."""
    split = (record.metadata if hasattr(record, "metadata") else record.provenance)["split"]
    assert split in ("train", "heldout"), record.id
    return split == "heldout"


def conversation_text(conversation):
    """All turns of a conversation as one text."""
    return "\n".join(turn.value for turn in conversation.turns)


def options_of(conversation):
    """Type, options and right letters of a practice item."""
    prompt = PRACTICE_PROMPT.fullmatch(conversation.turns[0].value)
    options = dict(OPTION_LINE.fullmatch(line).groups() for line in prompt["options"].split("\n"))
    final = FINAL_LETTERS.fullmatch(conversation.turns[1].value)
    return prompt["type"], options, final[1] or final[2]


def check_answer(options, answer, question_type, expected_language):
    """Five different options; letters in order, one or two to four as the type says."""
    assert list(options) == list("ABCDE") and len({text.casefold() for text in options.values()}) == 5
    assert answer == "".join(sorted(set(answer)))
    if len(answer) == 1:
        assert question_type == SINGLE_TYPES[expected_language]
    else:
        assert question_type == MULTIPLE_TYPES[expected_language] and 2 <= len(answer) <= 4


def check_options_against_passage(options, answer, passage):
    """The passage holds every right option word for word and no wrong one."""
    text = passage.text.casefold()
    assert [letter for letter, option in options.items() if option.casefold() in text] == list(answer), passage.id


def largest_similarity(first, second=None):
    """The largest MinHash similarity of two texts: of two lists, or within one."""
    one = np.stack([signature(text) for text in first])
    other = one if second is None else np.stack([signature(text) for text in second])
    largest = 0.0
    for index, row in enumerate(one):
        alike = (other == row).mean(axis=1)
        if second is None:
            alike[index] = 0
        largest = max(largest, float(alike.max()))
    return largest


def test_there_are_enough_records_of_every_kind():
    medical = [d for s in MEDICAL for d in DOCUMENTS[s]]
    assert len(medical) >= 400 and len(DOCUMENTS["general"]) >= 100
    assert len(EXAM) >= 120 and sum(len(q.answer) > 1 for q in EXAM) >= 30
    assert sum(not is_held_out(c) for c in SFT) >= 150
    assert sum(not is_held_out(c) for c in PRACTICE) >= 40
    assert sum(len(c.turns) > 2 for c in SFT) >= 20
    assert 0.55 <= sum(d.language == "zh" for d in medical) / len(medical) <= 0.65


def test_english_part_is_large_enough_for_an_english_model_alone():
    assert sum(d.language == "en" for s in MEDICAL for d in DOCUMENTS[s]) >= 150
    assert sum(d.language == "en" for d in DOCUMENTS["general"]) >= 50
    assert sum(language(q.id) == "en" for q in EXAM) >= 50
    assert sum(language(c.id) == "en" and not is_held_out(c) for c in SFT) >= 60
    for record in [*SFT, *EXAM]:
        text = conversation_text(record) if record in SFT else record.question + "".join(record.option.values())
        text = text.replace("请回答下面选择题。", "")
        assert (re.search("[\u4e00-\u9fff]", text) is None) == (language(record.id) == "en"), record.id


@pytest.mark.parametrize("name", [*SOURCES, "sft", "exam"])
def test_readme_states_the_number_of_records(name):
    records = DOCUMENTS.get(name) or {"sft": SFT, "exam": EXAM}[name]
    chinese = sum(language(record.id) == "zh" for record in records)
    row = next(
        line for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines() if f"`{name}.jsonl` |" in line
    )
    assert re.search(rf"\| {len(records)} \w+: {chinese} Chinese, {len(records) - chinese} English \|", row)


def test_readme_states_the_kinds_of_conversations_and_questions():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    several = sum(len(c.turns) > 2 for c in SFT)
    single = sum(len(q.answer) == 1 for q in EXAM)
    assert (
        f"| {len(SFT) - len(PRACTICE)} dialogues, {several} of them with several turns, and {len(PRACTICE)} exam"
        in readme
    )
    assert f"| {single} with one right letter, {len(EXAM) - single} with two to four |" in readme


def test_ids_name_file_language_and_running_number_and_are_unique():
    for source in SOURCES:
        for lang in ("zh", "en"):
            own = [d for d in DOCUMENTS[source] if d.language == lang]
            assert [d.id for d in own] == [f"{source}-{lang}-{n:03d}" for n in range(1, len(own) + 1)]
            assert all(d.source == source for d in own)
    identifiers = [*PASSAGES, *(c.id for c in SFT), *(q.id for q in EXAM)]
    assert len(set(identifiers)) == len(identifiers)


def test_one_record_in_six_of_each_source_and_language_is_held_out():
    for source in SOURCES:
        for lang in ("zh", "en"):
            own = [d for d in DOCUMENTS[source] if d.language == lang]
            assert sum(map(is_held_out, own)) >= 0.15 * len(own)
    for record in [*PASSAGES.values(), *SFT]:
        assert is_held_out(record) == (number(record.id) % 6 == 0), record.id


def test_passages_are_short_and_their_first_sentence_names_the_title():
    for document in PASSAGES.values():
        length, limit = length_and_limit(document.text, chinese=90, english=45)
        assert length <= limit, document.id
        found = sentences(document.text)
        assert 2 <= len(found) <= 4 and "".join("".join(found).split()) == "".join(document.text.split()), document.id
        assert document.title.casefold() in found[0].casefold(), document.id
        assert (re.search("[\u4e00-\u9fff]", document.text) is not None) == (document.language == "zh"), document.id


def test_answers_of_conversations_are_short():
    for conversation in SFT:
        assert len(conversation.turns) in (2, 4, 6) and conversation.source == "sft"
        for turn in conversation.turns[1::2]:
            length, limit = length_and_limit(turn.value, chinese=70, english=40)
            assert length <= limit, conversation.id


def test_no_text_holds_chat_tags_or_words_that_filters_reject():
    for name in (*SOURCES, "sft", "exam"):
        text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
        assert not re.search(r"</?s>|<问>|<答>|<[a-z|]|参考|上文|原文|\ufffd", text), name


def test_titles_are_unique_and_no_two_texts_are_alike():
    titles = [d.title.casefold() for d in PASSAGES.values()]
    assert len(set(titles)) == len(titles)
    assert largest_similarity([d.text for d in PASSAGES.values()]) < 0.3
    assert largest_similarity([conversation_text(c) for c in SFT if c not in PRACTICE]) < 0.3


def test_held_out_passages_are_paraphrased_nowhere_in_training():
    held_out = [d.text for d in PASSAGES.values() if is_held_out(d)]
    trained = [d.text for d in PASSAGES.values() if not is_held_out(d)]
    trained += [conversation_text(c) for c in SFT if not is_held_out(c)]
    assert largest_similarity(held_out, trained) < 0.2


def test_passages_differ_from_those_of_the_demo():
    demo = DATA.parents[1] / "toy_cpu" / "data"
    texts = [
        document.text
        for source in MEDICAL
        for document in read_records(demo / f"{source}.jsonl", lambda raw, where: [parse_document(raw, where)])
        if document.text.strip()
    ]
    assert largest_similarity([d.text for d in PASSAGES.values()], texts) < 0.4


@pytest.mark.parametrize("question", EXAM, ids=lambda q: q.id)
def test_exam_question_is_answered_by_one_trained_passage(question):
    passage = PASSAGES[PASSAGE_OF[question.id]]
    assert passage.source == question.source in MEDICAL and passage.language == language(question.id)
    assert not is_held_out(passage)
    check_answer(question.option, question.answer, question.question_type, passage.language)
    check_options_against_passage(question.option, question.answer, passage)


def test_exam_asks_every_source_alike_and_no_passage_twice():
    counts = collections.Counter((language(q.id), q.source, len(q.answer) > 1) for q in EXAM)
    for key in (("zh", False), ("zh", True), ("en", False), ("en", True)):
        assert len({counts[key[0], source, key[1]] for source in MEDICAL}) == 1
    assert len(set(PASSAGE_OF.values())) == len(EXAM)
    assert len({q.question for q in EXAM}) == len(EXAM)


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_right_letters_of_the_exam_are_balanced(lang):
    single = collections.Counter(q.answer for q in EXAM if len(q.answer) == 1 and language(q.id) == lang)
    several = collections.Counter(c for q in EXAM if len(q.answer) > 1 and language(q.id) == lang for c in q.answer)
    for letters in (single, several):
        assert set(letters) == set("ABCDE") and max(letters.values()) - min(letters.values()) <= 2


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("extreme", [max, min])
def test_length_of_an_option_gives_the_answer_away_no_better_than_chance(lang, extreme):
    questions = [q for q in EXAM if len(q.answer) == 1 and language(q.id) == lang]
    expected = 0.0  # score of always choosing among the longest, or the shortest, options
    for question in questions:
        target = extreme(map(len, question.option.values()))
        chosen = [letter for letter, text in question.option.items() if len(text) == target]
        expected += (question.answer in chosen) / len(chosen)
    assert expected <= 0.25 * len(questions)


def test_practice_letters_are_balanced():
    single = collections.Counter(options_of(c)[2] for c in PRACTICE if len(options_of(c)[2]) == 1)
    assert set(single) == set("ABCDE") and max(single.values()) - min(single.values()) <= 3


@pytest.mark.parametrize("conversation", PRACTICE, ids=lambda c: c.id)
def test_practice_item_has_the_form_of_the_exam_and_its_passage_answers_it(conversation):
    question_type, options, answer = options_of(conversation)
    check_answer(options, answer, question_type, language(conversation.id))
    check_options_against_passage(options, answer, PASSAGES[conversation.provenance["passage"]])


def test_conversations_rest_on_trained_passages_that_the_exam_leaves_alone():
    used = [c.provenance["passage"] for c in SFT if "passage" in c.provenance]
    assert len(set(used)) == len(used)
    assert not set(used) & set(PASSAGE_OF.values())
    assert all(not is_held_out(PASSAGES[name]) and PASSAGES[name].source in MEDICAL for name in used)
    assert all("passage" in c.provenance for c in SFT if is_held_out(c) or c in PRACTICE)


def test_no_exam_question_stands_in_the_training_text():
    training = [d.text for d in PASSAGES.values()] + [conversation_text(c) for c in SFT]
    everything = "\n".join(training)
    assert not [q.id for q in EXAM if q.question in everything]
    index = ExamIndex(EXAM)
    assert not [hit for text in training if (hit := index.find(text))]
