"""Standard streams that do not end a command because of an encoding, a closed descriptor or a reader that left.

Characters that a terminal cannot show are escaped. Output without a reader is dropped, and the command goes on; a
command that only writes output checks :func:`is_cut` and ends. A full disk is an error, reported at the end.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Final, TextIO

from edge_runtime.system.files import DiskFullError

READER_GONE: Final = frozenset({errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET})
"""Errors of a pipe closed at its other end, or of a terminal that hung up."""

ESCAPED: Final = "backslashreplace"
_UTF8_VARIABLE: Final = "PYTHONUTF8"
_NAMES: Final = ("stdin", "stdout", "stderr")


class LastingFile(io.FileIO):
    """A file descriptor whose writes never fail: after an error, output is dropped.

    Attributes:
        failure: the first error of a write, or None; later output is dropped.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - a buffer; only Python 3.12 has a type for it
        """Write, or drop the data after an earlier error; return the number of all bytes."""
        with memoryview(data).cast("B") as view:
            taken = 0
            while self.failure is None and taken < view.nbytes:
                try:
                    taken += super().write(view[taken:]) or 0
                except OSError as error:
                    self.failure = error
            return view.nbytes


def use_utf8() -> None:
    """Restart this program in Python's UTF-8 mode if the locale is plain ASCII and that mode is off.

    Otherwise labels and paths with other letters could be neither printed nor passed to another process. Call it before
    anything else.
    """
    is_ascii = sys.getfilesystemencoding().lower() in {"ascii", "us-ascii", "646"}
    if is_ascii and not sys.flags.ignore_environment and sys.executable and os.environ.get(_UTF8_VARIABLE) != "1":
        os.environ[_UTF8_VARIABLE] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program


def prepare() -> None:
    """Replace the standard streams by :class:`LastingFile`; call it once, before anything is printed or opened.

    Closed descriptors are opened on ``/dev/null``, or else the next opened file would become a standard stream.
    """
    for descriptor in range(len(_NAMES)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # opens under the lowest free number, which is this one
    for descriptor, name in enumerate(_NAMES):
        stream = getattr(sys, name)
        if stream is None:  # Python found it closed
            mode = "w" if descriptor else "r"
            opened = open(descriptor, mode, encoding="utf-8", errors=ESCAPED, closefd=False)  # noqa: SIM115 - it lasts
            setattr(sys, name, opened)
        elif descriptor and stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _lasting(stream))


def is_cut(stream: TextIO | None = None) -> bool:
    """Return whether output to a stream (None = standard output) no longer arrives anywhere."""
    return _failure(sys.stdout if stream is None else stream) is not None


def finish() -> None:
    """Write the rest of standard output.

    Raises:
        DiskFullError: the disk is full, so output is missing. A reader that left is not an error.
        OSError: any other fault of the file.
    """
    sys.stdout.flush()
    failure = _failure(sys.stdout)
    if failure is None or failure.errno in READER_GONE:
        return
    if failure.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        msg = (
            f"standard output cannot take more ({failure.strerror}): what was printed is not complete; free some space"
        )
        raise DiskFullError(msg) from failure
    raise failure


def explain(error: UnicodeEncodeError) -> str:
    """One line for an error message: the encoding of a file or of the system lacks letters of a name or text."""
    where = max(0, error.start - 20)
    return (
        f"{error.object[where : error.end + 20]!a} holds characters that {error.encoding} has no bytes for: "
        "use names that are UTF-8, in a UTF-8 locale (LC_ALL=C.UTF-8)"
    )


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    raw = LastingFile(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=ESCAPED,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _failure(stream: TextIO) -> OSError | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, LastingFile) else None
