"""Published pair and dialogue sets: one small file of each layout."""

from __future__ import annotations

import json

import pytest

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.unify import unify
from tests.unit.unify.endpoint_server import EndpointServer, completion

Q, A = "高血压患者应当怎样饮食？", "应减少食盐摄入，多吃蔬菜，并控制体重。"
LAYOUTS = {
    "HuatuoGPT2_pretrain.json": ({"Meidcal_books_cn": [[Q, A]], "Meidcal_web_en": [["What is gout?", "A joint disease."]]},
                                 [("Meidcal_books_cn", [Q, A]), ("Meidcal_web_en", ["What is gout?", "A joint disease."])]),
    "HuatuoGPT2_sft.jsonl": ([{"id": 1, "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}],
                             [("HuatuoGPT2_sft", [Q, A])]),
    "huatuo_encyclopedia_qa.jsonl": ([{"questions": [[Q, "高血压吃什么"], ["另一问"]], "answers": [A]}],
                                     [("huatuo_encyclopedia_qa", [Q, A])]),
    "huatuo_knowledge_graph_qa.jsonl": ([{"questions": [Q], "answers": [A]}], [("huatuo_knowledge_graph_qa", [Q, A])]),
    "med_dialog_zh.json": ([{"description": "高血压", "utterances": ["医生：你好", "病人：我血压高", "病人：该怎么吃", "医生：少盐", "病人：谢谢"]}],
                           [("med_dialog_zh", ["我血压高\n该怎么吃", "少盐"])]),
    "med_dialog_en.json": ([{"utterances": ["patient: I have a cough.", "doctor: Since when?", "patient: A week.", "doctor: Rest."]}],
                           [("med_dialog_en", ["I have a cough.", "Since when?", "A week.", "Rest."])]),
    "med_dialog_list.json": ([["病人：头痛", "医生：多休息。"]], [("med_dialog_list", ["头痛", "多休息。"])]),
    "sharegpt.json": ([{"id": "s", "conversations": [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": Q},
                                                     {"from": "gpt", "value": A}, {"from": "human", "value": "谢谢"}]}],
                      [("sharegpt", [Q, A])]),
    "openai.jsonl": ([{"messages": [{"role": "system", "content": "你是医生。"}, {"role": "user", "content": [{"type": "text", "text": Q}]},
                                    {"role": "assistant", "content": A}]}], [("openai", [Q, A])]),
    "alpaca.json": ([{"instruction": Q, "input": "男，五十岁", "output": A}], [("alpaca", [f"{Q}\n男，五十岁", A])]),
    "plain.jsonl": ([{"question": Q, "answer": A, "source": "own"}], [("own", [Q, A])]),
}  # fmt: skip


def write(path, content):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")
    else:
        path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def conversations(output):
    return [line.record for line in read_jsonl(output / "conversations.jsonl")]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_becomes_conversations(name, tmp_path):
    content, expected = LAYOUTS[name]
    report = unify([write(tmp_path / name, content)], tmp_path / "out", pairs=True)
    found = conversations(tmp_path / "out")
    assert [(row["source"], [turn["value"] for turn in row["conversations"]]) for row in found] == expected
    assert [turn["from"] for turn in found[0]["conversations"]][:2] == ["human", "gpt"]
    assert found[0]["provenance"] == {"file": str(tmp_path / name), "line": 1}
    assert report["pairs"] == len(expected) and len({row["id"] for row in found}) == len(expected)


BAD = {
    "link": ({"questions": [Q], "answers": ["https://example.com/1"]}, "answer is a link"),
    "no text": ({"questions": [], "answers": [A]}, "wrong 'questions' or 'answers'"),
    "nobody": ({"utterances": ["你好"]}, "utterance without speaker"),
    "alone": ({"utterances": ["病人：你好"]}, "wrong number of turns: got 0"),
    "number": ({"question": Q, "answer": 7}, "wrong answer: got int"),
    "blank": ({"question": Q, "answer": "\u200b"}, "blank turn"),
    "only gpt": ({"conversations": [{"from": "gpt", "value": "Hi"}]}, "wrong number of turns: got 0"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": A}]},
              "wrong value of 'content': got list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named_and_costs_only_itself(name, tmp_path):
    raw, message = BAD[name]
    path = write(tmp_path / "a.jsonl", [{"question": Q, "answer": A}, raw])
    with pytest.raises(DataError, match=message) as caught:
        unify([path], tmp_path / "out", pairs=True)
    assert "a.jsonl:2" in str(caught.value)
    report = unify([path], tmp_path / "out", pairs=True, max_bad_lines=1)
    assert report["pairs"] == 1 and sum(report["bad_lines"].values()) == 1


def test_the_gates_hold_for_pairs_on_request(tmp_path):
    rows = [
        {"id": "good", "question": Q, "answer": A},
        {"id": "refusal", "question": Q, "answer": "很抱歉，我无法提供医疗建议。"},
        {"id": "again", "question": Q, "answer": A},
        {"id": "late", "dialogue": [Q, A, "那运动呢？", "作为一个人工智能，我不能回答。"]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert unify([path], tmp_path / "all", pairs=True)["pairs"] == 4
    report = unify([path], tmp_path / "out", pairs=True, gate_pairs=True)
    assert [row["id"] for row in conversations(tmp_path / "out")] == ["good"]
    assert report["rejected_by_reason"] == {"near-duplicate pair": 1, "refusal": 2}


def test_queries_are_answered_by_the_backend(tmp_path, impatient):
    """The layout of KUAKE-QIC: a query and its intent, no answer."""
    rows = [{"id": "s1", "query": Q, "label": "饮食"}, {"id": "s2", "query": "拍CT要空腹吗？", "label": "检查"}]
    path = write(tmp_path / "KUAKE_QIC.json", rows)
    with EndpointServer(lambda asked: completion(A if "饮食" in asked.prompt else "抱歉，我无法回答。")) as server:
        settings = {"backend": "openai", "base_url": server.base_url, "model": "m", "patience": impatient}
        report = unify([path], tmp_path / "out", pairs=True, **settings)
        assert "【内容】" not in server.asked[0].prompt and len(server.asked) == 1 + 2
    (row,) = conversations(tmp_path / "out")
    assert (row["id"], row["source"], [turn["value"] for turn in row["conversations"]]) == ("s1", "KUAKE_QIC", [Q, A])
    assert row["provenance"]["model"] == "m" and len(row["provenance"]["prompt_sha256"]) == 64
    assert report["rejected_by_reason"] == {"refusal": 1}


def test_queries_without_a_model_are_rejected_not_lost(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": Q}, {"question": Q, "answer": A}])
    report = unify([path], tmp_path / "out", pairs=True)
    assert report["pairs"] == 1 and report["rejected_by_reason"] == {"query without an answer": 1}
