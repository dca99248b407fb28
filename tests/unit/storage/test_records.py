"""The records of the corridor: what parses is usable, what is not names key and place."""

from __future__ import annotations

import pytest

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.records import Conversation, Document, Turn, parse_document, parse_questions

DOCUMENT = {"id": "d", "source": "web", "language": "zh", "text": "字"}
TURNS = (Turn("human", "q"), Turn("gpt", "a"))


@pytest.mark.parametrize(
    "document", [Document("d", "web", "zh", "字"), Document("d", "web", "en", "t", "title", {"origin": {"line": 3}})]
)
def test_documents_survive_the_way_to_disk_and_back(document):
    assert parse_document(document.to_record(), "f:1") == document


def test_a_blank_text_passes_and_a_number_becomes_an_id():
    assert parse_document({**DOCUMENT, "id": 7, "text": " "}, "f:1") == Document("7", "web", "zh", " ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "wrong value of 'id': got nothing"),
        ({"id": " "}, "wrong value of 'id'"),
        ({"id": True}, "wrong value of 'id': got bool"),
        ({"id": 1.5}, "wrong value of 'id': got float"),
        ({"source": ""}, "blank 'source'"),
        ({"source": None}, "wrong value of 'source': got NoneType"),
        ({"language": "fr"}, "wrong value of 'language': got 'fr'"),
        ({"text": ["a"]}, "wrong value of 'text': got list"),
        ({"title": 5}, "wrong value of 'title': got int"),
        ({"metadata": "m"}, "wrong value of 'metadata': got str, need an object"),
    ],
)
def test_a_wrong_document_names_the_key_and_the_place(change, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_document({**DOCUMENT, **change}, "file.jsonl:12")
    assert "file.jsonl:12" in str(caught.value)


@pytest.mark.parametrize("key", ["id", "source", "language", "text"])
def test_a_missing_key_is_named(key):
    with pytest.raises(DataError, match=f"wrong value of '{key}': got nothing"):
        parse_document({name: value for name, value in DOCUMENT.items() if name != key}, "f:1")


@pytest.mark.parametrize(
    "raw",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"dialogue": ["q", "a"]},
        ["q", "a"],
    ],
)
def test_every_layout_gives_the_same_conversation(raw):
    assert parse_conversations(raw, "f:1") == [Conversation("f:1", TURNS)]


def test_a_group_holds_many_conversations():
    found = parse_conversations({"web": [["q", "a"], ["q", "a", "q", "a"]], "books": [["q", "a"]]}, "f:1")
    assert [(c.id, c.source, len(c.turns)) for c in found] == [
        ("web-0", "web", 2), ("web-1", "web", 4), ("books-0", "books", 2),
    ]  # fmt: skip


def test_a_system_message_opens_the_first_question_and_an_input_follows_its_instruction():
    raw = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                        {"role": "assistant", "content": "a"}]}  # fmt: skip
    (conversation,) = parse_conversations(raw, "f:1")
    assert conversation.system == "s" and conversation.turns[0] == Turn("human", "q")
    assert conversation.opened_turns()[0] == Turn("human", "s\nq")
    raw = {"instruction": "q", "input": "i", "output": "a"}
    assert parse_conversations(raw, "f:1")[0].turns[0] == Turn("human", "q\ni")


def test_conversations_survive_the_way_to_disk_and_back():
    conversation = Conversation("c", (*TURNS, *TURNS), "web", {"document": "d"})
    assert parse_conversations(conversation.to_record(), "f:1") == [conversation]


def test_role_tags_and_special_tokens_inside_values_are_kept():
    raw = {"dialogue": ["<问>：q</s>", "<答>：a\n<问>：b"]}
    assert parse_conversations(raw, "f:1")[0].turns == (Turn("human", "<问>：q</s>"), Turn("gpt", "<答>：a\n<问>：b"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "wrong number of turns: got 0"),
        (["q"], "wrong number of turns: got 1"),
        (["q", "a", "q"], "wrong number of turns: got 3"),
        (["q", 5], "wrong dialogue: got list, need a list of texts"),
        (["q", " "], "blank 'value' in turn 1"),
        (7, "wrong record: got int"),
        ({}, "unknown layout"),
        ({"text": "t"}, r"unknown layout.*got keys \['text'\]"),
        ({"conversations": {}}, "wrong value of the turns: got dict"),
        ({"conversations": [5]}, "wrong record: got int"),
        ({"conversations": [{"from": "robot", "value": "q"}]}, "unknown speaker: got 'robot'"),
        ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]}, "wrong speaker in turn 0: got 'gpt'"),
        ({"conversations": [{"from": "human"}]}, "wrong value of 'value': got nothing"),
        ({"instruction": " ", "output": "a"}, "blank 'instruction'"),
        ({"instruction": "q"}, "wrong value of 'output': got nothing"),
        ({"web": ["q", "a"]}, r"wrong dialogue: got str.*web\[0\]"),
        ({"dialogue": ["q", "a"], "provenance": 5}, "wrong value of 'provenance': got int"),
    ],
)  # fmt: skip
def test_a_wrong_conversation_names_what_is_wrong(raw, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_conversations(raw, "file.jsonl:3")
    assert "file.jsonl:3" in str(caught.value)


QUESTION = {"question": "q", "option": {"A": "x", "B": "y", "D": "z"}, "answer": "BD", "question_type": "multiple"}


def test_questions_alone_and_in_exams():
    (question,) = parse_questions(QUESTION, "f:1")
    assert (question.id, question.answer, question.question_type, question.source) == ("f:1", "BD", "multiple", None)
    found = parse_questions({"exam": [QUESTION, {**QUESTION, "id": 5, "source": "own"}]}, "f:1")
    assert [(q.id, q.source) for q in found] == [("exam-0", "exam"), ("5", "own")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"option": ["x", "y"]}, "wrong value of 'option'"),
        ({"option": None, "choices": ["x", "y"]}, "wrong value of 'option': got NoneType"),
        ({"option": {"A": "x"}}, "at least two options"),
        ({"option": {"A": "x", "b": "y"}}, "wrong option 'b'"),
        ({"option": {"A": "x", "B": 5}}, "wrong option 'B'"),
        ({"answer": "DB"}, "alphabetical order"),
        ({"answer": "C"}, "got 'C', need letters of ABD"),
        ({"answer": ""}, "blank 'answer'"),
        ({"question": " "}, "blank 'question'"),
    ],
)
def test_a_wrong_question_names_what_is_wrong(change, message):
    with pytest.raises(DataError, match=message):
        parse_questions({**QUESTION, **change}, "f:1")


def test_a_question_of_another_layout_is_told_by_its_keys():
    with pytest.raises(
        DataError,
        match=r"'option': got nothing under it, but keys \['answer', 'choices', 'question', 'subject'\], need",
    ):
        parse_questions({"question": "q", "subject": "anatomy", "choices": ["x", "y"], "answer": 1}, "f:1")
