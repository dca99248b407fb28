"""A tokenizer whose ids can be read off: every character is one id."""

import json

# Ids by hand: every character one id.
UNK, BOS, EOS = 0, 1, 2
CHARACTERS = {character: number for number, character in enumerate("<问>：\n答头痛休息药不/s", start=3)}
QUESTION_TAG = [3, 4, 5, 6]  # <问>：
ANSWER_TAG = [7, 3, 8, 5, 6]  # \n<答>：


def save_tokenizer(directory, model, *, eos="</s>", special=True, normalizer=None, companions=True):
    """Write a Hugging Face directory around a `tokenizers` model, with a bos that only post-processing adds."""
    import tokenizers
    from tokenizers import AddedToken, Regex, pre_tokenizers, processors

    tokenizer = tokenizers.Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if isinstance(model, tokenizers.models.WordLevel):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in ("<s>", eos)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    if companions:
        (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}), encoding="utf-8")
    return directory


def character_model():
    from tokenizers import models

    return models.WordLevel({"<unk>": UNK, "<s>": BOS, "</s>": EOS, **CHARACTERS}, unk_token="<unk>")
