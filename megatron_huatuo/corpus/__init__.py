"""Raw sources to domain documents: read, clean, segment, remove duplicates; every drop counted by reason."""

from megatron_huatuo.corpus.curate import curate
from megatron_huatuo.corpus.settings import CurationSettings
from megatron_huatuo.execution import ExecutorSettings

__all__ = ["CurationSettings", "ExecutorSettings", "curate"]
