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
from megatron_huatuo.evaluate.generate import GeneratedReply, GenerationSettings, Generator, ModelEndpoint
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
        from megatron_huatuo.evaluate.endpoint import EndpointGenerator

        return EndpointGenerator(model, log_directory, settings)
    from megatron_huatuo.evaluate.huggingface import HuggingFaceGenerator

    return HuggingFaceGenerator(Path(model), log_directory, settings, trust_remote_code=trust_remote_code)


def collect_replies(
    generator: Generator, prompts: Sequence[str], *, description: str, max_failed: int = 0
) -> list[GeneratedReply]:
    """One reply a prompt, in order; equal prompts are asked once.

    max_failed: prompts that may stay without a reply (an endpoint failed); they get finish_reason "failed: …".
    Raises: EndpointError when more failed; a rerun asks only for those.
    """
    unique = list(dict.fromkeys(prompts))
    replies: dict[str, GeneratedReply] = {}
    with progress(total=len(unique), description=description, unit="reply") as bar:
        for index, reply in generator.generate(unique):
            replies[unique[index]] = reply
            bar.update()
    failed = [reply.finish_reason for reply in replies.values() if is_failed(reply)]
    if len(failed) > max_failed:
        raise EndpointError(
            f"no reply to {len(failed)} of {len(unique)} prompts: got {failed[0]}, need at most {max_failed} without. "
            "Run again to ask for the missing ones only, or allow more with --max-failed."
        )
    return [replies[prompt] for prompt in prompts]


def is_failed(reply: GeneratedReply) -> bool:
    """Whether an endpoint never replied."""
    return (reply.finish_reason or "").startswith("failed:")


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
