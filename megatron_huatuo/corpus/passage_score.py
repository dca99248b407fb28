"""A quality score of each passage, before anything is paid for it: a linear model over features that a person can check.

Invariant: a score depends on the passage, its title, the lexicon and the model alone. It says how a text is written and
how medical it is, not whether it is true.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_huatuo.corpus.lexicon import Lexicon
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.text.damage import distinct_share
from megatron_huatuo.text.language import count_size

BUNDLED_MODEL = Path(__file__).parent / "score_model.json"
FEATURES = ("terms", "numbers", "sentences", "distinct", "boilerplate", "links", "symbols", "length")

_NUMBER = re.compile(r"\d+(?:[.,/]\d+)*")
_END_OF_SENTENCE = re.compile(r"[。！？!?；;…]|\.(?=\s|$)|\n")
_SENTENCE_CHARACTERS = {"zh": (6, 160), "en": (20, 500)}
_HINTS_OF_LINKS = ("http", "www.", "@", "[电话]", "[邮箱]", "[证件号]", "[phone]", "[email]", "[id number]")
_LINK = re.compile(
    r"https?://[^\s，。；、）]+|www\.[^\s，。；、）]+|[\w.+-]{1,64}@[\w.-]{1,64}|\[(?:电话|邮箱|证件号|phone|email|id number)\]"
)
_UNCOMMON_SIGN = re.compile(r"[^\w\s，。、；：？！“”‘’（）《》〈〉·,.;:?!'\"()%/+\-–—°℃<>=≤≥±×~]")
_BOILERPLATE = (
    "点击", "扫码", "二维码", "微信", "公众号", "关注我们", "加好友", "客服", "热线", "在线咨询", "预约挂号",
    "免费咨询", "上一篇", "下一篇", "上一页", "下一页", "相关阅读", "相关文章", "推荐阅读", "热门", "更多", "登录",
    "注册", "收藏", "点赞", "转发", "分享到", "评论", "楼主", "回复", "举报", "来源：", "作者：", "编辑：", "版权",
    "转载", "未经授权", "广告", "优惠", "特价", "包邮", "下单", "购买", "首页", "网站地图", "免责声明", "浏览次数",
    "发布时间", "click here", "read more", "sign in", "sign up", "log in", "subscribe", "newsletter", "cookie",
    "privacy policy", "terms of use", "contact us", "about us", "all rights reserved", "copyright", "share this",
    "follow us", "next page", "previous page", "advertisement", "sponsored", "buy now", "add to cart",
    "free shipping", "related articles", "related posts", "leave a reply", "leave a comment", "posted by",
    "posted on",
)  # fmt: skip
_MOST_TERMS = {"zh": 0.3, "en": 0.2}  # more is a list of terms, and no better for it


class ScoreModel:
    """Weights of the features for each language; the score is the logistic function of their sum, 0 to 1."""

    def __init__(self, weights: Mapping[str, Mapping[str, float]], path: str) -> None:
        """weights: {language: {"intercept" or a feature: weight}}. Raises: ConfigError naming what is wrong."""
        self.weights, self.path = weights, path
        known = ("intercept", *FEATURES)
        for language, row in weights.items():
            for name, value in row.items():
                if name not in known:
                    raise ConfigError(f"unknown feature: got {name!r} of {language!r}, need one of {known} ({path}).")
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise ConfigError(f"wrong weight of {name!r}: got {value!r}, need a number ({path}).")

    @classmethod
    def load(cls, path: str | Path | None) -> ScoreModel:
        """Read a model: JSON {language: {"intercept": number, feature: number…}}; None for the bundled one."""
        path = BUNDLED_MODEL if path is None else path
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the score model: {error} ({path}). Check the file.") from error
        if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()) or not content:
            raise ConfigError(
                f"wrong score model: need {{language: {{'intercept': number, feature: number…}}}} ({path})."
            )
        return cls(content, str(path))

    def score(self, features: Mapping[str, float], language: str) -> float:
        """The score of a passage, 0 to 1, to three digits. Raises: ConfigError without weights for the language."""
        row = self.weights.get(language)
        if row is None:
            raise ConfigError(f"no weights for the language {language!r} in the score model ({self.path}). Add them.")
        total = row.get("intercept", 0.0) + sum(row.get(name, 0.0) * features[name] for name in FEATURES)
        return round(1 / (1 + math.exp(-max(-50.0, min(50.0, total)))), 3)


def measure_features(text: str, title: str | None, language: str, lexicon: Lexicon) -> dict[str, float]:
    """What a score model weighs, each 0 to 1:

    terms: share of title and text inside medical terms, at most 0.3 (Chinese) or 0.2 (English).
    numbers: numbers per character or word. sentences: share of the text in sentences of usual length with their mark.
    distinct: share of its pieces of 8 characters that differ. boilerplate: ten times the phrases of web pages per character
    or word, at most 1. links: share of signs in addresses and masked data. symbols: share of signs that no sentence has.
    length: a third of the logarithm of characters or words, at most 1. Cost: linear.
    """
    size = max(1, count_size(text, language))
    lowered = text.lower()
    phrases = sum(lowered.count(phrase) for phrase in _BOILERPLATE)
    links = sum(map(len, _LINK.findall(text))) if any(hint in text for hint in _HINTS_OF_LINKS) else 0
    visible = max(1, len("".join(text.split())))
    return {
        "terms": min(lexicon.density(f"{title or ''}\n{text}", language), _MOST_TERMS[language]),
        "numbers": min(1.0, len(_NUMBER.findall(text)) / size),
        "sentences": _share_in_sentences(text, *_SENTENCE_CHARACTERS[language]),
        "distinct": distinct_share(text),
        "boilerplate": min(1.0, 10 * phrases / size),
        "links": min(1.0, links / visible),
        "symbols": min(1.0, len(_UNCOMMON_SIGN.findall(text)) / visible),
        "length": min(1.0, math.log10(size) / 3),
    }


def _share_in_sentences(text: str, shortest: int, longest: int) -> float:
    """Share of the characters in sentences of usual length that end with their mark, not with a line or the text."""
    start = told = 0
    for end in _END_OF_SENTENCE.finditer(text):
        length = end.end() - start
        if end[0] != "\n" and shortest <= length <= longest:
            told += length
        start = end.end()
    return told / max(1, len(text))


def describe_model(path: str | None) -> dict[str, Any]:
    """What decides scores, for fingerprints and manifests: the weights themselves."""
    return {language: dict(row) for language, row in ScoreModel.load(path).weights.items()}
