"""Remains of web pages and of wrong decodings: repaired exactly and counted, or told to be lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.text.damage import find_damage, repair_decoding
from megatron_huatuo.text.markup import strip_markup

ABSTRACTS = Path(__file__).parents[4] / "shared" / "data" / "pubmed_abstracts_200.jsonl"
ZH = "高血压是慢性病，需要长期治疗，并且要改变生活方式。"
EN = "The patient’s blood pressure was ≥140 mmHg — “high” — at 37 °C."


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("血压&gt;140/90&nbsp;mmHg", "血压>140/90\xa0mmHg"),
        ("&lt;br&gt;&#8226; 铁剂", "\n• 铁剂"),
        ("&amp;lt;p&amp;gt;x&amp;lt;/p&amp;gt;", "\nx\n"),
        ("AT&amp;T, C&S, R&D; ?a=1&copy=2 &nosuch;", "AT&T, C&S, R&D; ?a=1&copy=2 &nosuch;"),
        ("P<0.05, a<b and c>d, x < y > z, if a <5 and b> 3", "P<0.05, a<b and c>d, x < y > z, if a <5 and b> 3"),
        ("<答>：</s><问>：<think>x</think><|im_end|>", "<答>：</s><问>：<think>x</think><|im_end|>"),
        ('<div class="c"><script>var a="</p>";</script><b>肺</b><!-- x --><style>p{}</style></div>', "\n肺\n"),
        ("<TABLE><tr><td>硫酸亚铁</td><td>0.3g</td></tr></TABLE>", "\n\n 硫酸亚铁  0.3g \n\n"),
        ("一<br/>二<BR />三<p style='x'>四", "一\n二\n三\n四"),
        ('<a href="http://x?y=1&amp;z=2">链接</a><img src=x.png alt="a>b">', "链接"),
        ("<o:p></o:p>药<font color=red>物</font>", "药物"),
        ("10<sup>5</sup>，10<sup>-3</sup>，m<sup>2</sup>，Ca<sup>2+</sup>", "10^5，10^-3，m^2，Ca^2+"),
        ("10<sup>5</sup>3 H<sub>2</sub>O log<sub>2</sub>8 10<sub>2</sub>", "10^5 3 H2O log_2 8 10_2"),
        ("37<sup>o</sup>C，20<sup>th</sup>，药<sup>®</sup>，文<sup>[1,2]</sup>", "37°C，20th，药®，文[1,2]"),
        ("PO<sub>4</sub><sup>2-</sup> 10<SUP CLASS='x'>5</SUP> x<sup>a b</sup>", "PO4^2- 10^5 x^(a b)"),
        ("10<sup><i>5</i></sup>，cut 10<sup>-6", "10^5，cut 10^-6"),
        ("<script>never ends", "never ends"),
        ("<!-- never ends", "<!-- never ends"),
        ("没有标签", "没有标签"),
    ],
)
def test_markup_becomes_the_text_that_it_stood_for(raw, expected):
    assert strip_markup(raw) == expected


def test_what_was_taken_out_is_counted():
    counts: Counter[str] = Counter()
    strip_markup("<p>a&lt;b&amp;c</p><script>x</script>", counts)
    assert counts == {"HTML entity": 2, "HTML tag": 2, "HTML comment or script": 1}


@given(st.text("血压高abc 0123456789.,<>&;/=\"'\n", max_size=80))
@settings(max_examples=200, deadline=None)
def test_text_without_tags_and_entities_is_never_changed(text):
    if not any(mark in text for mark in ("<a", "<b", "</", "&", "<!")):
        assert strip_markup(text) == text


@given(
    st.lists(
        st.sampled_from(["血压", "12", "<b>", "</b>", "<p>", "<sup>", "</sup>", "<td>", "&nbsp;", "&lt;", "3", " "]),
        max_size=14,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_digit_and_no_han_is_lost(pieces):
    text = "".join(pieces)
    kept = [sign for sign in strip_markup(text) if sign.isdigit() or "\u4e00" <= sign <= "\u9fff"]
    assert kept == [sign for sign in text if sign.isdigit() or "\u4e00" <= sign <= "\u9fff"]


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", ["<script>", "<!--", "<a x=1 ", '<a x="', "&lt;", "<sup>", "<b>", "&amp;" * 3, "<"])
def test_long_runs_of_markup_take_linear_time(unit):
    """A quadratic step would take hours."""
    strip_markup(unit * (1_000_000 // len(unit)))


def as_windows_1252(text):
    """What a reader makes of UTF-8 that it takes for Windows-1252; bytes without a sign become controls."""
    return "".join(
        chr(byte) if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes([byte]).decode("cp1252")
        for byte in text.encode()
    )


@pytest.mark.parametrize("text", [ZH, EN, "5 µg β-blocker, naïve café, 10–20 ×"])
def test_utf8_that_was_read_as_windows_1252_is_repaired_to_the_letter(text):
    counts: Counter[str] = Counter()
    assert repair_decoding(as_windows_1252(text), counts) == text and counts["double decoding"] > 0
    assert repair_decoding(text) == text


@pytest.mark.parametrize("text", ["CAFÉ” he said", "À’s", "Ünlü “Ü”", "Ärzte—Ä", "Ω±1", "ÎÏ", "Â"])
def test_accented_letters_beside_quotes_are_right_as_they_are(text):
    assert repair_decoding(text) == text


@pytest.mark.parametrize("text", [ZH, EN, "心绞痛的发作是由于冠状动脉供血不足。"])
def test_utf8_that_was_read_as_gbk_is_damaged(text):
    read = text.encode().decode("gb18030", "replace").replace("\ufffd", "?")
    assert find_damage(read) == "damaged text: wrongly decoded, UTF-8 as GBK"
    assert find_damage(text) is None


@pytest.mark.parametrize(
    ("text", "damaged"),
    [
        ("锟斤拷锟斤拷高血压", True), ("剂量\ufffd毫克", True), ("烫烫烫烫烫", True), ("屯屯屯屯", True),
        ("水太烫，烫伤了。", False), ("小溪涓涓细流，鏈子", False), ("屯里的屯田", False), ("鈥", False), ("", False),
    ],
)  # fmt: skip
def test_traces_of_lost_text_are_told_from_text(text, damaged):
    assert (find_damage(text) is not None) is damaged


@pytest.mark.skipif(
    not ABSTRACTS.exists(), reason="needs ../shared/data/pubmed_abstracts_200.jsonl beside the repository"
)
def test_abstracts_as_they_are_published_come_out_without_markup_and_with_their_numbers():
    for line in ABSTRACTS.read_text("utf-8").splitlines():
        row = json.loads(line)
        for text in (row["title"], row["text"]):
            told = strip_markup(text)
            assert not any(mark in told for mark in ("<su", "<i>", "&#", "&lt;"))
            assert find_damage(told) is None and repair_decoding(told) == told
