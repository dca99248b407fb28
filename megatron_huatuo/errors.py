"""Typed errors. Every message says what is wrong, what was got, what is needed, where, and how to mend it."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable


class HuatuoError(Exception):
    """Root of all errors that a user can mend."""


class ConfigError(HuatuoError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(HuatuoError, ValueError):
    """Input data that breaks its format."""


class BlankTextError(DataError):
    """A record whose text is empty or white space: it is skipped and counted, and is no bad line."""


class IntegrityError(DataError):
    """A file that is torn, missing, or differs from its manifest."""


class EndpointError(HuatuoError):
    """A model endpoint that refuses, fails for good, or answers nonsense."""


def exit_on_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Turn a tool's `main` into one that returns an exit code.

    HuatuoError, a package that is not installed, a full disk, and an error of the system that names a file (no
    permission, no such folder), give one line on stderr and 1; Ctrl-C gives 130; a broken pipe (`tool | head`) gives 0.
    Anything else is a defect of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs) or 0
        except HuatuoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except ModuleNotFoundError as error:
            package = (error.name or "megatron_huatuo").partition(".")[0]
            if package == "megatron_huatuo":
                raise
            needed_by = traceback.extract_tb(error.__traceback__)[-1].filename
            print(f"error: no package {package}, which {needed_by} needs. Run pip install {package}.", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            sys.stderr.close()
            return 0
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                print(
                    f"error: cannot write {error.filename or 'a file'}: {error.strerror}. Nothing was published under a "
                    "final name; make room and run the same command again.",
                    file=sys.stderr,
                )
                return 1
            if error.filename is None:
                raise
            print(f"error: {error.strerror}: {error.filename}. Check the path and its permissions.", file=sys.stderr)
            return 1

    return wrapped
