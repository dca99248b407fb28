"""Chat templates in the shape of published families, written for these tests.

What the assistant says stands between `{% generation %}` and `{% endgeneration %}`, so that transformers can say which
tokens are trained on; the templates that are tested are these without the tags, as most families publish them.
"""

from __future__ import annotations

import re

_TAG = re.compile(r"\{% (?:end)?generation %\}")


def without_tags(template: str) -> str:
    return _TAG.sub("", template)


def _each(system: str, user: str, answer: str, opening: str = "", closing: str = "", prompt: str = "") -> str:
    """A loop that writes one expression per role."""
    return (
        f"{opening}{{% for message in messages %}}"
        f"{{% if message['role'] == 'system' %}}{system}"
        f"{{% elif message['role'] == 'user' %}}{user}"
        f"{{% else %}}{answer}{{% endif %}}{{% endfor %}}{closing}"
        f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


def _chatml(opening: str = "", separator: str = "\\n", closing: str = "<|im_end|>\\n") -> str:
    def turn(role: str) -> str:
        return f"{{{{ '<|im_start|>{role}{separator}' + message['content'] + '{closing}' }}}}"

    end, rest = closing.removesuffix("\\n"), closing.removeprefix("<|im_end|>")
    answer = (
        f"{{{{ '<|im_start|>assistant{separator}' }}}}{{% generation %}}{{{{ message['content'] + '{end}' }}}}"
        f"{{% endgeneration %}}{{{{ '{rest}' }}}}"
    )
    return _each(turn("system"), turn("user"), answer, opening, "", f"{{{{ '<|im_start|>assistant{separator}' }}}}")


def _default_system(text: str) -> str:
    return (
        f"{{% if messages[0]['role'] != 'system' %}}{{{{ '<|im_start|>system\\n{text}<|im_end|>\\n' }}}}{{% endif %}}"
    )


def _headers(opening: str = "", trim: str = "| trim") -> str:
    def turn(role: str) -> str:
        return (
            f"{{{{ '<|start_header_id|>{role}<|end_header_id|>\\n\\n' + message['content'] {trim} + '<|eot_id|>' }}}}"
        )

    head = "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    answer = head + "{% generation %}{{ message['content'] " + trim + " + '<|eot_id|>' }}{% endgeneration %}"
    return _each(turn("system"), turn("user"), answer, "{{ bos_token }}" + opening, "", head)


def _tagged(
    system: str,
    user: str,
    assistant: str,
    end: str,
    gap: str = "",
    *,
    other: str | None = None,
    opening: str = "",
    closing: str = "",
) -> str:
    """Roles as tags: each turn is tag, text and end, and a gap. other: what ends the turns of system and user."""  # fmt: skip
    other = end if other is None else other
    return _each(
        f"{{{{ '{system}' + message['content'] + '{other}{gap}' }}}}",
        f"{{{{ '{user}' + message['content'] + '{other}{gap}' }}}}",
        f"{{{{ '{assistant}' }}}}{{% generation %}}{{{{ message['content'] + '{end}' }}}}{{% endgeneration %}}"
        f"{{{{ '{gap}' }}}}",
        opening,
        closing,
        f"{{{{ '{assistant}' }}}}",
    )


_SPLIT_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' -%}{%- set system_text = messages[0]['content'] -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set system_text = '' -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}"
)
_ALTERNATE = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
)

_QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(seeking=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.seeking and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.seeking = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

_LLAMA2 = (
    _SPLIT_SYSTEM + "{%- for message in loop_messages -%}" + _ALTERNATE + "{%- if loop.first and system_text -%}"
    "{%- set content = '<<SYS>>\\n' + system_text + '\\n<</SYS>>\\n\\n' + message['content'] -%}"
    "{%- else -%}{%- set content = message['content'] -%}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{%- else -%}{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}{%- endif -%}"
    "{%- endfor -%}"
)
_MISTRAL_1 = (
    "{{ bos_token }}{% for message in messages %}" + _ALTERNATE.replace("{%-", "{%").replace("-%}", "%}") +
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)  # fmt: skip
_MISTRAL_3 = (
    _SPLIT_SYSTEM + "{{- bos_token }}{%- for message in loop_messages -%}{%- if message['role'] == 'user' -%}"
    "{%- if loop.last or loop.index0 == loop_messages|length - 2 -%}{%- if system_text -%}"
    "{{- '[INST] ' + system_text + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else -%}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif -%}"
    "{%- else -%}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif -%}"
    "{%- else -%}{% generation %}{{- ' ' + message['content']|trim + eos_token }}{% endgeneration %}{%- endif -%}"
    "{%- endfor -%}"
)
_MISTRAL_SMALL = (
    "{%- set today = strftime_now('%Y-%m-%d') %}{{- bos_token }}" + _SPLIT_SYSTEM +
    "{%- if not system_text -%}{%- set system_text = 'You are a helpful assistant. Today is ' + today + '.' -%}{%- endif -%}"
    "{{- '[SYSTEM_PROMPT]' + system_text + '[/SYSTEM_PROMPT]' }}"
    "{%- set kept = namespace(messages=[]) -%}{%- for message in loop_messages -%}"
    "{%- if message['role'] not in ['tool'] and not message.get('tool_calls') -%}"
    "{%- set kept.messages = kept.messages + [message] -%}{%- endif -%}{%- endfor -%}"
    "{%- for message in kept.messages -%}{%- if message['role'] == 'user' -%}{%- if message['content'] is string -%}"
    "{{- '[INST]' + message['content'] + '[/INST]' }}{%- endif -%}"
    "{%- else -%}{% generation %}{{- message['content'] + eos_token }}{% endgeneration %}{%- endif -%}{%- endfor -%}"
)  # fmt: skip
_GEMMA_TURNS = (
    "{{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}"
    "{% if role == 'model' %}{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] | trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_GEMMA_ROLE = "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
_GEMMA_2 = (
    "{{ bos_token }}{% set prefix = '' %}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    + _ALTERNATE.replace("{%-", "{%").replace("-%}", "%}") + _GEMMA_ROLE + _GEMMA_TURNS
)  # fmt: skip
_GEMMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% if messages[0]['content'] is string %}"
    "{% set prefix = messages[0]['content'] + '\\n\\n' %}{% else %}"
    "{% set prefix = messages[0]['content'][0]['text'] + '\\n\\n' %}{% endif %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set prefix = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}" + _GEMMA_ROLE + _GEMMA_TURNS
)
_PHI_4_MINI = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>' -}}{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{%- if message.content -%}{{- message['content'] -}}{%- endif -%}{{- '<|end|>' -}}{% endgeneration %}"
    "{%- else -%}{{- message['content'] + '<|end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
)
_COMMAND_R7B = (
    "{{ bos_token }}{%- macro turn(role, text) -%}<|START_OF_TURN_TOKEN|>{{ role }}{{ text }}<|END_OF_TURN_TOKEN|>"
    "{%- endmacro -%}{%- for message in messages %}{%- if message.role|lower == 'system' %}"
    "{{ turn('<|SYSTEM_TOKEN|>', message.content) }}{%- elif message.role|lower == 'user' %}"
    "{{ turn('<|USER_TOKEN|>', message.content) }}{%- else %}"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% generation %}<|START_RESPONSE|>{{ message.content }}<|END_RESPONSE|>"
    "<|END_OF_TURN_TOKEN|>{% endgeneration %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif %}"
)
_OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
_HARMONY = (
    "{{- '<|start|>system<|message|>Reasoning: medium<|end|>' }}{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{- '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '<|end|>' }}"
    "{%- elif message.role == 'user' -%}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}"
    "{%- else -%}{{- '<|start|>assistant' }}{% generation %}{{- '<|channel|>final<|message|>' + message.content }}"
    "{%- if loop.last and not add_generation_prompt -%}{{- '<|return|>' }}{%- else -%}{{- '<|end|>' }}{%- endif -%}"
    "{% endgeneration %}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' }}{%- endif -%}"
)
_SEED = (
    "{%- set bos_token = '<seed:bos>' -%}{%- set eos_token = '<seed:eos>' -%}{%- for message in messages -%}"
    "{%- if message.role in ['user', 'system'] -%}{{ bos_token + message.role + '\\n' + message.content + eos_token }}"
    "{%- else -%}{{ bos_token + message.role + '\\n' }}{% generation %}"
    "{%- if message.content is defined and message.content is string and message.content | trim | length > 0 -%}"
    "{{ message.content | trim + eos_token }}{%- endif -%}{% endgeneration %}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ bos_token + 'assistant\\n' }}{%- endif -%}"
)
_NEMOTRON = (
    "{%- set head = '<|start_header_id|>' -%}{%- set eot = '<|eot_id|>' -%}{{- bos_token ~ head ~ 'system<|end_header_id|>\\n\\n' -}}"
    "{%- if messages[0].role == 'system' and messages[0].content != '' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}"
    "{{- eot -}}{%- for message in messages -%}{%- if message.role == 'user' -%}"
    "{{- head ~ 'user<|end_header_id|>\\n\\n' -}}{{ message.content -}}{{ eot -}}"
    "{%- elif message.role == 'assistant' -%}{%- if '</think>' in message.content -%}"
    "{%- set content = message.content.split('</think>')[-1].lstrip() -%}{%- else -%}"
    "{%- set content = message.content -%}{%- endif -%}{{- head ~ 'assistant<|end_header_id|>\\n\\n' -}}"
    "{% generation %}{{- content -}}{{- eot -}}{% endgeneration %}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- head ~ 'assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
_LLAMA_3_2 = (
    "{%- if strftime_now is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- else -%}"
    "{%- set date_string = '26 Jul 2024' -%}{%- endif -%}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system_message = messages[0]['content']|trim -%}{%- set messages = messages[1:] -%}{%- else -%}"
    "{%- set system_message = '' -%}{%- endif -%}{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{- 'Today Date: ' + date_string + '\\n\\n' }}{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages -%}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' -%}{% generation %}{{- message['content'] | trim + '<|eot_id|>' }}"
    "{% endgeneration %}{%- else -%}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)
_VICUNA = _each(
    "{{ message['content'] + ' ' }}",
    "{{ 'USER: ' + message['content'].strip() + ' ' }}",
    "{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + message['content'].strip() + eos_token }}{% endgeneration %}",
    prompt="{{ 'ASSISTANT:' }}",
)
_ALPACA = _each(
    "{{ message['content'] + '\\n\\n' }}",
    "{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}",
    "{{ '### Response:\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n\\n' }}",
    prompt="{{ '### Response:\\n' }}",
)

FAMILIES: dict[str, str] = {
    "qwen3": _QWEN3,
    "qwen2.5": _chatml(_default_system("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")),
    "yi": _chatml(),
    "smollm2": _chatml(_default_system("You are a helpful AI assistant named SmolLM, trained by Hugging Face")),
    "internlm2": _chatml("{{ bos_token }}"),
    "lfm2": _chatml("{{- bos_token -}}"),
    "phi4": _chatml(separator="<|im_sep|>", closing="<|im_end|>"),
    "llama2": _LLAMA2,
    "llama3": _headers(),
    "llama3.2": _LLAMA_3_2,
    "llama3 untrimmed": _headers(trim=""),
    "nemotron": _NEMOTRON,
    "mistral 1": _MISTRAL_1,
    "mistral 3": _MISTRAL_3,
    "mistral small": _MISTRAL_SMALL,
    "gemma2": _GEMMA_2,
    "gemma3": _GEMMA_3,
    "phi3": _tagged(
        "<|system|>\\n",
        "<|user|>\\n",
        "<|assistant|>\\n",
        "<|end|>",
        "\\n",
        closing="{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
    ),
    "phi4 mini": _PHI_4_MINI,
    "deepseek v2": _tagged("", "User: ", "Assistant:", "</s>", other="\\n\\n", opening="{{ bos_token }}"),
    "deepseek v3": _tagged(
        "", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", other="", opening="{{ bos_token }}"
    ),
    "hunyuan": _tagged("<｜hy_System｜>", "<｜hy_User｜>", "<｜hy_Assistant｜>", "<｜hy_end｜>", other=""),
    "baichuan2": _tagged("", "<reserved_106>", "<reserved_107>", "</s>", other=""),
    "minicpm": _tagged("", "<用户>", "<AI>", "</s>", other=""),
    "zephyr": _tagged("<|system|>\\n", "<|user|>\\n", "<|assistant|>\\n", "</s>", "\\n"),
    "stablelm": _tagged("<|system|>\\n", "<|user|>\\n", "<|assistant|>\\n", "<|endoftext|>", "\\n"),
    "falcon3": _tagged("<|system|>\\n", "<|user|>\\n", "<|assistant|>\\n", "<|endoftext|>"),
    "granite": _tagged(
        "<|start_of_role|>system<|end_of_role|>",
        "<|start_of_role|>user<|end_of_role|>",
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>",
        "\\n",
    ),
    "exaone": _tagged("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]", "\\n"),
    "command r": _tagged(
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        opening="{{ bos_token }}",
    ),
    "command r7b": _COMMAND_R7B,
    "olmo2": _OLMO_2,
    "harmony": _HARMONY,
    "seed": _SEED,
    "vicuna": _VICUNA,
    "alpaca": _ALPACA,
}

THOUGHT_TOKENS = ["<think>", "</think>"]
_TOKEN = re.compile(r"<[｜|/]?[A-Za-z_▁:]+[｜|]?>|\[\|?/?[A-Z_]+\]|\[\|[a-z]+\|\]|<reserved_\d+>|<用户>")
_WRITTEN = {token for template in FAMILIES.values() for token in _TOKEN.findall(template)}
SPECIAL_TOKENS = sorted(
    (_WRITTEN | {"<s>", "</s>", "<|user|>", "<|system|>"}) - {*THOUGHT_TOKENS, "<tool_response>", "</tool_response>"}
)
