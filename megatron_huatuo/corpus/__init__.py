"""Raw sources to domain documents: read, clean, cut into passages, remove duplicates; every drop counted by reason.

The way of a document: read_files finds the reader (read_records, read_text, read_xml), steps are run per file (lexicon,
quality, contamination), shard_files holds what a task leaves, merge_shards makes one corpus of all; account counts.
"""

from megatron_huatuo.corpus.curate import curate
from megatron_huatuo.corpus.curation_settings import CurationSettings
from megatron_huatuo.corpus.preview_scores import preview_scores
from megatron_huatuo.execution import ExecutorSettings

__all__ = ["CurationSettings", "ExecutorSettings", "curate", "preview_scores"]
