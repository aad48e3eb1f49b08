"""The run directory of a whole run: its paths, its finished steps, and the lock on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from broker_server.config import CONFIG_FILE
from broker_server.emulation.step_times import STEP_TIMES_FILE
from broker_server.errors import ChildFailedError, RunExistsError, StoreError
from broker_server.experiments.run.settings import EMULATION_FILE
from broker_server.serving.report.encoding import encode
from broker_server.serving.report.schema import REPORT_JSON, REPORT_PAGE
from broker_server.serving.storage import run_lock
from broker_server.serving.storage.events import EVENTS_FILE
from edge_runtime.formats.run_directory import ARTIFACTS_FOLDER
from edge_runtime.system.files import PRIVATE_FOLDER, raise_if_disk_full, write_atomically

DEFAULT_NAME: Final = "fedspine-run"
"""Run directory where none is given; then with -2, -3 and so on."""


LOGS: Final = "logs"


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """``job.json``: how far the job came. A step that is done is not done again by ``--resume``."""

    run_id: str
    created_at: float
    """Unix seconds, UTC."""
    artifact_digest: str | None = None
    done: tuple[str, ...] = ()
    """Steps that are done."""
    begun_with: dict[str, str | int | float | bool] = {}
    """Settings with which the last session began to train; empty before the first round."""
    steps: dict[str, float] = {}
    """Seconds spent on each step so far, in all sessions."""


class RunDirectory:
    """Paths of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings_file = root / "run.toml"
        self.config_file = root / CONFIG_FILE
        self.job_file = root / "job.json"
        self.events_file = root / EVENTS_FILE
        self.artifacts = root / ARTIFACTS_FOLDER
        self.data = root / "data"
        self.test_file = self.data / "test.jsonl"
        self.data_summary = self.data / "summary.json"
        self.devices = root / "devices"
        self.fleet_file = root / EMULATION_FILE
        self.step_times_file = root / STEP_TIMES_FILE
        self.logs = root / LOGS
        self.compact = root / "compact"
        self.report_json = root / REPORT_JSON
        self.report_html = root / REPORT_PAGE

    def device_data(self, device_id: str) -> Path:
        """Training examples of a device."""
        return self.data / f"{device_id}.jsonl"

    def calibration_file(self, shared: str) -> Path:
        """Return the file for measured step times: one that runs share, or one of this run."""
        return Path(shared) if shared else self.root / "calibration.json"

    def load_state(self) -> JobState:
        """Read ``job.json``.

        Raises:
            StoreError: it is damaged, or cannot be read.
            RunExistsError: there is none, so no run to resume.
        """
        try:
            return msgspec.json.decode(self.job_file.read_bytes(), type=JobState)
        except (FileNotFoundError, NotADirectoryError) as error:
            msg = f"{self.root} holds no run to resume: start one with `fedspine run --out {self.root}`"
            raise RunExistsError(msg) from error
        except OSError as error:
            msg = f"{self.job_file} cannot be read ({error.strerror}): check what is there, and who may read it"
            raise StoreError(msg) from error
        except msgspec.DecodeError as error:
            msg = f"{self.job_file} is damaged ({error}): start the run again in another directory"
            raise StoreError(msg) from error

    def save_state(self, state: JobState) -> None:
        """Write ``job.json``, all or nothing.

        Raises:
            DiskFullError: there is no space.
        """
        write_atomically(self.job_file, encode(state))


def default_root(parent: Path, *, resume: bool) -> Path:
    """The directory meant where none is given: the newest one to resume, or the first free name.

    Raises:
        RunExistsError: there is none to resume.
    """
    number = 1
    while _numbered(parent, number).exists():
        number += 1
    if not resume:
        return _numbered(parent, number)
    if number == 1:
        msg = f"no run to resume: there is no {DEFAULT_NAME} in this directory; give --out DIR"
        raise RunExistsError(msg)
    return _numbered(parent, number - 1)


def _numbered(parent: Path, number: int) -> Path:
    return parent / (DEFAULT_NAME if number == 1 else f"{DEFAULT_NAME}-{number}")


def check_free(root: Path) -> None:
    """Refuse a directory that a new run would spoil.

    Raises:
        RunExistsError: it holds a run, or anything else, or is a file.
    """
    if RunDirectory(root).job_file.exists():
        msg = (
            f"{root} holds a run already: continue it with `fedspine run --resume --out {root}`, or give another --out"
        )
        raise RunExistsError(msg)
    if root.exists() and (not root.is_dir() or any(path.name != LOGS for path in root.iterdir())):
        msg = f"{root} is not an empty directory: give another --out"
        raise RunExistsError(msg)


@contextlib.contextmanager
def created(root: Path) -> Iterator[RunDirectory]:
    """Make the directory of a new run; whatever fails inside leaves no trace of it, but logs where those say more.

    Raises:
        RunExistsError: see :func:`check_free`.
        DiskFullError: there is no space.
    """
    check_free(root)
    missing = [path for path in (root, *root.parents) if not path.exists()]
    before = frozenset(root.rglob("*"))
    try:
        root.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        yield RunDirectory(root)
    except BaseException as error:
        keeps_logs = isinstance(error, ChildFailedError) and not error.is_specific
        _clear(root, keep=before | frozenset((root / LOGS).rglob("*") if keeps_logs else ()))
        for path in missing:
            with contextlib.suppress(OSError):  # the folder is not empty, or was never made
                path.rmdir()
        if isinstance(error, OSError):
            raise_if_disk_full(error, root)
        raise


def _clear(root: Path, keep: frozenset[Path]) -> None:
    """Remove all files that are not to be kept; folders that hold kept ones stay."""
    for path in sorted(root.rglob("*"), reverse=True):  # a folder comes after its contents
        if path in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # the folder holds something that is kept
                path.rmdir()
        else:
            path.unlink()


@contextlib.contextmanager
def held(directory: RunDirectory) -> Iterator[None]:
    """Hold a run against a second ``fedspine run`` on it.

    Raises:
        StateInUseError: another process holds it.
    """
    with run_lock.hold(directory.root, owner="job"):
        yield
