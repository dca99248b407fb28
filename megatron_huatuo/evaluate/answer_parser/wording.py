"""How Chinese and English replies word an answer: cues, judgements, negations, conclusions.

Invariant: patterns only; they apply to the normalised text of `shell.normalise`. A cue that ends with `(?=@)` holds
only where an option follows at once; after any other cue words may stand between.
"""

from __future__ import annotations

import re

NEGATIVE_QUESTION = re.compile(
    r"不正确|错误|不对|不属于|不包括|不包含|除外|不符|不当|无关|不恰当|(?:不是|不宜|不应|不能|不会|不可|不需)[^,，。]{0,16}的"
    r"|\b(?:not|except|incorrect|false|least|wrong)\b",
    re.IGNORECASE,
)

SENTENCE_END = re.compile(r"[。!?\n;]|(?<=[a-z)\u3400-\u9fff])\.(?=\s|$)")

WRONG = re.compile(
    r"\)?[.:]? ?(?:选?项)?(?:的?(?:说法|描述|叙述|表述))?:? ?(?:是|均|都|也|为|则|显然)*"
    r"(?:错误|错的|错(?=[A-Z,。;\s]|$)|[×✗✘]|不正确|不对|不符|不选|不合|有误|可?(?:以|应)?(?:被)?排除|不成立|不是(?:答案|正确)|不恰当"
    r"| ?(?:is|are|was)(?: also| clearly| therefore)? (?:wrong|incorrect|false|not|ruled|excluded|eliminated)|isn't|can be (?:excl|ruled|elim))",
    re.IGNORECASE,
)

_IF = "(?<![不若如果误错别勿未可备待首入挑筛多单精人漏])"

CUES = [
    # "答案是", "正确答案应该为", "答案：", "答案C"; not the heading "答案解析："
    r"答案(?!(?:及|与|和|的)?(?:解析|分析|详解|说明))[^。!?\n,;:答]{0,8}?(?:是|为|选择?|应当?|:)+",
    r"答案\)?[\s:]*(?=\(?[A-Z])",
    r"\(答案\)[\s:]*(?=@)",
    _IF + r"选(?!项|择题|手|自|出|用)(?:择|取|定)?了?(?:答案|选项|的是|的)?[:\s(]*(?=@)",
    r"(?:正确|最佳|最终)(?:的)?(?:选项|选择|项)(?:应该?|就)?(?:是|为|有|包括|:)+\s?(?:选项)?[\s(]*(?=@)",
    r"(?:符合(?:题意|要求|题干)|最佳|最合适|最恰当|最准确|最合理|最有可能|最可能|更可能)的?(?:选项|选择|项|一项|答案)?"
    r"(?:应该?|就)?(?:是|为|:)+\s?(?:选项)?[\s(]*(?=@)",
    r"(?:更正为?|改为|应改为|改选|修正为|修改为|纠正为)[:\s]*(?:选项|答案)?[:\s(]*(?=@)",
    r"(?:只?剩下?|只能是)(?:选项)?[:\s(]*(?=@)",
    r"(?:不对|等等|等一下|再想想|\bwait|\bactually|\bon second thoughts?)[,。.!…: ]{1,3}[^。.!?\n;]{0,16}?(?:应该?(?:是|为|选)|是|:|"
    r"\bshould be|\bit is|\bit's|\bis)[\s(]*(?:选项|option )?(?=@)",
    r"\bcorrection:?\s?(?:option )?(?=@)",
    r"(?<!wrong )(?<!incorrect )\banswers?\b(?: (?:here|to this question|to the question|choice|option))?"
    r"(?: (?:is|are|would be|should be|must be|will be|has to be)\b|\s?[:=])+",
    r"\b(?:(?<!in)correct|right|best|final|appropriate|suitable|likely) (?:options?|choices?|selection)"
    r"(?: (?:is|are|would be|should be|must be)\b|\s?[:=])+",
    r"(?<!not )(?<!n't )(?<!to )(?<!if you )\b(?:choose|select|pick|go with|chose|opt for|choosing)"
    r"(?: (?:option|answer|choice|the))*[:\s(]*(?=@)",
    r"\b(?:ans\.?|answer)[\s:(]*(?=@)",
    r"^ ?(?:the )?(?:final |correct |best )?(?:answer|答案|正确答案|最终答案|结论):?\s*\n\s*(?=@)",
    r"(?:所以|因此|因而|故|那么|于是|我认为|我觉得|综上(?:所述)?)[^。,;\n]{0,8}?,?(?:应该?|应当|就|只能)?(?:是|为|选)[:\s(]*(?=@)",
    r"(?:^|[,.;] )so,? (?:it's |it is |we choose )?(?=@)",
    r"应(?:当|该)?(?:监测|选用|使用|给予|首选|考虑|检查|选择|选)(?:的是)?[:\s(]*(?=@)",
]

CUE_RIGHT = r"(?<!不)正确的?(?:说法|描述|叙述|表述)?(?:应该?|就)?(?:是|为|有|包括|:)+[\s(]*(?=@)"

CUE_WRONG = r"(?:不正确|错误|不对|不恰当|不属于|不包括)的?(?:说法|描述|叙述|表述|选项|一项|项)?(?:应该?|就)?(?:是|为|有|:)+[\s(]*(?=@)"

IS_THE_ANSWER = re.compile(
    r"\)? ?(?:选?项)? ?(?:才|就|即|应该?|均|都|最)?(?:(?:是|为)(?:本题|该题|此题|最终|唯一)?的?"
    r"(?:正确|最佳|标准|合适|最合适|最恰当|最符合题意)?的?(?:答案|选择|选项)|符合(?:题意|题干|要求)|[最更](?:合适|恰当|符合)|最佳)"
    r"|\)? (?:fits|matches|is) (?:the )?best\b|\)? it is\b"
    r"|\)? comes first\b|\)? is the (?:\w+ ){0,2}of (?:choice|care)\b"
    r"|\)?\s?(?:option )?(?:is|are|would be|must be)(?: therefore| thus| clearly)? (?:the|my)(?: most)?"
    r"(?: correct| right| best| appropriate| final| likely| suitable)* (?:answer|option|choice)",
    re.IGNORECASE,
)

RATHER = re.compile(
    r"(?:而是|而应该?是|而应选|而选|应该?(?:是|选|为)|实际(?:上)?是|是|\bbut(?: rather)?|\bit is|it's)\s?(?:选|选项|option )?[:\s(]*$",
    re.IGNORECASE,
)

BUT = re.compile(r"(?:\bbut|\bhowever,?|但是?)\s?(?:选项|option )?\(?$", re.IGNORECASE)

BETTER = re.compile(
    r"\)?\s?(?:is (?:(?:the )?better|preferred|(?:far |much )?more\b)|更(?:好|合适|常见|恰当))", re.IGNORECASE
)

NOT_ANOTHER = re.compile(r",?\s?(?:而?不是|并非|而非|not\b|rather than\b)", re.IGNORECASE)

COPULA = re.compile(
    r"(?:(?<!(?<!最)可能)是|为|考虑|有赖于|依靠|属于|,即|(?:诊断|结论|药物|判断):|\bis|\bbe|\bleaves|'s|选)\s?(?:选项|option |\()?\(?$",
    re.IGNORECASE,
)

CONCLUSION = re.compile(
    r"因此|所以|故|综上|可见|总之|由此|\b(?:therefore|thus|hence|so|in conclusion|overall)\b", re.IGNORECASE
)

NO_ANCHOR = re.compile(r"基于|根据|取决|在于|依据|无法|不确定|based on|depend|because|cannot|unclear", re.IGNORECASE)

QUESTION_TAIL = re.compile(r"[^。!\n;,]{0,12}?(?:\?|[吗呢](?=\s?(?:[,。!;\n]|$)))")
