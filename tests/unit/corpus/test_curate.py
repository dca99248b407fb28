"""Curation end to end: nothing is lost, everything is counted, equal input gives equal bytes."""

from __future__ import annotations

import gzip
import json

import pytest

from megatron_huatuo.corpus import CurationSettings, ExecutorSettings, curate
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json, read_manifest, verify_files
from megatron_huatuo.storage.records import parse_document

TEXT = "高血压患者应减少食盐摄入，控制体重，并遵医嘱长期服药。"
ENGLISH = "Patients with hypertension should eat less salt, keep a healthy weight and take their medicine."


def record(name, text=TEXT, source="web", language="zh", **more):
    return {"id": name, "source": source, "language": language, "text": text, **more}


def write(path, records):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records), "utf-8")
    return path


def documents(output):
    return [parse_document(line.record, "") for line in read_jsonl(output / "documents.jsonl")]


def rejected(output):
    return [
        tuple(line.record[key] for key in ("id", "reason", "line")) for line in read_jsonl(output / "rejected.jsonl")
    ]


def assert_accounts(report, bad_lines=0):
    """Every document, and every part made of one, is a passage or a rejection."""
    assert report["documents_in"] + report["parts_made"] == report["documents_out"] + report["rejected"] - bad_lines
    assert sum(report["rejected_by_reason"].values()) == report["rejected"]
    for key in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
        assert sum(row[key] for row in report["by_source"].values()) == report[key]


def test_every_document_is_kept_or_rejected_with_its_reason_and_place(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [
            record("good"),
            record("blank", " \u3000\n\u200b"),
            record("same", f"  {TEXT}\n"),
            record("short", "头痛。"),
            record("damaged", TEXT + "剂量为\ufffd毫克。"),
            record("symbols", "高血压|12|34|56|78|90|__|==|++|--|1234567890|高血压高血压高血压"),
            record("loop", "请遵医嘱服药。" * 60),
            record("page", TEXT.replace("高血压", "糖尿病") + "版权所有 某网站"),
            record("other", "Пациентам с гипертонией следует есть меньше соли и принимать лекарства."),
            record("foreign", ENGLISH),
            record("english", ENGLISH, source="books", language="en"),
        ],
    )
    report = curate([path], tmp_path / "out")
    assert [document.id for document in documents(tmp_path / "out")] == ["good", "english"]
    assert rejected(tmp_path / "out") == [
        ("blank", "blank text", 2),
        ("short", "too short: 2", 4),
        ("damaged", "damaged text", 5),
        ("symbols", "mostly symbols: 12 letters of 51 characters", 6),
        ("loop", "repeats itself", 7),
        ("page", "page furniture: 版权所有", 8),
        ("other", "language: declared zh, found other", 9),
        ("foreign", "language: declared zh, found en", 10),
        ("same", "exact duplicate: of good", 3),
    ]
    assert_accounts(report)
    assert report["by_source"]["books"] == {
        "documents_in": 1, "documents_out": 1, "bytes_in": len(ENGLISH), "bytes_out": len(ENGLISH), "rejected": {},
        "scores": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    }  # fmt: skip
    assert report["repairs"]["zero-width character"] == 1
    manifest = read_manifest(tmp_path / "out", "corpus")
    verify_files(tmp_path / "out", manifest)
    assert manifest["inputs"][str(path)]["bytes"] == path.stat().st_size
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert read_json(tmp_path / "out" / "report.json") == report


def test_origin_leads_back_to_the_line_and_the_offset(tmp_path):
    path = write(tmp_path / "a.jsonl", [record("a"), record("b", TEXT * 40), record("c", ENGLISH, language="en")])
    curate([path], tmp_path / "out", settings=CurationSettings(near_duplicate_similarity=2))
    for document in documents(tmp_path / "out"):
        origin = document.metadata["origin"]
        with open(origin["file"], "rb") as handle:
            handle.seek(origin["offset"])
            assert json.loads(handle.readline())["id"] == origin["document"] == document.id.split("#")[0]


def test_long_texts_lose_nothing(tmp_path):
    text = "\n\n".join(f"第{number}节。患者应遵医嘱，按时服药，并于{number}周后复查血压。" * 3 for number in range(60))
    path = write(tmp_path / "a.jsonl", [record("book", text, title="高血压")])
    settings = CurationSettings(max_characters_zh=90, min_characters_zh=0, near_duplicate_similarity=2)
    report = curate([path], tmp_path / "out", settings=settings)
    passages = documents(tmp_path / "out")
    assert "".join("".join(p.text.split()) for p in passages) == "".join(text.split())
    assert [p.id for p in passages] == [f"book#{number}" for number in range(1, len(passages) + 1)]
    assert passages[0].title == "高血压" and passages[0].metadata["origin"]["parts"] == len(passages)
    assert report["parts_made"] == len(passages) - 1
    assert_accounts(report)


def test_near_duplicates_are_found_across_files_and_sources(tmp_path):
    base = "".join(
        f"第{word}，患者应按照医生的要求{act}。"
        for word, act in zip("一二三四五六七八九十", "动静坐卧行走吃喝睡醒", strict=True)
    )
    first = write(tmp_path / "a.jsonl", [record("a", base), record("other", ENGLISH, language="en")])
    second = write(tmp_path / "b.jsonl", [record("b", base.replace("睡", "眠"), source="books"), record("c", TEXT)])
    report = curate([first, second], tmp_path / "out")
    assert [d.id for d in documents(tmp_path / "out")] == ["a", "other", "c"]
    assert rejected(tmp_path / "out") == [("b", "near-duplicate: of a", 1)]
    assert_accounts(report)
    off = CurationSettings(near_duplicate_similarity=1.1)
    assert curate([first, second], tmp_path / "all", settings=off)["documents_out"] == 4


def test_ids_that_repeat_over_files_are_made_unique(tmp_path):
    texts = [TEXT, TEXT.replace("高血压", "糖尿病人群"), "感冒多由病毒引起，一般一周左右自行好转，应注意休息。"]
    paths = [write(tmp_path / f"{number}.jsonl", [record("1", text)]) for number, text in enumerate(texts)]
    report = curate(paths, tmp_path / "out", settings=CurationSettings(near_duplicate_similarity=2))
    assert [d.id for d in documents(tmp_path / "out")] == ["1", "1~2", "1~3"] and report["repairs"] == {
        "repeated id": 2
    }


def test_bytes_do_not_depend_on_workers(tmp_path):
    paths = [
        write(tmp_path / f"{name}.jsonl", [record(f"{name}{n}", f"第{n * 7}号{name}病例：{TEXT}" * 3, source=name) for n in range(30)])
        for name in ("web", "books", "literature")
    ]  # fmt: skip
    for workers in (1, 2):
        curate(paths, tmp_path / str(workers), execution=ExecutorSettings(workers=workers))
    for name in ("documents.jsonl", "rejected.jsonl", "report.json", "report.png", "contamination.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_the_source_option_replaces_the_records_own(tmp_path):
    path = write(tmp_path / "a.jsonl", [record("a"), {"text": ENGLISH, "url": "http://x", "timestamp": "2019"}])
    with pytest.raises(DataError, match=r"the record has no 'source'\. Name it with --source.*a\.jsonl:2"):
        curate([path], tmp_path / "out")
    curate([path], tmp_path / "out", CurationSettings(source="literature"))
    first, second = documents(tmp_path / "out")
    assert (first.source, second.source, second.language, second.id) == ("literature", "literature", "en", "a.jsonl:2")
    assert second.metadata["url"] == "http://x"


def test_all_bad_lines_are_counted_by_reason_and_line(tmp_path):
    good = json.dumps(record("g"), ensure_ascii=False).encode()
    lines = [b"\xef\xbb\xbf" + good, b"", good[:-1], good.replace(b'"zh"', b'"fr"'), b"[]", good.replace(b'"text"', b'"t"'),
             json.dumps(record("z", "感冒多由病毒\x00引起，\u200b一般一周\u202e左右自行好转。"), ensure_ascii=False).encode() + b"\r"]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match=r"malformed JSON.*a\.jsonl:3\).*--max-bad-lines"):
        curate([path], tmp_path / "out")
    with pytest.raises(DataError, match=r"no JSON object: got list \(.*a\.jsonl:5\); 3 bad so far, allowed 2"):
        curate([path], tmp_path / "out", CurationSettings(max_bad_lines=2))
    assert not (tmp_path / "out").exists()
    report = curate([path], tmp_path / "out", CurationSettings(max_bad_lines=4))
    assert [(name, line) for name, _, line in rejected(tmp_path / "out")] == [
        (None, 3),
        (None, 4),
        (None, 5),
        (None, 6),
    ]
    assert report["rejected_by_reason"] == {
        "malformed JSON": 1, "no JSON object": 1, "wrong value of 'language'": 1, "wrong value of 'text'": 1,
    }  # fmt: skip
    assert report["tolerated"] == {"CRLF": 1, "blank line": 1, "byte-order mark": 1}
    assert report["repairs"] == {"bidi control": 1, "control character": 1, "zero-width character": 1}
    assert_accounts(report, bad_lines=4)


def test_bad_lines_count_over_all_files(tmp_path):
    paths = []
    for name, text, language in (("a", TEXT, "zh"), ("b", ENGLISH, "en")):
        paths.append(write(tmp_path / f"{name}.jsonl", [record(name, text, language=language)]))
        paths[-1].write_bytes(paths[-1].read_bytes() + b"torn\n")
    with pytest.raises(DataError, match="2 bad lines in all files, allowed 1"):
        curate(paths, tmp_path / "out", CurationSettings(max_bad_lines=1))
    assert curate(paths, tmp_path / "out", CurationSettings(max_bad_lines=2))["documents_out"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"nothing left: 0 documents in, none out: the files are empty \(.*a\.jsonl\)\. Check the input"),
        (b"\n\n", "0 documents in, none out: blank line 2"),
        (
            json.dumps(record("a", " ")).encode(),
            "1 of 1 were rejected for 'blank text' .*Check that the text stands under `text`",
        ),
        (
            "\n".join(
                json.dumps(record(str(n), "头痛。" if n < 2 else TEXT, language="zh" if n < 2 else "en"))
                for n in range(5)
            ).encode(),
            "3 of 5 were rejected for 'language', others: {'too short': 2} .*Check `language` of the records",
        ),
    ],
)
def test_nothing_left_is_an_error_that_names_what_dominated_and_leaves_nothing(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        curate([tmp_path / "a.jsonl"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing matches '.*none\*\.jsonl'"):
        curate([tmp_path / "none*.jsonl"], tmp_path / "out")
    with pytest.raises(DataError, match=r"directory as input: got '.*', need its files, such as '.*/\*\*/\*\.jsonl'"):
        curate([tmp_path], tmp_path / "out")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match=r"unknown file format: got 'a\.docx'"):
        curate([tmp_path / "a.docx"], tmp_path / "out")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(record("a")).encode() * 50)[:-20])
    with pytest.raises(DataError, match=r"file is incomplete.*a\.jsonl\.gz"):
        curate([tmp_path / "a.jsonl.gz"], tmp_path / "out")


def test_paths_with_spaces_glob_signs_and_chinese_work(tmp_path):
    folder = tmp_path / "医学 数据 [1]"
    folder.mkdir()
    path = write(folder / "网页[a].jsonl", [record("a")])
    assert curate([path], folder / "输出")["documents_out"] == 1
    assert curate([f"{tmp_path}/医学*/网页*.jsonl", path], folder / "again")["documents_in"] == 1


def test_a_changed_input_is_never_taken_for_a_finished_one(tmp_path):
    path = write(tmp_path / "a.jsonl", [record("a")])
    curate([path], tmp_path / "out")
    write(path, [record("a"), record("b", ENGLISH, language="en")])
    assert curate([path], tmp_path / "out")["documents_out"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "a.jsonl", "out"]


def test_unfinished_work_of_a_failed_run_is_used_again(tmp_path):
    good = write(tmp_path / "a.jsonl", [record("a")])
    bad = write(tmp_path / "b.jsonl", [record("b", ENGLISH, language="en")])
    content = bad.read_bytes()
    bad.write_bytes(b"torn" + content[4:])
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        curate([good, bad], tmp_path / "out")
    (work,) = (tmp_path / ".out.work").iterdir()
    assert [p.name for p in (work / "shards").iterdir()] == ["00000"]
    before = (work / "shards" / "00000").stat().st_ino
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        curate([good, bad], tmp_path / "out")
    assert (work / "shards" / "00000").stat().st_ino == before
    assert curate([good, bad], tmp_path / "out", CurationSettings(max_bad_lines=1))["documents_out"] == 1


def test_files_of_somebody_else_are_never_replaced(tmp_path):
    path = write(tmp_path / "a.jsonl", [record("a")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a directory of kind 'corpus'"):
        curate([path], tmp_path / "out")


def test_medical_texts_are_extracted_by_a_lexicon(tmp_path):
    sport = "国家队在主场以三比一战胜对手，球迷们在赛后热烈庆祝，教练表示球队将继续努力。"
    city = "The city council approved a new budget for road repairs on Tuesday after a long debate about parking fees."
    rows = [
        record("a"),
        record("sport", sport),
        record("b", ENGLISH, language="en"),
        record("city", city, language="en"),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    report = curate([path], tmp_path / "out", CurationSettings(lexicon="starter"))
    assert [d.id for d in documents(tmp_path / "out")] == ["a", "b"]
    assert report["rejected_by_reason"] == {"not medical": 2}
    mine = tmp_path / "mine.txt"
    mine.write_text("# sport\n球队\n教练\n球迷\ncouncil\nbudget\n", "utf-8")
    curate([path], tmp_path / "out", CurationSettings(lexicon=str(mine)))
    assert [d.id for d in documents(tmp_path / "out")] == ["sport", "city"]
    mine.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="empty lexicon"):
        curate([path], tmp_path / "out", CurationSettings(lexicon=str(mine)))
    with pytest.raises(ConfigError, match="cannot read the lexicon"):
        curate([path], tmp_path / "out", CurationSettings(lexicon=str(tmp_path / "none.txt")))


def test_contaminated_passages_are_reported_and_dropped(tmp_path):
    question = {"id": "q7", "question": "患者，男，五十岁，反复上腹痛三年，餐后加重，首选的检查方法是", "option": {"A": "胃镜", "B": "B超"},
                "answer": "A"}  # fmt: skip
    english = {"id": "e1", "question": "Which drug is the first choice for anaphylactic shock in adults?",
               "option": {"A": "Epinephrine", "B": "Aspirin"}, "answer": "A"}  # fmt: skip
    exam = write(tmp_path / "exam.jsonl", [question, english])
    path = write(
        tmp_path / "a.jsonl",
        [
            record("copy", "例题：患者，男，五十岁，反复上腹痛三年，餐后加重。应选胃镜。"),
            record("spaced", "患者 男 五十岁 反复上腹痛三年 餐后加重 以上为病史摘要"),
            record("near", "患者，女，六十岁，反复上腹痛两年，餐前加重，应做检查。"),
            record(
                "english", "It asks which drug is the FIRST choice for anaphylactic shock in adults.", language="en"
            ),
            record("clean", ENGLISH, language="en"),
        ],
    )
    report = curate([path], tmp_path / "out", CurationSettings(exam=(str(exam),)))
    assert [d.id for d in documents(tmp_path / "out")] == ["near", "clean"]
    hits = [line.record for line in read_jsonl(tmp_path / "out" / "contamination.jsonl")]
    assert [(hit["id"], hit["question"], hit["dropped"]) for hit in hits] == [
        ("copy", "q7", True), ("spaced", "q7", True), ("english", "e1", True),
    ]  # fmt: skip
    assert hits[0]["shared"] == "患者男五十岁反复上腹痛三年"[:13]
    assert report["rejected_by_reason"] == {"contamination": 3}
    kept = curate([path], tmp_path / "out", settings=CurationSettings(contamination_action="report", exam=(str(exam),)))
    assert kept["documents_out"] == 5 and len(list(read_jsonl(tmp_path / "out" / "contamination.jsonl"))) == 3
    with pytest.raises(ConfigError, match="no exam question is long enough"):
        curate([path], tmp_path / "out", CurationSettings(exam=(str(write(exam, [{**english, "question": "Why?"}])),)))


def test_personal_data_is_masked_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", [record("a", TEXT + "联系电话13812345678，邮箱li.lei@example.com。")])
    report = curate([path], tmp_path / "out")
    assert documents(tmp_path / "out")[0].text == TEXT + "联系电话[电话],邮箱[邮箱]。".replace(",", "，")
    assert report["repairs"] == {"masked e-mail": 1, "masked phone": 1}
    off = CurationSettings(mask_personal_data=False)
    curate([path], tmp_path / "out", settings=off)
    assert "13812345678" in documents(tmp_path / "out")[0].text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurationSettings(max_characters_zh=5, min_characters_zh=5), "wrong sizes: got min_characters_zh=5"),
        (lambda: CurationSettings(min_letter_share=2), "wrong min_letter_share: got 2"),
        (lambda: CurationSettings(near_duplicate_similarity=0), "wrong near_duplicate_similarity: got 0"),
        (
            lambda: CurationSettings(contamination_action="keep"),
            "wrong contamination_action: got 'keep', need one of drop, report",
        ),
        (lambda: ExecutorSettings(executor="cloud"), "wrong executor: got 'cloud', need one of local, slurm, ray"),
        (lambda: ExecutorSettings(workers=0), "wrong workers: got 0"),
        (lambda: ExecutorSettings(executor="slurm"), "needs --slurm-partition"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
