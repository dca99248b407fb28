"""From prompts to replies: who answers is opened, all are asked, and what stayed without a reply is counted.

Only the libraries of the one who answers are loaded: a Hugging Face directory, or an endpoint.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_huatuo.errors import ConfigError, EndpointError
from megatron_huatuo.evaluate.generate import (
    GeneratedReply,
    GenerationSettings,
    Generator,
    ModelEndpoint,
    Request,
    Scorer,
)
from megatron_huatuo.log import progress


def open_generator(
    model: str | os.PathLike[str] | ModelEndpoint,
    log_directory: Path,
    settings: GenerationSettings,
    *,
    trust_remote_code: bool = False,
) -> Generator:
    """Load a Hugging Face directory, or prepare for an endpoint.

    trust_remote_code: run the Python code that lies in the directory; without it such a directory is refused.
    log_directory: where the request log `requests-*.sqlite` of this model is kept.
    Raises: ConfigError when there is no such directory, or it cannot be loaded.
    """
    if isinstance(model, ModelEndpoint):
        if trust_remote_code:
            raise ConfigError("--trust-remote-code has no effect with an endpoint. Leave it out.")
        from megatron_huatuo.evaluate.answering.endpoint import EndpointGenerator

        return EndpointGenerator(model, log_directory, settings)
    from megatron_huatuo.evaluate.answering.huggingface import HuggingFaceGenerator

    return HuggingFaceGenerator(Path(model), log_directory, settings, trust_remote_code=trust_remote_code)


def open_scorer(
    model: str | os.PathLike[str], log_directory: Path, settings: GenerationSettings, *, trust_remote_code: bool = False
) -> Scorer:
    """Load a Hugging Face directory that says how likely it finds given texts; see `open_generator`."""
    from megatron_huatuo.evaluate.answering.loglikelihood import LoglikelihoodScorer

    return LoglikelihoodScorer(Path(model), log_directory, settings, trust_remote_code=trust_remote_code)


def collect_replies(generator: Generator, requests: Sequence[Request], *, description: str) -> list[GeneratedReply]:
    """One reply for each request, in order; equal requests are asked once.

    A request that an endpoint left without a reply has finish_reason "failed: …" (`is_failed`).
    """
    unique = list(dict.fromkeys(requests))
    replies: dict[Request, GeneratedReply] = {}
    with progress(total=len(unique), description=description, unit="reply") as bar:
        for index, reply in generator.generate(unique):
            replies[unique[index]] = reply
            bar.update()
    return [replies[request] for request in requests]


def is_failed(reply: GeneratedReply) -> bool:
    """Whether an endpoint never replied."""
    return (reply.finish_reason or "").startswith("failed:")


def check_failed(requests: Sequence[Request], replies: Sequence[GeneratedReply], max_failed: int) -> None:
    """Raise EndpointError when more requests than `max_failed` have no reply; a rerun asks only for those."""
    failed = {
        request: reply.finish_reason for request, reply in zip(requests, replies, strict=True) if is_failed(reply)
    }
    if len(failed) > max_failed:
        raise EndpointError(
            f"no reply to {len(failed)} of {len(set(requests))} prompts: got {next(iter(failed.values()))}, need at most "
            f"{max_failed} without. Run again to ask for the missing ones only, or allow more with --max-failed."
        )


@contextmanager
def output_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Create an output directory and keep it for this process alone; one that a failed block left empty is removed.

    Raises: ConfigError when another process writes there, or when it is a file.
    """
    directory = Path(path)
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"no directory: {directory} is a file. Choose another --output.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process writes to {directory}. Wait for it, or choose another --output."
            ) from error
        yield directory
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty: a rerun goes on with what is there
                directory.rmdir()
        raise
    finally:
        os.close(descriptor)
