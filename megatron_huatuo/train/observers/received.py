"""How much of the learning rate each source will receive in a run, and how much it has received, through all resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_huatuo.blend.learning_rate import BlendRates
from megatron_huatuo.storage.blend_files import BlendReader
from megatron_huatuo.train.train_config import TrainConfig


def rates_of_run(config: TrainConfig) -> BlendRates:
    """What each source of the run's blend will receive. Raises: IntegrityError when blend or index is damaged."""
    return BlendRates.of_blend(
        BlendReader(config.data.blend),
        config.schedule,
        config.training.global_batch_size,
        peak_lr=config.optimizer.lr,
        train_iters=config.training.train_iters,
    )


class ReceivedRates:
    """Sums over the steps that updated the weights: trained tokens, and learning rate × trained tokens, by source."""

    def __init__(self, names: Sequence[str], before: Mapping[str, Any] | None = None) -> None:
        """before: what `to_plain` gave when the checkpoint was written that the run goes on from."""
        self.names = list(names)
        known = before or {}
        self._tokens = [float(known.get(name, {}).get("trained_tokens", 0)) for name in self.names]
        self._sums = [
            tokens * float(known.get(name, {}).get("mean_learning_rate") or 0.0)
            for name, tokens in zip(self.names, self._tokens, strict=True)
        ]

    def add(self, tokens_by_source: Sequence[int], learning_rate: float) -> None:
        """One step that updated the weights."""
        for number, tokens in enumerate(tokens_by_source):
            self._tokens[number] += tokens
            self._sums[number] += tokens * learning_rate

    def to_plain(self) -> dict[str, dict[str, Any]]:
        """{source: {trained_tokens, mean_learning_rate: null without tokens}}."""
        return {
            name: {"trained_tokens": int(tokens), "mean_learning_rate": total / tokens if tokens else None}
            for name, tokens, total in zip(self.names, self._tokens, self._sums, strict=True)
        }

    def describe(self, peak: float) -> str:
        """ "web 0.84, sft 0.32" as shares of the peak rate."""
        rates = {name: rate["mean_learning_rate"] for name, rate in self.to_plain().items()}
        return ", ".join(
            f"{name} {'-' if rate is None else format(rate / (peak or 1.0), '.2f')}" for name, rate in rates.items()
        )
