"""Which failures torchrun's restarts do not repeat.

torchrun starts failed ranks again, MAX_RESTARTS times, whatever they failed of. That is for ranks that die. A wrong setting,
a missing file or a loss that is not finite would only be met again, hours later perhaps: the rank notes it in the file that
torchrun gives it for errors, LOGS/attempt_N/LOCAL_RANK/error.json, and its next attempts end at once with the same words.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from megatron_huatuo.checkpoint.save import SaveError
from megatron_huatuo.errors import HuatuoError


def note_failure(error: BaseException) -> None:
    """Note what would be met again; call it while `error` is handled. A disk may have room again, so a failed save is not."""
    if isinstance(error, HuatuoError) and not isinstance(error, SaveError):
        with contextlib.suppress(OSError):
            get_error_handler().record_exception(error)


def refuse_to_repeat() -> None:
    """Raises: HuatuoError in the words of an earlier attempt of this launch that noted its failure."""
    own = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    if len(own.parents) < 3:  # no launcher, or one that keeps no logs
        return
    for noted in sorted(own.parents[2].glob(f"attempt_*/{own.parent.name}/{own.name}")):
        message: str = json.loads(noted.read_text())["message"]["message"]
        raise HuatuoError(message.partition(": ")[2])  # without its type
