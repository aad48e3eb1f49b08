"""Standard streams that never end a command: other encodings, closed descriptors, readers that went away.

What a terminal cannot show is escaped. What nobody reads is dropped, and the work goes on; a command whose output is
all that it does asks :func:`is_cut` and ends. A full disk is an error, told when the command is done.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Final, TextIO

from edge_runtime.system.files import DiskFullError

READER_GONE: Final = frozenset({errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET})
"""A pipe closed at its other end, a terminal that hung up."""

ESCAPED: Final = "backslashreplace"
_UTF8_VARIABLE: Final = "PYTHONUTF8"
_NAMES: Final = ("stdin", "stdout", "stderr")


class LastingFile(io.FileIO):
    """A descriptor that takes bytes also when they arrive nowhere.

    Attributes:
        failure: the first error of a write, or None; later output is dropped.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - a buffer; only Python 3.12 has a type for it
        """Write, or drop where an earlier write failed; returns the number of bytes taken."""
        with memoryview(data).cast("B") as view:
            taken = 0
            while self.failure is None and taken < view.nbytes:
                try:
                    taken += super().write(view[taken:]) or 0
                except OSError as error:
                    self.failure = error
            return view.nbytes


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the locale is plain ASCII and that mode was switched off.

    Labels and paths with other letters could be neither printed nor handed to another process there. Call it before
    anything else; it does nothing if it would change nothing.
    """
    is_ascii = sys.getfilesystemencoding().lower() in {"ascii", "us-ascii", "646"}
    if is_ascii and not sys.flags.ignore_environment and sys.executable and os.environ.get(_UTF8_VARIABLE) != "1":
        os.environ[_UTF8_VARIABLE] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program


def prepare() -> None:
    """Make the streams of this process last; call it once, before anything is printed or opened.

    Descriptors that were closed become ``/dev/null``: else the next file that is opened would be taken for one.
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
        DiskFullError: the disk under it is full, so that something is missing. A reader that went away is not an error.
        OSError: any other fault of the file under it.
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
    """One line on a name or text that the encoding of a file or of the system has no letters for."""
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
