"""Styles: drawn by a seed, asked for in their own words, gated by their own demands, counted one by one; and replay."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.llm.pair_lists import peel_pairs
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json, read_manifest
from megatron_huatuo.unify import QualitySettings, unify
from megatron_huatuo.unify.writers.writer_prompts import load_prompts
from megatron_huatuo.unify.writers.writer_replay import load_replay
from megatron_huatuo.unify.writers.writer_styles import QUESTION_ANSWER, draw_style, load_styles, parse_weights
from tests.unit.unify.conftest import same_bytes
from tests.unit.unify.endpoint_server import Asked, EndpointServer, Reply, completion, echo_writer

PRICES = "m: {prompt_usd_per_million: 1000, completion_usd_per_million: 1000}\n"
STYLES = (
    "case",
    "dialogue",
    "patient-explanation",
    "question-answer",
    "reading-comprehension",
    "several-questions",
    "table",
)
MARKS = {
    "病例最后的问题": "case", "简短的病例": "case", "日常的话来问，不用专业术语": "patient-explanation", "善于讲解的医生": "patient-explanation",
    "适合用表格回答": "table", "Markdown 表格": "table", "多轮对话": "dialogue", "彼此不同的问题": "several-questions", "阅读理解任务": "reading-comprehension",
}  # fmt: skip


def style_of(asked: Asked) -> str:
    return next((style for mark, style in MARKS.items() if mark in asked.prompt), "question-answer")


def writer(asked: Asked) -> Reply:
    """A model that writes what each style asks for; everything it says stands in the passage."""
    text, style = asked.passage.split("\n", 1)[-1], style_of(asked)
    first, second = re.match(r"(.*?。)(.*)", text).groups()
    number = re.search(r"第(\d+)组", text)[1]
    if style == "dialogue":
        turns = [{"患者": f"第{number}组患者有什么症状？", "医生": first}, {"患者": "那该怎么治疗呢？", "医生": second}]
        return completion("```json\n" + json.dumps(turns, ensure_ascii=False) + "\n```")
    if style == "several-questions":
        return completion(
            f"1. 问题：第{number}组患者的症状是什么？\n答案：{first}\n\n2. 问题：第{number}组患者如何治疗？\n答案：{second}".replace(
                "1. ", ""
            ).replace("2. ", "")
        )
    if style == "reading-comprehension":
        return completion(
            json.dumps(
                [
                    {"任务": "概括这段内容的症状部分。", "答案": first},
                    {"任务": "根据上述内容，说明怎样治疗。", "答案": second},
                ],
                ensure_ascii=False,
            )
        )
    if style == "case":
        return (
            completion(text)
            if asked.wants_answer
            else completion(f"患者，女，57岁，属于第{number}组，近来乏力与不适，前来就诊。应当如何治疗？")
        )
    if style == "table" and asked.wants_answer:
        return completion(f"{first}\n\n| 项目 | 要点 |\n| --- | --- |\n| 治疗 | {second} |")
    return echo_writer(asked)


def run(
    server: EndpointServer, documents: Path, output: Path, patience: Any, *styles: str, **more: Any
) -> dict[str, Any]:
    more.setdefault("quality", QualitySettings(near_duplicate_similarity=2))
    return unify(
        [documents],
        output,
        backend="openai",
        base_url=server.base_url,
        model="m",
        patience=patience,
        styles=styles,
        **more,
    )


def records(output: Path) -> list[dict[str, Any]]:
    return [line.record for line in read_jsonl(output / "conversations.jsonl")]


def test_a_style_is_drawn_by_seed_weight_and_id_alone():
    weights = {"case": 3.0, "table": 1.0}
    drawn = Counter(draw_style(weights, 1, f"d{index}") for index in range(4000))
    assert set(drawn) == {"case", "table"} and 2900 < drawn["case"] < 3100
    assert [draw_style(weights, 1, f"d{i}") for i in range(50)] != [draw_style(weights, 2, f"d{i}") for i in range(50)]
    assert draw_style({"case": 1.0}, 0, "any") == "case"


def test_every_style_is_written_and_counted_with_its_yield_tokens_and_money(write_documents, impatient, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    with EndpointServer(writer) as server:
        report = run(server, write_documents(60), tmp_path / "out", impatient, *STYLES, seed=3, prices=str(prices))
        asked = Counter(style_of(one) for one in server.asked)
    assert report["rejected_by_reason"] == {} and report["pairs"] == 60
    by_style = report["by_style"]
    assert set(by_style) == set(STYLES) and sum(row["passages"] for row in by_style.values()) == 60
    drawn = Counter(draw_style(dict.fromkeys(STYLES, 1.0), 3, f"d{index}") for index in range(60))
    for style, row in by_style.items():
        requests = row["passages"] * (1 if style in ("dialogue", "several-questions", "reading-comprehension") else 2)
        assert row["passages"] == drawn[style] == row["conversations"] and row["yield"] == 1.0
        assert (row["prompt_tokens"], row["completion_tokens"]) == (11 * requests, 7 * requests)
        assert row["cost_usd"] == pytest.approx(requests * 18e-3) and asked[style] == requests
        assert row["usd_per_kept_pair"] == pytest.approx(row["cost_usd"] / row["answers"])
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert ledger["by_style"] == by_style
    assert sum(row["cost_usd"] for row in by_style.values()) == pytest.approx(ledger["cost_usd"])
    known = load_styles(load_prompts())
    for record in records(tmp_path / "out"):
        style = known[record["provenance"]["style"]]["zh"]
        assert (record["provenance"]["prompt_version"], record["provenance"]["prompt_sha256"]) == (
            style.version,
            style.sha256,
        )
    described = read_manifest(tmp_path / "out", "unified")["backend"]
    assert (
        described["seed"] == 3 and described["styles"]["case"]["prompts"]["zh"]["sha256"] == known["case"]["zh"].sha256
    )


def test_each_style_has_its_own_form(write_documents, impatient, tmp_path):
    with EndpointServer(writer) as server:
        for style in STYLES:
            run(server, write_documents(2), tmp_path / style, impatient, style)
    first = {style: records(tmp_path / style)[0]["conversations"] for style in STYLES}
    assert {style: len(turns) for style, turns in first.items()} == {
        "case": 2, "dialogue": 4, "patient-explanation": 2, "question-answer": 2, "reading-comprehension": 4, "several-questions": 4, "table": 2,
    }  # fmt: skip
    assert [turn["from"] for turn in first["dialogue"]] == ["human", "gpt"] * 2
    assert first["dialogue"][2]["value"] == "那该怎么治疗呢？"
    assert "| --- | --- |" in first["table"][1]["value"]
    assert first["reading-comprehension"][0]["value"].startswith(
        "阅读下面的内容，然后完成任务。\n\n高血压\n高血压患者第0组"
    )
    assert first["reading-comprehension"][0]["value"].endswith("任务：概括这段内容的症状部分。")
    assert first["reading-comprehension"][2]["value"] == "根据上述内容，说明怎样治疗。", "the passage is shown once"


def test_styles_do_not_depend_on_tasks_workers_or_order(write_documents, impatient, tmp_path):
    documents = write_documents(24)
    with EndpointServer(writer) as server:
        run(server, documents, tmp_path / "one", impatient, *STYLES, max_concurrency=1)
        run(server, documents, tmp_path / "many", impatient, *STYLES, documents_per_task=5)
    assert same_bytes(tmp_path / "one", tmp_path / "many")


@pytest.mark.parametrize(
    ("style", "reply", "reason"),
    [
        ("table", "治疗时应遵医嘱，每日服药，并定期复查。", "no table in the answer"),
        ("dialogue", '[{"患者": "第1组有什么症状？", "医生": "常见症状为乏力与不适。"}]', "wrong number of pairs: 1"),
        ("dialogue", "患者说不舒服，医生让他休息。", "wrapping: no list of questions and answers"),
        ("dialogue", '[{"患者": "第1组有什么症状？", "医生": "常见症状为乏力与不适。"}, {"患者": "怎么办？", "医生": "每次服用900毫克，定期复查。"}]',
         "numbers not in the passage: pair 2: 900 mg"),
        ("several-questions", '[{"question": "第1组的症状？", "answer": "常见症状为乏力与不适。"}, {"question": "根据上述资料怎么治疗？", "answer": "遵医嘱服药，定期复查。"}]',
         "question mentions the text: pair 2"),
        ("several-questions", "<think>写三个问题", "thoughts: without an end"),
    ],
)  # fmt: skip
def test_what_a_style_demands_is_gated_and_counted_under_it(style, reply, reason, write_documents, impatient, tmp_path):
    def handler(asked: Asked) -> Reply:
        is_whole = style in ("dialogue", "several-questions")
        return completion(reply) if "第1组" in asked.prompt and (is_whole or asked.wants_answer) else writer(asked)

    with EndpointServer(handler) as server:
        report = run(server, write_documents(3), tmp_path / "out", impatient, style)
    rejected = [line.record["reason"] for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert report["pairs"] == 2 and len(rejected) == 1 and rejected[0].startswith(reason)
    assert report["by_style"][style]["rejected"] == {reason.split(":")[0]: 1}
    assert report["by_style"][style]["yield"] == pytest.approx(2 / 3, abs=1e-4)


def test_near_duplicates_are_taken_off_their_style(write_documents, impatient, tmp_path):
    with EndpointServer(
        lambda asked: completion(
            "请说明治疗的要点是什么？" if not asked.wants_answer else "治疗时应遵医嘱，按时服药，并定期复查。"
        )
    ) as server:
        report = run(server, write_documents(5), tmp_path / "out", impatient, quality=QualitySettings())
    row = report["by_style"][QUESTION_ANSWER]
    assert report["pairs"] == row["conversations"] == row["answers"] == 1
    assert row["rejected"] == {"near-duplicate pair": 4} and row["passages"] == 5


def test_the_second_model_judges_every_pair_of_a_dialogue_with_what_was_said_before(
    write_documents, impatient, tmp_path
):
    from megatron_huatuo.unify import CheckSettings

    def handler(asked: Asked) -> Reply:
        return completion("yes") if asked.payload["model"] == "judge" else writer(asked)

    with EndpointServer(handler) as server:
        run(
            server,
            write_documents(1),
            tmp_path / "out",
            impatient,
            "dialogue",
            check=CheckSettings(check_model="judge"),
        )
        checks = [asked.prompt for asked in server.asked if asked.payload["model"] == "judge"]
    assert len(checks) == 2
    assert (
        "那该怎么治疗呢" not in checks[0]
        and "有什么症状？\n高血压患者" in checks[1]
        and "那该怎么治疗呢？" in checks[1]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"styles": ["poem"]},
            r"unknown style: got 'poem', need one of case, dialogue, patient-explanation, question-answer, reading-",
        ),
        ({"styles": ["case=0"]}, "wrong weight of style 'case': got '0', need a number above 0"),
        ({"styles": ["case=nan"]}, "wrong weight of style 'case'"),
        ({"styles": ["case=many"]}, "wrong weight of style 'case': got 'many'"),
        ({"styles": ["case", "case=2"]}, "style 'case' is named twice"),
        ({"styles": ["case"], "pairs": True}, "--styles has no effect with --pairs"),
        ({"from_model": 3}, "--from-model writes text of itself: --input, --pairs and --styles have no effect"),
        ({"from_model": -1}, "--from-model"),
        ({"backend": "template", "styles": ["case"]}, "--styles has no effect with the template backend"),
        ({"backend": "template", "seed": 5}, "--seed has no effect with the template backend"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message, write_documents, tmp_path):
    given = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", **settings}
    if given["backend"] == "template":
        given.update(base_url=None, model=None)
    with pytest.raises(ConfigError, match=message):
        unify([write_documents(1)], tmp_path / "out", **given)


def test_nothing_to_unify_is_said(tmp_path):
    with pytest.raises(ConfigError, match="nothing to unify: need --input FILE, or --from-model N"):
        unify([], tmp_path / "out")


GOOD = {"style": "poem", "language": "zh", "version": 1, "question": "问 {text}", "answer": "答 {text} {question}"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, "wrong keys of a style"),
        ({"pairs": "{text}"}, "wrong keys of a style"),
        ({"question": "问"}, r"prompt 'question' lacks \{text\}"),
        ({"first_turn": "{text}"}, r"prompt 'first_turn' lacks \{question\}"),
        ({"language": "fr"}, "wrong language of a style: got 'fr'"),
        ({"least_pairs": 3}, "wrong number of pairs: got least_pairs=3 and most_pairs=1"),
        ({"table": "yes"}, "wrong value of 'table': got 'yes', need bool"),
        ({"tone": "kind"}, "unknown key 'tone' of a style"),
        ({"style": "Poem!"}, "wrong name of a style: got 'Poem!'"),
    ],
)
def test_a_wrong_style_file_is_refused_naming_file_and_key(changes, message, tmp_path):
    path = tmp_path / "style.yaml"
    path.write_text(json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not None}))
    with pytest.raises(ConfigError, match=message) as refused:
        load_styles(load_prompts(), [str(path)])
    assert str(path) in str(refused.value)


def test_a_users_style_is_one_file_and_needs_the_language_that_it_has(write_documents, impatient, tmp_path):
    path = tmp_path / "style.yaml"
    path.write_text(json.dumps(GOOD, ensure_ascii=False), "utf-8")
    known = load_styles(load_prompts([str(path)]), [str(path)])
    with pytest.raises(ConfigError, match="style 'poem' has no prompts in en"):
        parse_weights(["poem"], known, None)
    assert parse_weights(["poem=2"], known, "zh") == {"poem": 2.0}

    def poet(asked: Asked) -> Reply:
        text = asked.prompt.split("\n")[-1].removeprefix("问 ").removeprefix("答 ")
        return (
            completion(text.split("。")[0] + "。" + text.split("。")[1] + "。")
            if asked.prompt.startswith("答")
            else completion(f"{text[:14]}，要点是什么？")
        )

    with EndpointServer(poet) as server:
        run(server, write_documents(2), tmp_path / "out", impatient, "poem", language="zh", prompts=[str(path)])
    assert [record["provenance"]["style"] for record in records(tmp_path / "out")] == ["poem", "poem"]


PAIR = (("什么是痛风？", "一种代谢病。"), ("怎么治疗？", "控制尿酸。"))


@pytest.mark.parametrize(
    "reply",
    [
        '[{"question": "什么是痛风？", "answer": "一种代谢病。"}, {"question": "怎么治疗？", "answer": "控制尿酸。"}]',
        '好的，以下是对话：\n```json\n[{"患者": "什么是痛风？", "医生": "一种代谢病。"}, {"患者": "怎么治疗？", "医生": "控制尿酸。"}]\n```\n希望有帮助。',
        '{"dialogue": [{"patient": "什么是痛风？", "doctor": "一种代谢病。"}, {"patient": "怎么治疗？", "doctor": "控制尿酸。"}]}',
        '[{"role": "user", "content": "什么是痛风？"}, {"role": "assistant", "content": "一种代谢病。"}, '
        '{"role": "user", "content": "怎么治疗？"}, {"role": "assistant", "content": "控制尿酸。"}]',
        '[{"speaker": "患者", "text": "什么是痛风？"}, {"speaker": "医生", "text": "一种代谢病。"}, '
        '{"speaker": "患者", "text": "怎么治疗？"}, {"speaker": "医生", "text": "控制尿酸。"}]',
        "患者：什么是痛风？\n医生：一种代谢病。\n\n患者：怎么治疗？\n医生：控制尿酸。",
        "**问题1：** 什么是痛风？\n**答案1：** 一种代谢病。\n\n**问题2：** 怎么治疗？\n**答案2：** 控制尿酸。",
        "<think>写两轮。</think>\n问：什么是痛风？\n答：一种代谢病。\n问：怎么治疗？\n答：控制尿酸。",
        "[{'question': '什么是痛风？', 'answer': '一种代谢病。'}, {'question': '怎么治疗？', 'answer': '控制尿酸。'}]",
    ],
)
def test_pairs_are_read_in_the_layouts_that_models_choose(reply):
    assert peel_pairs(reply) == (PAIR, None)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("痛风是一种代谢病。", "wrapping: no list"),
        ("患者：什么是痛风？\n患者：怎么治疗？\n医生：控制尿酸。", "wrapping: no list"),
        ('[{"question": "什么是痛风？"}]', "wrapping: no list"),
        ('[{"question": "什么是痛风？", "answer": "一种', "wrapping: no list"),
        ('[{"question": "什么是痛风？", "answer": "<think>想"}]', "thoughts: without an end"),
        ('[{"question": "1. 什么？\\n2. 为何？", "answer": "一种代谢病。"}]', "several questions"),
        ("<think>写", "thoughts: without an end"),
    ],
)
def test_what_is_no_list_of_pairs_has_a_problem(reply, problem):
    assert peel_pairs(reply).pairs == () and peel_pairs(reply).problem.startswith(problem)


def replay_writer(asked: Asked) -> Reply:
    """Makes up a request from the topic and the seed, and answers it."""
    seed = asked.payload["seed"]
    digits = "零一二三四五六七八九"
    words = "".join(digits[int(digit)] for digit in str(seed))
    english = re.search(r"Topic: (.*?)\. The user (.*?)\.", asked.prompt)
    if english:
        return completion(
            f"I would like to know more about {english[1]}, case {seed}: please {english[2].replace('asks', 'help me')}."
        )
    if "主题：" in asked.prompt:
        return completion(f"请求：我想了解{re.search('主题：(.*?)。', asked.prompt)[1]}，编号{words}，请给我讲一讲。")
    if re.search("[\u4e00-\u9fff]", asked.prompt):
        return completion(
            f"<think>想一想</think>这里是关于{asked.prompt[4:20]}的说明，编号{words}，供你了解。\n```\nprint({seed})\n```"
        )
    return completion(f"Sure, this explains the matter of case {seed}: {asked.prompt[27:60]} and what follows from it.")


def test_a_model_writes_its_own_replay_with_seeds_and_prompts_on_record(impatient, tmp_path):
    settings = {
        "backend": "openai",
        "model": "m",
        "patience": impatient,
        "seed": 7,
        "quality": QualitySettings(near_duplicate_similarity=2),
    }
    with EndpointServer(replay_writer) as server:
        report = unify([], tmp_path / "one", base_url=server.base_url, from_model=40, **settings)
        unify([], tmp_path / "many", base_url=server.base_url, from_model=40, documents_per_task=7, **settings)
        unify([], tmp_path / "more", base_url=server.base_url, from_model=50, **settings)
        seeds = {asked.payload["seed"] for asked in server.asked}
    assert report["documents"] == 40 == report["pairs"] + report["rejected"] and report["pairs"] >= 35
    assert same_bytes(tmp_path / "one", tmp_path / "many") and len(seeds) >= 40
    prompts = load_replay()
    kept = records(tmp_path / "one")
    for record in kept:
        made = record["provenance"]
        prompt = prompts["zh" if re.search("[\u4e00-\u9fff]", record["conversations"][0]["value"]) else "en"]
        assert made["topic"] in prompt.topics and made["form"] in prompt.forms and made["seed"] in seeds
        assert (made["prompt_sha256"], made["model"], record["source"]) == (prompt.sha256, "m", "replay")
        assert "think" not in str(record["conversations"])
    assert {record["id"] for record in kept} <= {record["id"] for record in records(tmp_path / "more")}, (
        "a longer list begins alike"
    )
    manifest = read_manifest(tmp_path / "one", "unified")
    assert manifest["backend"]["seed"] == 7 and manifest["backend"]["replay"]["en"]["sha256"] == prompts["en"].sha256
    assert {record["provenance"]["topic"] for record in kept} & set(prompts["en"].topics) and len(
        {r["provenance"]["topic"] for r in kept}
    ) > 20


def test_replay_is_filtered_and_counted_like_all_else(impatient, tmp_path):
    def handler(asked: Asked) -> Reply:
        return (
            completion("很抱歉，我无法提供。")
            if "主题：" not in asked.prompt
            else completion("请介绍一下这个主题的由来，好吗？")
        )

    with EndpointServer(handler) as server, pytest.raises(DataError, match="3 of 3 were rejected for 'refusal'"):
        unify(
            [],
            tmp_path / "out",
            backend="openai",
            base_url=server.base_url,
            model="m",
            patience=impatient,
            from_model=3,
            language="zh",
        )


def test_a_wrong_replay_file_is_refused(tmp_path):
    path = tmp_path / "replay.yaml"
    for content, message in (
        ("topics: [a]\nlanguage: zh\n", "wrong keys of replay prompts"),
        (
            "version: 1\nlanguage: zh\ntopics: []\nforms: [a]\nquestion: '{topic} {form}'\nanswer: '{question}'\n",
            "wrong value of 'topics'",
        ),
        (
            "version: 1\nlanguage: zh\ntopics: [a]\nforms: [a]\nquestion: '{topic}'\nanswer: '{question}'\n",
            r"prompt 'question' lacks \{form\}",
        ),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_replay([str(path)])
