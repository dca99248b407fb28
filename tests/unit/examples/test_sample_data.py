"""The bundled sample data keeps the promises of its README, read with plain json."""

import collections
import json
import pathlib
import re

import pytest

DATA = pathlib.Path(__file__).parents[3] / "examples" / "toy_cpu" / "data"
SOURCES = ("web", "literature", "encyclopedia", "books")
SINGLE_TYPES = ("最佳选择题", "配伍选择题", "综合分析选择题")
TYPES = (*SINGLE_TYPES, "多项选择题")
LONG = ("books-zh-long", "books-en-long")
DEFECTIVE = ("web-zh-dup", "web-en-blank")
# One practice item: the exam prompt of the recipe, options on lines of their own.
EXAM_PROMPT = re.compile(
    r"请回答下面选择题。\n\[(?P<type>[^\]\n]+)\](?P<question>[^\n]+)\n(?P<options>[^\n]+(?:\n[^\n]+)+)"
)
OPTION_LINE = re.compile(r"([A-E])\. (\S.*)")
FINAL_LETTERS = re.compile(r"[^\n]+(?:。因此答案是([A-E]{1,5})。|\. Therefore the answer is ([A-E]{1,5})\.)")


def load(name: str) -> list[dict]:
    """Records of one file; the file is UTF-8 and ends with a line feed."""
    text = (DATA / f"{name}.jsonl").read_bytes().decode("utf-8")
    assert text.endswith("\n") and not text.startswith("\ufeff")
    return [json.loads(line) for line in text.splitlines()]


DOCUMENTS = [record for source in SOURCES for record in load(source)]
SHORT = [d for d in DOCUMENTS if d["id"] not in LONG + DEFECTIVE]
PASSAGES = {d["id"]: d for d in SHORT}
SFT = load("sft")
EXAM = load("exam")
PRACTICE = [c for c in SFT if c["conversations"][0]["value"].startswith("请回答下面选择题。")]
OTHERS = [c for c in SFT if c not in PRACTICE]


def sentences(text: str, language: str) -> list[str]:
    """Sentences of a passage. In English a full stop counts only before white space or the end."""
    pattern = r"[^。！？]+[。！？]" if language == "zh" else r".+?[.!?](?=\s|$)"
    found = re.findall(pattern, text)
    assert "".join("".join(found).split()) == "".join(text.split()), f"text after the last sentence: {text}"
    return found


def length_and_limit(text: str, *, chinese: int, english: int) -> tuple[int, int]:
    """Characters and their limit for Chinese, words and theirs for English."""
    return (len(text.split()), english) if text.isascii() else (len(text), chinese)


def check_answer(options: dict[str, str], answer: str, question_type: str) -> None:
    """The letters name options, in order and once each, as many as the type allows."""
    assert list(options) == list("ABCDE"[: len(options)]) and len(options) >= 4
    assert len(set(options.values())) == len(options)
    assert set(answer) <= set(options) and list(answer) == sorted(set(answer))
    assert len(answer) == 1 if question_type in SINGLE_TYPES else 2 <= len(answer) <= 4


def test_there_are_enough_records_of_every_kind():
    assert len(SHORT) >= 220
    assert len(SFT) >= 66 and len(PRACTICE) >= 30
    assert sum(len(c["conversations"]) in (4, 6) for c in OTHERS) >= 12
    assert len(EXAM) >= 44


@pytest.mark.parametrize("name", (*SOURCES, "sft", "exam"))
def test_readme_states_the_number_of_records(name):
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}.jsonl` | {len(load(name))} " in readme


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_about_half_chinese_and_half_english(source):
    languages = collections.Counter(d["language"] for d in SHORT if d["source"] == source)
    assert set(languages) == {"zh", "en"}
    assert min(languages.values()) >= 0.45 * sum(languages.values())


def test_documents_have_the_contract_fields_and_ids_of_their_file():
    for source in SOURCES:
        for document in load(source):
            assert list(document) == ["id", "source", "language", "title", "text"]
            assert all(isinstance(value, str) for value in document.values())
            assert document["source"] == source
            pattern = rf"{source}-{document['language']}-(\d{{3}}|long|dup|blank)"
            assert re.fullmatch(pattern, document["id"])


def test_ids_are_unique_over_all_files():
    ids = [record["id"] for record in DOCUMENTS + SFT + EXAM]
    assert len(set(ids)) == len(ids)


def test_titles_and_texts_are_unique_except_for_the_planted_duplicate():
    kept = [d for d in DOCUMENTS if d["id"] != "web-zh-dup"]
    assert len({d["title"].casefold() for d in kept}) == len(kept)
    assert len({d["text"] for d in kept}) == len(kept)


def test_language_field_matches_the_text():
    for document in DOCUMENTS:
        has_han = re.search(r"[\u4e00-\u9fff]", document["title"] + document["text"]) is not None
        assert has_han == (document["language"] == "zh"), document["id"]


@pytest.mark.parametrize("document", SHORT, ids=lambda d: d["id"])
def test_passage_is_short_and_its_first_sentence_names_the_title(document):
    length, limit = length_and_limit(document["text"], chinese=90, english=45)
    assert length <= limit
    found = sentences(document["text"], document["language"])
    assert 2 <= len(found) <= 4
    assert document["title"].casefold() in found[0].casefold()


def test_long_documents_have_several_paragraphs():
    long = {d["id"]: d["text"] for d in DOCUMENTS if d["id"] in LONG}
    assert 1100 <= len(long["books-zh-long"]) <= 1400
    assert 450 <= len(long["books-en-long"].split()) <= 550
    assert all(text.count("\n\n") >= 4 for text in long.values())


def test_defects_are_one_exact_duplicate_and_one_blank_text():
    web = {d["id"]: d for d in load("web")}
    twins = [key for key, d in web.items() if d["text"] == web["web-zh-dup"]["text"]]
    assert len(twins) == 2
    assert web["web-en-blank"]["text"].strip() == ""


def test_no_text_holds_chat_tags_or_words_that_the_filters_reject():
    for name in (*SOURCES, "sft", "exam"):
        text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
        assert not re.search(r"</?s>|<问>|<答>|<[a-z|]|参考|\ufffd", text), name


def test_turns_alternate_between_human_and_gpt():
    for record in SFT:
        turns = record["conversations"]
        assert list(record) == ["id", "source", "conversations"] and record["source"] == "sft"
        assert len(turns) in (2, 4, 6)
        assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert all(t["value"] == t["value"].strip() != "" for t in turns)


def test_answers_are_short():
    for record in SFT:
        for turn in record["conversations"][1::2]:
            length, limit = length_and_limit(turn["value"], chinese=60, english=30)
            assert length <= limit, record["id"]


def test_conversations_are_chinese_and_english_and_questions_unique():
    english = sum(c["conversations"][0]["value"].isascii() for c in OTHERS)
    assert min(english, len(OTHERS) - english) >= 0.4 * len(OTHERS)
    questions = [c["conversations"][0]["value"] for c in SFT]
    assert len(set(questions)) == len(questions)


def test_first_two_conversations_are_one_chinese_and_one_english_question_with_their_own_answers():
    first = [c["conversations"] for c in SFT[:2]]
    assert [len(turns) for turns in first] == [2, 2]
    assert [turns[0]["value"].isascii() for turns in first] == [False, True]
    answers = [t["value"] for c in SFT for t in c["conversations"][1::2]]
    assert all(answers.count(turns[1]["value"]) == 1 for turns in first)


@pytest.mark.parametrize("record", PRACTICE, ids=lambda c: c["id"])
def test_practice_item_has_the_exam_prompt_and_states_its_option_last(record):
    assert len(record["conversations"]) == 2
    prompt = EXAM_PROMPT.fullmatch(record["conversations"][0]["value"])
    options = dict(OPTION_LINE.fullmatch(line).groups() for line in prompt["options"].split("\n"))
    final = FINAL_LETTERS.fullmatch(record["conversations"][1]["value"])
    assert prompt["type"] in TYPES
    check_answer(options, final[1] or final[2], prompt["type"])


def test_practice_items_cover_the_four_types():
    types = collections.Counter(EXAM_PROMPT.fullmatch(c["conversations"][0]["value"])["type"] for c in PRACTICE)
    assert set(types) == set(TYPES) and min(types.values()) >= 5


def test_exam_types_are_even_and_both_sources_present():
    types = collections.Counter(q["question_type"] for q in EXAM)
    assert set(types) == set(TYPES) and len(set(types.values())) == 1
    sources = collections.Counter((q["question_type"], q["source"]) for q in EXAM)
    assert set(sources) == {(t, s) for t in TYPES for s in ("pharmacy", "tcm")}


def test_single_answer_letters_are_balanced():
    letters = collections.Counter(q["answer"] for q in EXAM if q["question_type"] in SINGLE_TYPES)
    assert set(letters) == set("ABCDE")
    assert max(letters.values()) - min(letters.values()) <= 2


@pytest.mark.parametrize("question", EXAM, ids=lambda q: q["id"])
def test_exam_question_is_consistent_and_answered_by_its_passage(question):
    fields = ["id", "question", "option", "answer", "question_type", "source", "passage"]
    assert list(question) == fields
    options, answer = question["option"], question["answer"]
    check_answer(options, answer, question["question_type"])
    passage = PASSAGES[question["passage"]]["text"].casefold()
    assert all(options[letter].casefold() in passage for letter in answer)
    if question["question_type"] == "多项选择题":  # an option of the passage would be a right one
        assert not any(text.casefold() in passage for k, text in options.items() if k not in answer)


def test_exam_questions_are_unique_and_not_in_the_training_conversations():
    questions = [q["question"] for q in EXAM]
    assert len(set(questions)) == len(questions)
    training = "\n".join(t["value"] for c in SFT for t in c["conversations"])
    assert not [q for q in questions if q in training]
