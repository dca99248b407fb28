"""Chat templates of published models whose directories bring none, by name, and the tokens that end their replies.

Sources: HuatuoGPT-II and HuatuoGPT evaluation/eval_qa.py of the HuatuoGPT-II repository (88ddf9a); Baichuan2-Chat and
DISC-MedLLM `build_chat_input` of their generation_utils.py (token ids 195 and 196 of their vocabularies); Qwen-Chat
`make_context` of qwen_generation_utils.py; ChatGLM3 the template of THUDM/chatglm3-6b.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from megatron_huatuo.config import one_of
from megatron_huatuo.index.formats.chat_format import CHAT_TEMPLATE

_HUATUO_SYSTEM = (
    "一位用户和智能医疗大模型HuatuoGPT之间的对话。对于用户的医疗问诊，HuatuoGPT给出准确的、详细的、温暖的指导建议。"
    "对于用户的指令问题，HuatuoGPT给出有益的、详细的、有礼貌的回答。"
)


class NamedTemplate(NamedTuple):
    """jinja: the template; None for plain text. stops: tokens that end a reply besides the directory's own."""

    jinja: str | None
    stops: tuple[str, ...] = ()


def _turns(before_user: str, after_user: str, before_answer: str = "", after_answer: str = "", start: str = "") -> str:
    """A template of alternating turns; the texts are quoted, since transformers drops a line break behind a tag."""
    first, user, asked, answer, end = map(json.dumps, (start, before_user, after_user, before_answer, after_answer))
    return (
        f"{{{{ {first} }}}}{{% for message in messages %}}{{% if message['role'] == 'user' %}}"
        f"{{{{ {user} + message['content'] + {asked} }}}}{{% elif message['role'] == 'assistant' %}}"
        f"{{{{ {answer} + message['content'] + {end} }}}}{{% endif %}}{{% endfor %}}"
    )


_TEMPLATES = {
    "none": NamedTemplate(None),
    "huatuogpt2": NamedTemplate(CHAT_TEMPLATE),
    "huatuogpt": NamedTemplate(_turns("<病人>：", " <HuatuoGPT>：", start=_HUATUO_SYSTEM), ("</s>",)),
    "baichuan2-chat": NamedTemplate(_turns("<reserved_106>", "<reserved_107>")),
    "disc-medllm": NamedTemplate(_turns("<reserved_102>", "<reserved_103>")),
    "qwen-chat": NamedTemplate(
        _turns(
            "\n<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            after_answer="<|im_end|>",
            start="<|im_start|>system\nYou are a helpful assistant.<|im_end|>",
        ),
        ("<|im_end|>",),
    ),
    "chatglm3": NamedTemplate(_turns("<|user|>\n ", "<|assistant|>", "\n ", start="[gMASK]sop"), ("<|user|>",)),
}
AUTO_TEMPLATE = "auto"


def named_template(name: str) -> NamedTemplate:
    """The template of that name. Raises: ConfigError naming those that there are."""
    one_of("template", name, (AUTO_TEMPLATE, *_TEMPLATES))
    return _TEMPLATES[name]


def check_template_name(name: str) -> None:
    """Refuse a name that is neither auto nor a template. Raises: ConfigError."""
    if name != AUTO_TEMPLATE:
        named_template(name)
