"""What stands in a reply besides the answer itself: thoughts, channels, and the tokens that part turns.

Reasoning models write their thoughts between tags of many names; a chat template may have written the opening tag, so
that a reply begins in the middle of a thought. Invariant: nothing of a thought or of another turn is left in the text; a
reply that does not say where its answer begins, or where it ends, has a problem instead.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAMES = (
    "think|thinking|thoughts?|thinking_process|thought_process|reasoning|reflection|scratchpad|inner_monologue|analysis|"
    "antthinking|seed:think|seed:cot_budget_reflect|longcat_think|思考|思考过程|推理过程|分析过程"
)
_OPENING = re.compile(
    rf"<\s*(?:{_NAMES})(?:\s[^<>]*)?>|◁think▷|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|think(?:ing)?\|>|"
    r"<unused94>(?:thought)?|<\|channel>\s*thought",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf"<\s*/\s*(?:{_NAMES})\s*>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>|<\|END_THINKING\|>|<\|/think(?:ing)?\|>|"
    r"<unused95>|<channel\|>",
    re.IGNORECASE,
)
_ESCAPED = re.compile(rf"&lt;(\s*/?\s*(?:{_NAMES})\s*)&gt;", re.IGNORECASE)
_MOST_FOLDED = 20  # each is looked for to the end of the text
_FOLDED = re.compile(r"<details\b[^>]*reasoning[^>]*>.*?</details>", re.IGNORECASE | re.DOTALL)

# gpt-oss: messages on channels, of which only the last one on "final" is the answer. Servers that drop special tokens
# leave `analysis…assistantfinal…`.
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_CHANNEL_OPENED = re.compile(r"\s*(?:analysis|commentary|final)\s*<\|message\|>")
_CHANNELS_BARE = re.compile(r"\s*(?:assistant)?(?:analysis|commentary)\S.*assistant\s?final(.*)\Z", re.DOTALL)
_CHANNEL_BARE = re.compile(r"\s*(?:assistant)?analysis(?=[A-Z\u3400-\u9fff])")

# Thoughts under a heading, as HuatuoGPT-o1, Granite and the command line of Ollama write them.
_HEADED = (
    re.compile(
        r"\s*#{1,6}\s*(?:Thinking|Thoughts?|Reasoning|思考|推理)[^\n]*\n"
        r"(?:.*?\n[ \t]*#{1,6}[ \t]*(?:Final\s+(?:Response|Answer|Output)|Response|Answer|最终(?:回答|答案|回复)|回答|答案|回复)[^\n]*(?:\n|\Z)"
        r"(?P<answer>.*))?",
        re.IGNORECASE | re.DOTALL,
    ),
    re.compile(
        r"\s*Here(?:'s|’s| is) my (?:thought|thinking|reasoning) process\s*:?"
        r"(?:.*\bHere(?:'s|’s| is) my (?:final )?(?:response|answer)\s*:?(?P<answer>.*))?",
        re.IGNORECASE | re.DOTALL,
    ),
    re.compile(r"\s*Thinking\.\.\.\s*\n(?:.*?\.\.\.\s*done thinking\.?(?P<answer>.*))?", re.IGNORECASE | re.DOTALL),
    re.compile(
        r"\s*(?:(?:\*\*)?(?:思考过程|推理过程|思维链|Thought process|Thinking process|Chain of thought|Thinking)(?:\*\*)?\s*[:：]|"
        r"[【\[](?:思考|思考过程|推理过程|思维链|Thoughts?|Thinking|Reasoning)[】\]])"
        r"(?:.*?\n[ \t]*(?:(?:\*\*)?(?:最终)?(?:Final (?:answer|response)|Answer|Response|回答|答案|回复)(?:\*\*)?\s*[:：]|"
        r"[【\[](?:最终)?(?:Final (?:answer|response)|Answer|Response|回答|答案|回复)[】\]])\s*[:：]?(?:\*\*)?(?P<answer>.*))?",
        re.IGNORECASE | re.DOTALL,
    ),
)

_END = re.compile(
    r"<\|(?:im_end|im_sep|endoftext|eot_id|eom_id|end_of_text|end_of_turn|end|return|eos|eod|eot|endofresponse|"
    r"END_OF_TURN_TOKEN|END_RESPONSE)\|>|<｜end▁of▁sentence｜>|<\|end▁of▁sentence\|>|</s>|<eos>|<end_of_turn>|<turn\|>|"
    r"<EOT>|\[EOS\]|<end_of_utterance>",
    re.IGNORECASE,
)
_ASSISTANT = re.compile(
    r"(?:<\|im_start\|>\s*assistant|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<start_of_turn>\s*model|"
    r"<\|turn>\s*model|<\|start\|>\s*assistant|<\|(?:assistant|ASSISTANT|bot|CHATBOT_TOKEN)\|>|<｜Assistant｜>|\[/INST\]|"
    r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>|<\|START_RESPONSE\|>|<reserved_107>|<答>\s*[:：]|"
    r"assistant[ \t]*\n|<s>|<bos>|<pad>|\[gMASK\]|<sop>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|[\s\ufeff\u200b]+)"
)
_OTHER_TURN = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|<\|start\|>|"
    r"<\|(?:user|USER|system|SYSTEM|human|observation|assistant|START_OF_TURN_TOKEN)\|>|<｜(?:User|Assistant)｜>|"
    r"\[/?INST\]|<reserved_10[67]>|<[问答]>\s*[:：]|"
    r"\n(?:user|assistant)[ \t]*\n"
)
_BARE_TURN = re.compile(r"(?:user|assistant)[ \t]*\n")
_SPACE = re.compile(r"\s+")
_LEFTOVER = re.compile(
    r"<\|[A-Za-z_/][^|<>\s]{0,40}\|>|<｜[^｜<>]{1,40}｜>|◁/?think▷|\[/?THINK\]|<(?:unused\d+|reserved_\d+)>"
)


class Peeled(NamedTuple):
    """The answer itself. problem: why it cannot be used, as a reason for a report, or None."""

    text: str
    problem: str | None = None


def peel_reply(text: str) -> Peeled:
    """The text of a reply without thoughts, channels and turn tokens.

    >>> peel_reply("the user asks …</think>\\n\\nB<|im_end|>").text
    'B'
    >>> peel_reply("<think>the user asks").problem
    'thoughts: without an end'
    """
    peeled = _without_thoughts(text)
    if peeled.problem is None:
        had_thoughts = len(peeled.text.strip()) < len(text.strip())
        peeled = _first_turn(peeled.text)
        if had_thoughts and peeled == ("", None):
            return Peeled("", "thoughts: nothing after them")
        if peeled.problem is None and (left := _LEFTOVER.search(peeled.text)):
            return Peeled(peeled.text, f"wrapping: {left.group()}")
    return peeled


def _without_thoughts(text: str) -> Peeled:
    if "<|message|>" in text or "<|channel|>" in text:
        opened = f"<|channel|>{text.lstrip()}" if _CHANNEL_OPENED.match(text) else text
        bodies = [body for channel, body in _CHANNEL.findall(opened) if channel == "final"]
        return Peeled(bodies[-1]) if bodies else Peeled("", "thoughts: no final channel")
    if bare := _CHANNELS_BARE.match(text):
        return Peeled(bare[1])
    if _CHANNEL_BARE.match(text):
        return Peeled("", "thoughts: without an end")
    text = _ESCAPED.sub(r"<\1>", text)
    if "</details>" in text and text.count("<details") <= _MOST_FOLDED:
        text = _FOLDED.sub("", text)
    for pattern in _HEADED:
        if headed := pattern.match(text):
            answer = headed["answer"]
            return Peeled("", "thoughts: without an end") if answer is None else Peeled(answer)
    return _without_tagged(text)


def _without_tagged(text: str) -> Peeled:
    """Text outside the tags. A closing tag without an opening one makes a thought of all that stands before it."""
    tags = [(match.start(), match.end(), False) for match in _OPENING.finditer(text)]
    tags += [(match.start(), match.end(), True) for match in _CLOSING.finditer(text)]
    outside: list[str] = []
    position, is_open = 0, False
    for start, end, closes in sorted(tags):
        if closes:
            if not is_open:
                outside.clear()
            position, is_open = end, False
        elif not is_open:
            outside.append(text[position:start])
            is_open = True
    if is_open:
        return Peeled("".join(outside).strip(), "thoughts: without an end")
    return Peeled("".join([*outside, text[position:]]))


def _first_turn(text: str) -> Peeled:
    """The reply's own turn: without the marks before it, and without its end token and the turns that follow it."""
    start = 0
    while mark := _ASSISTANT.match(text, start) or _END.match(text, start):
        start = mark.end()
    ends = [match for pattern in (_END, _OTHER_TURN) if (match := pattern.search(text, start))]
    if not ends:
        return Peeled(text[start:].strip())
    end = min(ends, key=lambda match: match.start())
    own, rest = text[start : end.start()].strip(), end.start()
    if not own:
        return Peeled("", "wrapping: another turn")
    while mark := _END.match(text, rest) or _SPACE.match(text, rest):
        rest = mark.end()
    if rest < len(text) and not (
        _OTHER_TURN.match(text, rest) or _BARE_TURN.match(text, rest) or _ASSISTANT.match(text, rest)
    ):
        return Peeled(own, "wrapping: text after the end token")
    return Peeled(own)
