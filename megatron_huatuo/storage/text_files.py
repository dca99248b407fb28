"""Text files as UTF-8 bytes, whatever their compression (`.gz`, `.zst`) and their encoding (UTF-8, GB18030, UTF-16).

Invariant: nothing is guessed about single lines. A file is taken for GB18030 only when most of its lines with other signs
than ASCII are Chinese in GB18030 and no UTF-8; a byte that is not text in the file's encoding stays as it is, so that the
line is found as invalid UTF-8. Offsets count bytes of what `open_binary` gives.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.lfs_pointer import refuse_pointer

READ_ERRORS = (EOFError, zlib.error, OSError)
"""What reading a torn or unreadable file raises."""
COMPRESSIONS = (".gz", ".zst")
_CHUNK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 20
_MAX_WINDOW_BYTES = 1 << 31  # zstd --long=31, as some published sets have it
# Latin, Greek, and all of three bytes or more but U+FFFD, which 锟斤拷 is by its bytes.
_MEANT_IN_UTF8 = re.compile("[\u00a0-\u024f\u0370-\u03ff\u0800-\ufffc\U00010000-\U0010ffff]")
_LEAST_COMMON_SHARE = 0.7  # of a Chinese line's signs, in GB 2312


def open_binary(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading its text as UTF-8, decompressed. Raises DataError when the file cannot be opened.

    Reading raises one of READ_ERRORS when the file is incomplete. Seeking in a compressed or converted file reads it from its start.
    """
    encoding = converted_from(path)
    return _open_decompressed(path) if encoding is None else _buffered(partial(_convert, path, encoding))


def converted_from(path: str | os.PathLike[str]) -> str | None:
    """The encoding that `open_binary` converts a file from ("GB18030", "UTF-16"); None for UTF-8 and for damaged text."""
    with _open_decompressed(path) as handle:
        return _detect_encoding(_read_head(handle))


def base_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a file's name without that of its compression, in lower case: ".json" of "a.JSON.gz"."""
    name = Path(Path(path).name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def _open_decompressed(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        suffix = Path(path).suffix.lower()
        refuse_pointer(path)
        if suffix == ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        handle = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}. Check the path and its permissions."
        ) from error
    if suffix != ".zst":
        return handle
    handle.close()
    return _buffered(partial(_decompress_zstd, path))


def _read_head(handle: IO[bytes]) -> bytes:
    """The start of a file; nothing of a torn one, which its reader will name."""
    try:
        return handle.read(_HEAD_BYTES)
    except READ_ERRORS:
        return b""


def _detect_encoding(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return None
    except UnicodeDecodeError:
        pass
    lines = [line for line in head.split(b"\n") if not line.isascii()]
    utf8 = [_is_utf8(line) for line in lines]
    chinese = sum(not found and _is_chinese(line) for found, line in zip(utf8, lines, strict=True))
    return "GB18030" if chinese > sum(utf8) else None


def _is_utf8(line: bytes) -> bool:
    """Whether a line is UTF-8 and not so by chance: 药 in GB18030 is a letter of Abkhaz in UTF-8, which nobody means."""
    try:
        return _MEANT_IN_UTF8.search(line.decode("utf-8")) is not None
    except UnicodeDecodeError:
        return False


def _is_chinese(line: bytes) -> bool:
    """Whether most signs of a line, read as GB18030, are the common ones of GB 2312. The end may be cut."""
    signs = [sign for sign in line.decode("gb18030", "ignore") if not sign.isascii()]
    common = sum(len(sign.encode("gb2312", "ignore")) == 2 for sign in signs)
    return common >= _LEAST_COMMON_SHARE * len(signs) and 3 * len(signs) >= sum(byte > 0x7F for byte in line)


def _decompress_zstd(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Chunks of a file of any number of frames. The package's own reader takes a torn file for a finished one."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    frame: Any = None
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            while chunk:
                frame = frame or decompressor.decompressobj()
                try:
                    yield frame.decompress(chunk)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("compressed file ends in the middle of a frame")


def _convert(path: str | os.PathLike[str], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    with _open_decompressed(path) as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            yield decoder.decode(chunk).encode("utf-8", "surrogateescape")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _buffered(start: Callable[[], Iterator[bytes]]) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(_ChunkStream(start), _CHUNK_BYTES))


class _ChunkStream(io.RawIOBase):
    """A readable stream of the chunks that `start()` yields, and yields again where it is sought backwards."""

    def __init__(self, start: Callable[[], Iterator[bytes]]) -> None:
        super().__init__()
        self._start, self._chunks = start, start()
        self._rest, self._position = memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place counted from the start or from here."""
        target = offset + (self._position if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END or target < 0:
            raise io.UnsupportedOperation("only places from the start can be sought")
        if target < self._position:
            self._chunks, self._rest, self._position = self._start(), memoryview(b""), 0
        scratch = bytearray(_CHUNK_BYTES)
        while (left := target - self._position) and self.readinto(memoryview(scratch)[: min(left, len(scratch))]):
            pass
        return self._position
