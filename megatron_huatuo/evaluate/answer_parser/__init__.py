"""Reads the answer out of a free-form reply to a multiple-choice question; `ranks` says in which order evidence counts."""

from megatron_huatuo.evaluate.answer_parser.ranks import asks_for_wrong, parse_answer

__all__ = ["asks_for_wrong", "parse_answer"]
