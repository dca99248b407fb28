"""The order of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_huatuo.corpus.contamination import load_exams
from megatron_huatuo.corpus.lexicon import STARTER, Lexicon
from megatron_huatuo.corpus.settings import CurationSettings
from megatron_huatuo.corpus.shard import ShardWriter
from megatron_huatuo.corpus.steps import (
    CheckContamination,
    Clean,
    ExtractMedical,
    FilterLanguage,
    FilterQuality,
    MaskPersonalData,
    ReadFile,
    Segment,
    WriteShard,
)


def build_pipeline(
    files: list[str],
    work: Path,
    source: str | None,
    settings: CurationSettings,
    lexicon: str | None,
    exams: Sequence[str],
    max_bad_lines: int,
    show_progress: bool,
) -> list[Any]:
    """Steps of one task: cheap ones that drop much come first; contamination sees what would be kept."""
    shard = ShardWriter(str(work), with_signatures=settings.near_duplicate_similarity <= 1)
    steps: list[Any] = [
        ReadFile(shard, files, source, max_bad_lines, show_progress),
        Clean(shard),
        FilterLanguage(shard),
    ]
    if lexicon is not None:
        steps.append(ExtractMedical(shard, Lexicon.load(STARTER if lexicon == "starter" else lexicon), settings))
    if settings.mask_personal_data:
        steps.append(MaskPersonalData(shard))
    steps += [Segment(shard, settings), FilterQuality(shard, settings)]
    if exams:
        steps.append(CheckContamination(shard, load_exams(exams), settings.contamination_action == "drop"))
    return [*steps, WriteShard(shard)]
