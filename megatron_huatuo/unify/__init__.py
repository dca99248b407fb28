"""Documents to instruction-response pairs of one style: a question the passage answers, and the answer."""

from megatron_huatuo.llm.endpoint_settings import PatienceSettings
from megatron_huatuo.unify.gates import QualitySettings
from megatron_huatuo.unify.unify import unify
from megatron_huatuo.unify.writers.writer_settings import CheckSettings, SamplingSettings

__all__ = ["CheckSettings", "PatienceSettings", "QualitySettings", "SamplingSettings", "unify"]
