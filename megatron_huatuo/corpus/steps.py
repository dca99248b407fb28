"""The steps of curation, as datatrove pipeline steps, and their order.

Invariant: a step yields every item it gets, or more of them, or hands a rejection to the task's ledger; nothing else.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from datatrove.pipeline.base import PipelineStep

from megatron_huatuo.corpus.account import Item, Rejected
from megatron_huatuo.corpus.contamination import ExamIndex, load_exams
from megatron_huatuo.corpus.curation_settings import CurationSettings
from megatron_huatuo.corpus.lexicon import Lexicon
from megatron_huatuo.corpus.passage_score import ScoreModel, measure_features
from megatron_huatuo.corpus.quality import refuse_passage
from megatron_huatuo.corpus.readers.read_files import find_reader
from megatron_huatuo.corpus.shard_files import ShardWriter
from megatron_huatuo.log import progress
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import LANGUAGES
from megatron_huatuo.text.damage import repair_decoding
from megatron_huatuo.text.language import detect_language
from megatron_huatuo.text.markup import strip_markup
from megatron_huatuo.text.normal_form import normal_form
from megatron_huatuo.text.personal_data import mask_personal_data
from megatron_huatuo.text.segment import segment


class CurationStep(PipelineStep):
    """One step; `shard` is the task's output, shared by all steps of a task."""

    type = "curation"

    def __init__(self, shard: ShardWriter) -> None:
        super().__init__()
        self.shard = shard

    @abstractmethod
    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """What becomes of one item."""

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Item]:
        """Pass items through `process`, counted, and timed in seconds of one core, whatever else the machine does."""
        for item in data:
            started_s = time.thread_time()
            results = list(self.process(item))
            size = len(item.document.text.encode())
            self.shard.account.add_time(self.name, time.thread_time() - started_s, size)
            for result in results:
                if isinstance(result, Rejected):
                    self.shard.reject(result)
                else:
                    yield result


class ReadFile(PipelineStep):
    """Reads the file whose number is the task's rank."""

    type, name = "curation", "read"

    def __init__(self, shard: ShardWriter, files: list[str], settings: CurationSettings, show_progress: bool) -> None:
        super().__init__()
        self.shard, self.files, self.settings, self.show_progress = shard, files, settings, show_progress

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Item]:
        """Open the task's shard, then yield every record of its file."""
        path = self.files[rank]
        bad_lines = BadLines(self.settings.max_bad_lines)
        self.shard.open(rank, path, bad_lines)
        items = iter(find_reader(path)(path, self.settings.source, bad_lines))
        with progress(description=path, unit="doc", disable=not self.show_progress) as bar:
            while True:
                started_s = time.thread_time()
                item = next(items, None)
                if item is None:
                    break
                size = len(item.document.text.encode())
                self.shard.account.add_time(self.name, time.thread_time() - started_s, size)
                self.shard.account.add_in(item.document)
                bar.update()
                yield item


class Clean(CurationStep):
    """Text and title in the text policy of the project; blank documents end here."""

    name = "clean"

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """See `repair_decoding`, `strip_markup` and `normal_form`."""
        repairs: Counter[str] = Counter()
        text, title = (
            normal_form(strip_markup(repair_decoding(part, repairs), repairs), repairs)
            for part in (item.document.text, item.document.title or "")
        )
        title = title.replace("\n", " ")
        self.shard.account.add_repairs(repairs)
        if not text:
            return [item.reject("blank text")]
        return [replace(item, document=replace(item.document, text=text, title=title or None))]


class FilterLanguage(CurationStep):
    """Documents must be in the language that they say, Chinese or English."""

    name = "language"

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """See `detect_language`."""
        declared, found = item.document.language, detect_language(item.document.text)
        if found == declared and declared in LANGUAGES:
            return [item]
        return [item.reject(f"language: declared {declared}, found {found}")]


class ExtractMedical(CurationStep):
    """Documents must be medical, by the density of a lexicon's terms."""

    name = "extract"

    def __init__(self, shard: ShardWriter, lexicon: Lexicon, settings: CurationSettings) -> None:
        super().__init__(shard)
        self.lexicon, self.settings = lexicon, settings

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """Title and text count together."""
        document = item.document
        density = self.lexicon.density(f"{document.title or ''}\n{document.text}", document.language)
        if density >= self.settings.min_density(document.language):
            return [item]
        return [item.reject(f"not medical: density {density:.4f}")]


class MaskPersonalData(CurationStep):
    """Phone numbers, e-mail addresses and identity numbers become marks."""

    name = "mask"

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """See `mask_personal_data`."""
        repairs: Counter[str] = Counter()
        text = mask_personal_data(item.document.text, item.document.language, repairs)
        self.shard.account.add_repairs(repairs)
        return [item.with_text(text)]


class CutPassages(CurationStep):
    """Documents become passages that fit the rewriting window."""

    name = "segment"

    def __init__(self, shard: ShardWriter, settings: CurationSettings) -> None:
        super().__init__(shard)
        self.settings = settings

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """See `segment`. Passages of one document are named ID#1, ID#2, …"""
        document = item.document
        texts = segment(document.text, document.language, self.settings.max_size(document.language))
        if len(texts) == 1:
            return [item.with_text(texts[0])]
        self.shard.account.add_parts(document.source, len(texts) - 1)
        return [
            replace(
                item,
                document=replace(document, id=f"{document.id}#{part}", text=text),
                parent=document.id,
                part=part,
                parts=len(texts),
            )
            for part, text in enumerate(texts, start=1)
        ]


class FilterQuality(CurationStep):
    """Passages must be fit for use."""

    name = "quality"

    def __init__(self, shard: ShardWriter, settings: CurationSettings) -> None:
        super().__init__(shard)
        self.settings = settings

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """See `refuse_passage`."""
        reason = refuse_passage(item.document.text, item.document.language, self.settings)
        return [item.reject(reason)] if reason else [item]


class ScoreQuality(CurationStep):
    """Passages get a score of their quality; those below the least one end here."""

    name = "score"

    def __init__(self, shard: ShardWriter, settings: CurationSettings) -> None:
        super().__init__(shard)
        self.model, self.min_score = ScoreModel.load(settings.score_model), settings.min_score
        self.lexicon = Lexicon.load(settings.lexicon or "starter")

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """See `measure_features`."""
        document = item.document
        features = measure_features(document.text, document.title, document.language, self.lexicon)
        score = self.model.score(features, document.language)
        self.shard.account.add_score(document.source, score)
        if score >= self.min_score:
            return [replace(item, score=score)]
        return [item.reject(f"low score: {score:.3f}")]


class CheckContamination(CurationStep):
    """Passages that share text with an exam are reported, and dropped when the settings say so."""

    name = "contamination"

    def __init__(self, shard: ShardWriter, exams: ExamIndex, drop: bool) -> None:
        super().__init__(shard)
        self.exams, self.drop = exams, drop

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """See `ExamIndex`."""
        hit = self.exams.find(item.document.text)
        if hit is None:
            return [item]
        self.shard.add_hit(item, hit, dropped=self.drop)
        return [item.reject(f"contamination: {hit.question}")] if self.drop else [item]


class WriteShard(CurationStep):
    """Writes passages with what duplicate removal needs; the last step."""

    name = "write"

    def process(self, item: Item) -> Iterable[Item | Rejected]:
        """Write one passage."""
        self.shard.write(item.to_document())
        return []

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Item]:
        """Write all, then publish the shard; an error leaves nothing behind."""
        try:
            yield from super().run(data, rank, world_size)
            self.shard.publish()
        except BaseException as error:
            data.close()  # the reader's progress bar ends before the error is told
            self.shard.discard(error)
            raise


def build_pipeline(files: list[str], shard: ShardWriter, settings: CurationSettings, show_progress: bool) -> list[Any]:
    """Steps of one task: cheap ones that drop much come first; contamination sees what would be kept."""
    steps: list[Any] = [
        ReadFile(shard, files, settings, show_progress),
        Clean(shard),
        FilterLanguage(shard),
    ]
    if settings.lexicon is not None:
        steps.append(ExtractMedical(shard, Lexicon.load(settings.lexicon), settings))
    if settings.mask_personal_data:
        steps.append(MaskPersonalData(shard))
    steps += [CutPassages(shard, settings), FilterQuality(shard, settings), ScoreQuality(shard, settings)]
    if settings.exam:
        steps.append(CheckContamination(shard, load_exams(settings.exam), settings.contamination_action == "drop"))
    return [*steps, WriteShard(shard)]
