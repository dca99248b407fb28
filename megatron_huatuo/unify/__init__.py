"""Documents to instruction-response pairs of one style: a question the passage answers, and the answer."""

from megatron_huatuo.unify.settings import CheckSettings, PatienceSettings, QualitySettings, SamplingSettings
from megatron_huatuo.unify.unify import unify

__all__ = ["CheckSettings", "PatienceSettings", "QualitySettings", "SamplingSettings", "unify"]
