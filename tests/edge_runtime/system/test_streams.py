"""Standard streams under terminals, pipes and disks as they come, in real processes: each has one of each kind."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

START = "from edge_runtime.system import streams; streams.use_utf8(); streams.prepare(); "
TEXT = "café ☕ naïve"


def command(script: str) -> list[str]:
    return [sys.executable, "-c", START + script]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **changes}


def play(script: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(script), capture_output=True, check=False, timeout=60, env=environment(**changes), stdin=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", TEXT.encode()),
        ("latin-1", b"caf\xe9 \\u2615 na\xefve"),
        ("ascii", b"caf\\xe9 \\u2615 na\\xefve"),
        ("ascii:strict", b"caf\\xe9 \\u2615 na\\xefve"),
        ("cp1252", b"caf\xe9 \\u2615 na\xefve"),
    ],
)
def test_letters_that_an_encoding_lacks_are_escaped(encoding: str, shown: bytes) -> None:
    for stream in ("stdout", "stderr"):
        done = play(f"import sys; print({TEXT!r}, file=sys.{stream})", PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stdout + done.stderr) == (0, shown + b"\n")


def test_an_ascii_locale_becomes_utf8_in_the_same_process() -> None:
    """Names and arguments too, which no error handler could save."""
    script = f"import os, sys; print(os.getpid(), sys.argv[1], os.fsencode({TEXT!a}).decode(), sys.argv[1] == {TEXT!a})"
    changes = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    with subprocess.Popen(
        [*command(script), TEXT.encode()], env=environment(**changes), stdout=subprocess.PIPE
    ) as process:
        said = process.communicate(timeout=60)[0].decode()
    assert (process.returncode, said) == (0, f"{process.pid} {TEXT} {TEXT} True\n")


def test_half_a_character_of_a_path_is_printed_escaped() -> None:
    done = play(r"import os; print(os.fsdecode(b'a\xffb'))", PYTHONUTF8="1")
    assert (done.returncode, done.stdout) == (0, b"a\\udcffb\n")


def test_a_reader_that_went_away_ends_nothing(tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = (
        f"import sys; print('first', flush=True); sys.stdin.read(); print('x' * 100_000); print('y', flush=True); "
        f"open({str(done)!r}, 'w').write(str(streams.is_cut())); streams.finish(); print('z')"
    )
    with subprocess.Popen(
        command(script), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stderr
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    assert (process.returncode, said, done.read_text()) == (0, b"", "True")


def test_a_terminal_that_hung_up_ends_nothing(tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = (
        "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); print(sys.stdout.isatty(), flush=True); "
        f"sys.stdin.read(); print('late', flush=True); open({str(done)!r}, 'w').write(str(streams.is_cut()))"
    )
    terminal, end = pty.openpty()
    with subprocess.Popen(command(script), env=environment(), stdin=subprocess.PIPE, stdout=end, stderr=end) as process:
        assert process.stdin
        os.close(end)
        assert os.read(terminal, 100) == b"True\r\n"
        os.close(terminal)
        process.stdin.close()
    assert (process.returncode, done.read_text()) == (0, "True")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    script = (
        "import sys, os; file = open(sys.argv[1], 'w'); assert file.fileno() > 2; print('out'); "
        "print('err', file=sys.stderr); os.write(1, b'raw'); sys.stdin.read(); file.write('mine'); streams.finish()"
    )
    target = tmp_path / "file"
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "bash", *command(script), target],
        env=environment(), capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, target.read_text()) == (0, "mine"), done.stderr


def test_a_full_disk_under_standard_output_is_an_error() -> None:
    script = (
        "print('x', flush=True); print('y')\n"
        "try: streams.finish()\nexcept streams.DiskFullError as error: sys.stderr.write(f'{error}'); sys.exit(19)"
    )
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("import sys\n" + script), env=environment(), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr.count(b"\n")) == (19, 0)
    assert b"No space left" in done.stderr


def test_a_name_without_bytes_in_an_encoding_is_explained() -> None:
    from edge_runtime.system import streams

    with pytest.raises(UnicodeEncodeError) as caught:
        "/data/b\udcffd.jsonl".encode()
    assert "'/data/b\\udcffd.jsonl'" in streams.explain(caught.value)
