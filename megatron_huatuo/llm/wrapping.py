"""What models put around a question or an answer that they were asked for: fences, labels, JSON, «好的，以下是…».

Invariant: what is peeled is wrapping by its form alone, never by its place; where the form leaves two readings the text
has a problem, under which it is rejected. So nothing of the wrapping becomes training text, and no part of an answer is
cut in silence.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any, Literal

from megatron_huatuo.llm.thoughts import Peeled, peel_reply

Kind = Literal["question", "answer"]

_MOST_LAYERS = 10
MOST_CHARACTERS = 50_000  # no question and no answer is so long, and looking for wrapping has its price
_SEVERAL = "several questions"

_WORDS: dict[str, str] = {
    "question": r"(?:生成的|患者的?|用户的?|提出的|改写后的)?(?:问题|問題|提问|提問|问句|问)|(?:病人|患者)(?=\s*[:：]\s*(?:我|医生|大夫|请问|[您你]好))|"
    r"(?i:(?:the |my |generated |rewritten |patient(?:'s)? )?(?:question|query)|prompt|user|patient(?=\s*:\s*(?:I|My|Doctor|Hello|Hi)\b))|Q",
    "answer": r"(?:最终|参考|标准|正确|详细|医生的?|我的|模型)?(?:回答|答案|答复|答覆|回复|回覆|解答|答)|医生|大夫|医师|助手|(?i:(?:the |my |final |"
    r"detailed |model )?(?:answer|response|reply)|doctor|physician|assistant)|A|AI",
}
_BOTH = rf"{_WORDS['question']}|{_WORDS['answer']}|输出|(?i:output)"
_REMARK = r"(?:\s*[（(][^）)\n]{0,20}[）)])?"


def _label(words: str) -> re.Pattern[str]:
    """A label before a text: with a colon, or as a heading, in brackets, in bold or bare on a line of its own."""
    word = rf"(?P<label>{words})\s*(?:\d{{1,2}}|[一二三])?{_REMARK}"
    return re.compile(
        rf"(?:#{{1,6}}[ \t]*|>[ \t]*|[-•][ \t]+)?(?P<bold>\*\*|__|\*)?\s*[【\[「<]?\s*{word}\s*[】\]」>]?\s*"
        r"(?P<close>\*\*|__|\*)?\s*[:：]\s*(?P<late>\*\*|__|\*)?\s*"
        rf"|#{{1,6}}[ \t]*(?:\*\*)?(?:{words})(?:\*\*)?[ \t]*\n+"
        rf"|[【\[](?:{words})[】\]]\s*|\*\*(?:{words})\*\*[ \t]*\n+|(?:{words})[ \t]*\n+"
    )


_LABEL = {"question": _label(_WORDS["question"]), "answer": _label(_WORDS["answer"]), "both": _label(_BOTH)}
_TURN = re.compile(
    r"^#{2,4} ?(?:Instruction|Input|Human|User|指令|问题)\b|^(?:\*\*)?(?:问|问题|提问|用户|Q|Question|User|Human)\s*\d{0,2}(?:\*\*)?\s*[:：]",
    re.MULTILINE,
)

_CONTAINERS: dict[str, str] = {
    "question": "question|query|问题|提问",
    "answer": "answer|response|reply|final|final_answer|final_response|output|solution|result|回答|答案|最终回答",
}
_CONTAINER = re.compile(
    rf"<({_CONTAINERS['question']}|{_CONTAINERS['answer']})(?:\s[^<>]*)?>(.*?)</\1>", re.DOTALL | re.IGNORECASE
)
_HALF_CONTAINER = re.compile(
    rf"^<(?:{_CONTAINERS['question']}|{_CONTAINERS['answer']})>|</(?:{_CONTAINERS['question']}|{_CONTAINERS['answer']})>$",
    re.IGNORECASE,
)
_BOX = re.compile(r"<\|(?:begin_of_box|end_of_box|begin_of_solution|end_of_solution)\|>")
_BOXED = re.compile(r"\$*\s*\\boxed\{(?:\\text\{(?P<text>[^{}]*)\}|(?P<plain>[^{}]*))\}\s*\$*")

_FENCE = re.compile(r"(```+|~~~+)[ \t]*[\w+-]*[ \t]*\n(.*?)\n?[ \t]*\1", re.DOTALL)
_INLINE_FENCE = re.compile(r"```(?:(?:markdown|md|text|plaintext|txt|json)\b[ \t]*)?([^`\n]+?)```", re.IGNORECASE)
_FENCE_OPENED = re.compile(r"(?:```+|~~~+)[ \t]*[\w+-]*[ \t]*\n")
_TRIPLE = re.compile(r"(\"\"\"|''')\s*(.*?)\s*\1", re.DOTALL)

_OPENER = (
    r"(?:(?:好的?|当然(?:可以|没问题)?|没问题|可以|明白了?|收到|了解了?|嗯|是的|您好|你好|(?i:sure(?: thing)?|certainly|of course|absolutely|"
    r"okay|ok|great|alright|yes|hello|hi))(?:呀|啊|哦|的)?\s*[，,。.！!～~、]+\s*)"
)
_ADJECTIVE = "detailed|complete|concise|comprehensive|short|brief|possible|professional|final|suggested|clear|thorough|full|direct"
_PREAMBLE: dict[str, re.Pattern[str]] = {
    # Answers themselves begin with «以下是常见的注意事项：»: only a clause that speaks of an answer is wrapping.
    "answer": re.compile(
        rf"{_OPENER}*(?:(?:作为|根据|按照|针对|关于|很高兴|感谢)[^\n，,。:：]{{0,30}}[，,。！!]\s*)?(?:"
        r"(?:以下|下面|这里|这)(?:就|便)?(?:是|为)[^\n。！？!?:：]{0,50}(?:回答|解答|答复|回复|答案)[^\n。！？!?:：]{0,12}"
        r"|[^\n。！？!?:：]{0,60}(?:回答|解答|答复|回复|答案)(?:如下|在此|是这样的)"
        r"|(?:下面|现在|那么)?(?:让?我)(?:来|将|会|就|尽力|很乐意|为您|直接)+[^\n。！？!?:：]{0,20}(?:回答|解答|答复)[^\n。！？!?:：]{0,12}"
        r"|(?i:(?:here(?:'s|’s| is| are)|below (?:is|are)|the following (?:is|are)|this is|i(?:'ll|’ll| will| have|'ve)|let me)"
        rf"\b[^\n.!?:]{{0,20}}\b(?:the|my|an?|your)\s+(?:(?:{_ADJECTIVE}|and),?\s+)*(?:answer|response|reply)\b[^\n.!?:]{{0,80}})"
        r")(?:\s*[:：]\s*|[。.！!]?[ \t]*\n+)"
    ),
    "question": re.compile(
        rf"{_OPENER}*(?:"
        r"(?:(?:以下|下面|这里|这)(?:就|便)?(?:是|为)|让?我(?:将|会|来|可以|已经?)*(?:根据|为您|提出|生成|设计|改写|拟))"
        r"[^\n。？?:：]{0,60}(?:问题|問題|提问|提問|问句)[^\n。？?:：]{0,20}(?:\s*[:：]\s*|[。.！!]?[ \t]*\n+)"
        r"|(?:根据|针对|基于|结合|围绕|为您)[^\n。？?:：]{0,60}(?:问题|問題|提问|提問|问句)[^\n。？?:：]{0,20}\s*[:：]\s*"
        r"|(?:问题|問題|提问|提問|问句)(?:如下|是)\s*[:：]\s*|(?i:(?:the|my) question is\s*:\s*)"
        r"|[^\n。？?:：]{0,40}(?:问题|問題|提问|提問|问句)[^\n。？?:：]{0,6}[:：][ \t]*\n+"
        r"|(?i:(?:here(?:'s|’s| is| are)|below (?:is|are)|the following (?:is|are)|this is|i(?:'ll|’ll| will| have|'ve)|let me|"
        r"based on)\b[^\n.?:]{0,120}\b(?:questions?|query|rewrite)\b[^\n.?:]{0,80})(?:\s*:\s*|[.!]?[ \t]*\n+)"
        r")"
    ),
}
_SMALL_TALK = re.compile(
    r"(?:好的?|没问题|明白了?|收到|(?i:ok|okay))[，,。.！!]+\s*(?=\S)|(?i:sure(?: thing)?|okay|ok|great)!\s+|"
    r"(?:这是(?:一)?个?(?:很好|非常好|好|不错)的?问题|好问题|感谢您?的?提问|谢谢您?的?提问)[。！!，,]\s*|"
    r"很高兴(?:能|可以)?(?:为|帮)您?[^\n，,。！!]{0,12}[。！!]\s*|(?i:i(?:'d|’d| would) be (?:happy|glad) to (?:help|answer)[^\n.!]{0,40}[.!])\s*|"
    r"(?i:(?:that(?:'s|’s| is) a )?(?:great|good|excellent) question[.!]|thank you for (?:your question|asking)[.!])\s*"
)
_CLOSING = re.compile(
    r"(?:希望(?:以上|这些|我的|这个|这|上述|该)?[^\n]{0,20}(?:帮助|有用|要求|满意)|如(?:果|您|有|需)[^\n]{0,30}(?:告诉我|随时(?:提问|问我|告知|联系我)|"
    r"继续提问|修改|调整)|(?:请问)?还有(?:什么|其他|别的)[^\n]{0,20}(?:帮|问题)|需要我[^\n]{0,40}吗|"
    r"(?i:i hope (?:this|that|these)|hope this helps|let me know if|feel free to|please let me know|is there anything else|"
    r"would you like me to|do you want me to))[^\n]*"
)
_NOTE = re.compile(
    r"[（(\[*_]{0,3}(?:注|说明|备注|解释|理由|提问意图|这个问题|该问题|此问题|本问题|上述问题|(?i:note|explanation|rationale|reasoning|"
    r"this question|the question|why this question))\s*[:：]?[^\n]*"
)
_COUNT = re.compile(
    r"[（(\[*]{0,2}(?:共|约|全文|字数|总字数|(?i:word count))[\s:：约共]*\d+\s*(?:个?字|字符|(?i:words?))?[）)\]*]{0,2}"
)
_RULE = re.compile(r"[-*_=—]{3,}")
_QUOTES = {"“": "”", '"': '"', "「": "」", "『": "』", "‘": "’", "«": "»", "`": "`", "'": "'"}
_ITEM = re.compile(r"[ \t]*(?:[-*•·][ \t]+|[(（]?\d{1,2}[.)、）．][ \t]*(?!\d)|[①-⑩]\s*)")
_NUMBERED = re.compile(r"(?:问题|(?i:question)|Q)\s*(?:\d{1,2}|[一二三四五])\s*[:：.]")
_INLINE_ITEM = re.compile(r"(?:^|[\s？?。；;])[(（]?\d{1,2}[.)、）．][ \t]*(?!\d)")
_RESIDUE = re.compile(r"```|~~~|</?(?:answer|question|response|final_answer|output)>|\\boxed\{", re.IGNORECASE)

_OWN_KEYS = {
    "question": ("question", "query", "问题", "提问", "q", "generated_question", "instruction"),
    "answer": ("answer", "response", "reply", "回答", "答案", "a", "final_answer", "content", "text", "output"),
}
_SILENT_KEYS = frozenset(
    ["id", "type", "language", "lang", "role", "status", "confidence", "score", "difficulty", "question", "query", "q",
     "问题", "提问", "thought", "thoughts", "thinking", "reasoning", "analysis", "思考", "推理", "word_count"]
)  # fmt: skip


def peel_question(text: str) -> Peeled:
    """The one question in a reply.

    >>> peel_question("好的，以下是我提出的问题：\\n\\n**问题：** “高血压怎么治疗？”").text
    '高血压怎么治疗？'
    >>> peel_question("1. 什么是痛风？\\n2. 痛风怎么治疗？").problem
    'several questions'
    """
    return _peel(text, "question")


def peel_answer(text: str) -> Peeled:
    """The answer in a reply.

    >>> peel_answer("```markdown\\n回答：多喝水。\\n```").text
    '多喝水。'
    """
    return _peel(text, "answer")


def _peel(text: str, kind: Kind) -> Peeled:
    peeled = peel_reply(_BOX.sub("", text))
    if len(peeled.text) > MOST_CHARACTERS:
        return Peeled(peeled.text, peeled.problem or f"{kind} too long: {len(peeled.text)} characters")
    for _ in range(_MOST_LAYERS):
        before = peeled
        for layer in _LAYERS:
            if peeled.problem is None:
                peeled = layer(peeled.text.strip(), kind)
        if peeled.problem is not None or peeled == before:
            break
    if peeled.problem is None and kind == "question":
        peeled = _one_question(peeled.text)
    if peeled.problem is None and (left := _RESIDUE.search(peeled.text)):
        return Peeled(peeled.text, f"wrapping: {left.group()}")
    if peeled.problem is None and kind == "answer" and (turn := _TURN.search(peeled.text)):
        return Peeled(peeled.text, f"wrapping: another turn: {turn.group()}")
    return peeled


def _fence(text: str, kind: Kind) -> Peeled:
    if (whole := _FENCE.fullmatch(text)) and "```" not in whole[2] and "~~~" not in whole[2]:
        return Peeled(whole[2].strip())
    if (inline := _INLINE_FENCE.fullmatch(text)) or (inline := _TRIPLE.fullmatch(text)):
        return Peeled(inline[inline.lastindex or 1].strip())
    if text.count("```") + text.count("~~~") == 1:  # cut off before it was closed, or closed without being opened
        if opened := _FENCE_OPENED.match(text):
            return Peeled(text[opened.end() :].strip())
        return Peeled(text.removesuffix("```").removesuffix("~~~").strip())
    return Peeled(text)


def _container(text: str, kind: Kind) -> Peeled:
    if boxed := _BOXED.fullmatch(text):
        return Peeled((boxed["text"] or boxed["plain"] or "").strip())
    found = list(_CONTAINER.finditer(text))
    if not found:
        return Peeled(_HALF_CONTAINER.sub("", text).strip())
    own = [match for match in found if re.fullmatch(_CONTAINERS[kind], match[1], re.IGNORECASE)]
    outside = _CONTAINER.sub("", text).strip()
    if len(own) == 1 and (not outside or _PREAMBLE[kind].fullmatch(f"{outside}\n") or _CLOSING.fullmatch(outside)):
        return Peeled(own[0][2].strip())
    if not own and len(found) == 1 and not outside:
        return Peeled(found[0][2].strip())
    return Peeled(text, f"wrapping: <{found[0][1]}>")


def _json(text: str, kind: Kind) -> Peeled:
    if text[:1] not in ("{", "[", '"') or text[-1:] not in ("}", "]", '"'):
        if re.match(r'[{\[]\s*["\']\w+["\']\s*:', text):
            return Peeled(text, "wrapping: broken JSON")
        return Peeled(text)
    content = parse_json(text)
    if content is None:
        is_broken = re.match(r'(?:\[\s*)?\{\s*["\']', text) is not None
        return Peeled(text, "wrapping: broken JSON" if is_broken else None)
    return _from_value(content, text, kind)


def parse_json(text: str) -> Any:
    """JSON, with raw line ends in its texts too, or what Python prints of a dict; None for anything else."""
    for parse in (lambda: json.loads(text, strict=False), lambda: ast.literal_eval(text)):
        try:
            return parse()
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _from_value(content: Any, text: str, kind: Kind) -> Peeled:
    """The text of a kind in a JSON value."""
    if isinstance(content, str):
        return Peeled(content.strip())
    if isinstance(content, list) and len(content) == 1:
        return _from_value(content[0], text, kind)
    if isinstance(content, list) and kind == "question" and len(content) > 1:
        return Peeled(text, _SEVERAL)
    if isinstance(content, dict):
        keys = {str(key).strip().lower(): value for key, value in content.items()}
        own = [keys[name] for name in _OWN_KEYS[kind] if keys.get(name)]
        others = [
            key
            for key, value in keys.items()
            if isinstance(value, str | list | dict) and value and key not in _SILENT_KEYS
        ]
        if kind == "question" and own:
            return _from_value(own[0], text, kind)
        if own and len([key for key in others if key not in ("instruction", "input")]) == 1:
            return _from_value(own[0], text, kind)
        if not own and len(others) == 1:
            return _from_value(keys[others[0]], text, kind)
    return Peeled(text, "wrapping: JSON")


def _peel_label(text: str, kind: Kind) -> Peeled:
    other: Kind = "answer" if kind == "question" else "question"
    if kind == "answer" and (asked := _LABEL["question"].match(text)):
        # The question again, then the answer under a label of its own.
        answer = re.search(rf"(?:^|\n)[ \t]*(?:{_LABEL['answer'].pattern})", text[asked.end() :])
        if answer is None:
            return Peeled(text, "wrapping: a question instead of an answer")
        return Peeled(text[asked.end() + answer.end() :].strip())
    label = _LABEL["both"].match(text)
    if label is not None and label.end() < len(text):
        if kind == "question" and _LABEL[other].match(text) and label["label"] not in ("A", "AI"):
            return Peeled(text[label.end() :].strip())
        rest = text[label.end() :]
        marks = [label["bold"], label["close"], label["late"]]
        opened = [mark for mark in marks if mark]
        if len(opened) % 2:  # the label and its text stand in one pair of marks
            rest = rest.removesuffix(opened[0]) if rest.endswith(opened[0]) else opened[0] + rest
        return Peeled(rest.strip())
    return Peeled(text)


def _preamble(text: str, kind: Kind) -> Peeled:
    for pattern in (_PREAMBLE[kind], _SMALL_TALK):
        match = pattern.match(text)
        if match and match.end() < len(text):
            return Peeled(text[match.end() :].strip())
    return Peeled(text)


def _closing_line(text: str, kind: Kind) -> Peeled:
    lines = text.split("\n")
    patterns = [_CLOSING, _COUNT, _RULE] + ([_NOTE] if kind == "question" else [])
    while len(lines) > 1 and (not lines[-1].strip() or any(p.fullmatch(lines[-1].strip()) for p in patterns)):
        lines.pop()
    while len(lines) > 1 and (not lines[0].strip() or _RULE.fullmatch(lines[0].strip())):
        lines.pop(0)
    return Peeled("\n".join(lines).strip())


def _quotes(text: str, kind: Kind) -> Peeled:
    for mark in ("**", "__", "*"):
        inside = text[len(mark) : -len(mark)]
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark[0] not in inside:
            return Peeled(inside.strip())
    if kind == "question" and len(text) > 2 and _QUOTES.get(text[0]) == text[-1]:
        inside = text[1:-1]
        if text[0] not in inside and text[-1] not in inside:
            return Peeled(inside.strip())
    return Peeled(text)


def _one_question(text: str) -> Peeled:
    """A question alone: what follows it under the label of an answer is cut; a list of questions is a problem."""
    if answer := re.search(rf"\n[ \t]*(?:{_LABEL['answer'].pattern})", text):
        text = text[: answer.start()].strip()
    lines = [line for line in text.split("\n") if line.strip()]
    items = [line for line in lines if _ITEM.match(line)]
    asking = [line for line in lines if line.rstrip().endswith(("？", "?"))]
    inline = len(_INLINE_ITEM.findall(text)) > 1 and text.count("？") + text.count("?") > 1
    if len(asking) > 1 or (len(items) > 1 and len(items) == len(lines)) or inline or len(_NUMBERED.findall(text)) > 1:
        return Peeled(text, _SEVERAL)
    if len(lines) == 1 and items:
        text = _ITEM.sub("", text, count=1).strip()
    return Peeled(text)


_LAYERS: tuple[Callable[[str, Kind], Peeled], ...] = (
    _fence, _container, _json, _preamble, _peel_label, _closing_line, _quotes,
)  # fmt: skip
