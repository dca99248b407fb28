"""Ids, modes, labels and loss mask exactly as the recipe says, by hand and for any text."""

import doctest

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index.formats import chat_format
from megatron_huatuo.index.formats.chat_format import (
    count_template_mismatches,
    encode_conversations,
    encode_tag,
    render,
    segment_texts,
)
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.storage.records import Conversation, Turn
from tests.unit.dataset.hand_rows import targets_of
from tests.unit.index.hand_tokenizer import ANSWER_TAG, EOS, QUESTION_TAG, character_model, save_tokenizer


def talk(*values):
    turns = tuple(Turn("gpt" if number % 2 else "human", value) for number, value in enumerate(values))
    return Conversation("id", turns)


def split_documents(encoded):
    """[(tokens, modes)] of EncodedDocuments."""
    modes = np.repeat(encoded.sequence_modes, encoded.sequence_lengths)
    ends = np.cumsum(encoded.sequence_lengths)[np.cumsum(encoded.sequences_per_document) - 1]
    return list(zip(np.split(encoded.tokens, ends[:-1]), np.split(modes, ends[:-1]), strict=True))


def test_worked_examples_hold():
    assert doctest.testmod(chat_format).failed == 0
    assert doctest.testmod(chat_format).attempted >= 1


def test_one_turn_by_hand(by_hand):
    encoded = encode_conversations([talk("头痛", "休息")], load_tokenizer(by_hand))
    assert encoded.tokens.tolist() == [*QUESTION_TAG, 9, 10, *ANSWER_TAG, 11, 12, EOS]
    assert encoded.sequence_lengths.tolist() == [11, 3]
    assert encoded.sequence_modes.tolist() == [0, 1]
    assert encoded.sequences_per_document.tolist() == [2]
    _, labels, loss_mask = targets_of(encoded.tokens.tolist(), split_documents(encoded)[0][1].tolist())
    assert labels == [4, 5, 6, 9, 10, *ANSWER_TAG, 11, 12, EOS, EOS]
    assert loss_mask == [0] * 10 + [1, 1, 1, 0]


def test_two_turns_by_hand(by_hand):
    """The first answer stores no eos, yet its last token has target eos."""
    encoded = encode_conversations([talk("头痛", "休息", "药", "不")], load_tokenizer(by_hand))
    first = [*QUESTION_TAG, 9, 10, *ANSWER_TAG, 11, 12]
    second = [7, *QUESTION_TAG, 13, *ANSWER_TAG, 14, EOS]
    assert encoded.tokens.tolist() == first + second
    assert encoded.sequence_lengths.tolist() == [11, 2, 11, 2]
    assert encoded.sequence_modes.tolist() == [0, 1, 0, 1]
    _, labels, loss_mask = targets_of(encoded.tokens.tolist(), split_documents(encoded)[0][1].tolist())
    assert labels == [*first[1:], EOS, *second[1:], EOS]
    assert loss_mask == [0] * 10 + [1, 1, 1] + [0] * 10 + [1, 1, 0]


def test_an_answer_of_weight_0_is_context_and_one_at_the_end_is_left_out(by_hand):
    """The last trained answer ends the document, with eos; what stands behind it would teach nothing."""
    tokenizer = load_tokenizer(by_hand)
    turns = list(talk("头痛", "休息", "药", "不", "药", "休息").turns)
    turns[1], turns[5] = turns[1]._replace(trained=False), turns[5]._replace(trained=False)
    encoded = encode_conversations([Conversation("id", tuple(turns)), talk("头痛", "不")], tokenizer)
    first, second = split_documents(encoded)
    assert (
        first[0].tolist()
        == split_documents(encode_conversations([talk("头痛", "休息", "药", "不")], tokenizer))[0][0].tolist()
    )
    assert encoded.sequence_modes.tolist() == [0, 0, 0, 1, 0, 1] and second[0].tolist()[-2:] == [14, EOS]
    _, _, loss_mask = targets_of(first[0].tolist(), first[1].tolist())
    assert loss_mask == [0] * (len(first[0]) - 3) + [1, 1, 0]
    assert count_template_mismatches([Conversation("id", tuple(turns))], encoded, tokenizer, 1) == (1, 0)


def test_a_conversation_without_a_trained_answer_is_dropped_and_counted(by_hand):
    turns = talk("头痛", "休息").turns
    untrained = Conversation("id", (turns[0], turns[1]._replace(trained=False)))
    encoded = encode_conversations([talk("药", "不"), untrained, talk("头", "休息")], load_tokenizer(by_hand))
    assert encoded.kept.tolist() == [0, 2] and encoded.dropped == {"no answer to train on": 1}
    assert encoded.sequence_modes.tolist() == [0, 1, 0, 1]


def test_a_system_text_opens_the_first_question(by_hand):
    tokenizer = load_tokenizer(by_hand)
    with_system = Conversation("id", talk("头痛", "休息", "药", "不").turns, system="药")
    assert (
        encode_conversations([with_system], tokenizer).tokens.tolist()
        == encode_conversations([talk("药\n头痛", "休息", "药", "不")], tokenizer).tokens.tolist()
    )


def test_published_tokenizer_by_hand(baichuan2):
    """Ids of pieces looked up one by one in the published vocabulary."""
    tokenizer = load_tokenizer(baichuan2)
    assert tokenizer.encode("<问>：") == [92655, 92614, 92574, 70]
    assert tokenizer.encode("\n<答>：") == [5, 92655, 93140, 92574, 70]
    encoded = encode_conversations([talk("头痛", "休息", "Aspirin", "不用。")], tokenizer)
    tag = [5, 92655, 93140, 92574, 70]
    question = [92655, 92614, 92574, 70]
    words = {word: tokenizer.encode(word) for word in ("头痛", "休息", "Aspirin", "不用。")}
    assert words["头痛"] == [14992] and words["休息"] == [6317]
    assert encoded.tokens.tolist() == [
        *question, 14992, *tag, 6317, 5, *question, *words["Aspirin"], *tag, *words["不用。"], 2,
    ]  # fmt: skip
    assert encoded.counts["tags_encoded_apart"] == 0
    assert count_template_mismatches(
        [talk("头痛", "休息")], encode_conversations([talk("头痛", "休息")], tokenizer), tokenizer, 1
    ) == (1, 0)


# No surrogates (readers refuse them); everything else that people and machines type.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
tricky = st.sampled_from(
    ["</s>", "<s>", "<答>：", "\n<答>：", "<问>：x\n<答>：y</s>", "a\0b", "\ufffd", "\u202eabc", "<unk>"]
)
conversations = st.lists(
    st.lists(st.tuples(texts | tricky, texts | tricky), min_size=1, max_size=3).map(
        lambda pairs: talk(*(value for pair in pairs for value in pair))
    ),
    max_size=4,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=conversations)
def test_any_text_gives_the_segments_of_the_recipe_and_one_eos(trained, batch):
    tokenizer = load_tokenizer(trained)
    encoded = encode_conversations(batch, tokenizer)
    assert encoded.kept.tolist() == list(range(len(batch))) and not encoded.dropped
    tag = tokenizer.encode("\n<答>：")
    for conversation, (tokens, modes) in zip(batch, split_documents(encoded) if batch else [], strict=True):
        expected_tokens, expected_modes, targets = [], [], 0
        for position, turn in enumerate(conversation.turns):
            if turn.speaker == "human":
                ids = tokenizer.encode(("\n" if position else "") + "<问>：" + turn.value) + tag
            else:
                ids = tokenizer.encode("\n<答>：" + turn.value)[len(tag) :]
                targets += len(ids) + 1
            expected_tokens += ids
            expected_modes += [int(turn.speaker == "gpt")] * len(ids)
        assert tokens.tolist() == [*expected_tokens, tokenizer.eos_id]
        assert modes.tolist() == [*expected_modes, 1]
        assert tokens.tolist().count(tokenizer.eos_id) == 1
        _, labels, loss_mask = targets_of(tokens.tolist(), modes.tolist())
        assert sum(loss_mask) == targets and tokenizer.eos_id == 2
        counting = [label for label, counts in zip(labels, loss_mask, strict=True) if counts]
        assert counting.count(tokenizer.eos_id) == len(conversation.turns) // 2
        assert tokenizer.decode(tokens[:-1].tolist()) == render(conversation.turns)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=conversations)
def test_the_trained_vocabulary_encodes_a_conversation_as_it_is_served(trained, batch):
    tokenizer = load_tokenizer(trained)
    encoded = encode_conversations(batch, tokenizer)
    assert count_template_mismatches(batch, encoded, tokenizer) == (len(batch), 0)
    assert encoded.counts["tags_encoded_apart"] == 0


def test_role_tags_inside_a_value_change_no_mode(by_hand):
    encoded = encode_conversations([talk("头<答>：休", "痛\n<问>：药")], load_tokenizer(by_hand))
    question = [*QUESTION_TAG, 9, 3, 8, 5, 6, 11]
    answer = [10, 7, 3, 4, 5, 6, 13, EOS]
    assert encoded.tokens.tolist() == [*question, *ANSWER_TAG, *answer]
    assert encoded.sequence_lengths.tolist() == [len(question) + 5, len(answer)]


def test_special_token_text_is_plain_text(by_hand):
    encoded = encode_conversations([talk("头</s>", "</s>痛")], load_tokenizer(by_hand))
    text = [3, 15, 16, 5]
    assert encoded.tokens.tolist() == [*QUESTION_TAG, 9, *text, *ANSWER_TAG, *text, 10, EOS]


def test_text_that_still_yields_an_eos_is_dropped_and_counted(tmp_path):
    """A tokenizer that lists its eos as ordinary text cannot be told otherwise."""
    directory = save_tokenizer(tmp_path / "t", character_model(), special=False)
    encoded = encode_conversations(
        [talk("头", "痛"), talk("头</s>", "痛</s>"), talk("药", "不")], load_tokenizer(directory)
    )
    assert encoded.kept.tolist() == [0, 2]
    assert encoded.dropped == {"text yields the end-of-document id": 1}
    assert [tokens.tolist().count(EOS) for tokens, _ in split_documents(encoded)] == [1, 1]
    assert split_documents(encoded)[1][0].tolist() == [*QUESTION_TAG, 13, *ANSWER_TAG, 14, EOS]


def test_an_answer_without_a_token_is_dropped_and_counted(tmp_path):
    from tokenizers import normalizers

    directory = save_tokenizer(tmp_path / "t", character_model(), normalizer=normalizers.Replace("休", ""))
    tokenizer = load_tokenizer(directory)
    encoded = encode_conversations([talk("头", "休"), talk("头", "休息"), talk("头", "痛", "药", "休")], tokenizer)
    assert encoded.kept.tolist() == [1]
    assert encoded.dropped == {"answer without a token": 2}
    only_bad = encode_conversations([talk("头", "休")], tokenizer)
    assert len(only_bad.tokens) == len(only_bad.sequence_lengths) == len(only_bad.sequences_per_document) == 0


def test_a_tag_that_merges_with_its_answer_is_encoded_apart_and_counted(tmp_path):
    from tokenizers import models

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for character in "<问>：\n答头痛休息":
        vocab[character] = len(vocab)
    vocab["：休"] = merged = len(vocab)
    directory = save_tokenizer(tmp_path / "t", models.BPE(vocab, [("：", "休")], unk_token="<unk>"))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.encode("\n<答>：休息")[-2] == merged
    batch = [talk("头", "休息"), talk("头", "痛")]
    encoded = encode_conversations(batch, tokenizer)
    assert encoded.counts["tags_encoded_apart"] == 1
    assert split_documents(encoded)[0][0].tolist() == [3, 4, 5, 6, 9, 7, 3, 8, 5, 6, 11, 12, 2]
    assert encoded.sequence_lengths.tolist() == [10, 3, 10, 2]
    assert count_template_mismatches(batch, encoded, tokenizer) == (2, 1)
    assert count_template_mismatches(batch, encoded, tokenizer, 1) == (1, 1)


def test_a_dummy_prefix_stands_before_the_first_segment_alone(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["头痛 休息", "a b c d"] * 20), model_prefix=str(tmp_path / "m"), vocab_size=300,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        add_dummy_prefix=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "m.model")
    batch = [talk("头痛", "休息"), talk("a", "b", "c", " d")]
    encoded = encode_conversations(batch, tokenizer)
    assert count_template_mismatches(batch, encoded, tokenizer) == (2, 0)
    prefix = tokenizer.encode(" ")[0]
    assert [document[0][0] == prefix for document in split_documents(encoded)] == [True, True]


def test_a_tokenizer_without_ids_for_the_tag_is_refused(tmp_path):
    from tokenizers import Regex, normalizers

    directory = save_tokenizer(tmp_path / "t", character_model(), normalizer=normalizers.Replace(Regex("[\\s\\S]"), ""))
    with pytest.raises(ConfigError, match="gives no ids for the role tag"):
        encode_tag(load_tokenizer(directory))


def test_segments_joined_are_the_served_text():
    turns = talk("头痛？", "休息。", "要药吗？", "不用。").turns
    assert segment_texts(turns) == ["<问>：头痛？", "\n<答>：休息。", "\n<问>：要药吗？", "\n<答>：不用。"]
    assert render(turns) == "".join(segment_texts(turns))
