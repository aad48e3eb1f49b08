"""``fedspine-edge doctor``: real processes, on a board where all is well and on boards where something is not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.board.guard import PauseLimits
from edge_runtime.doctor import files, machine, methods, packages
from edge_runtime.doctor.checkup import check_up
from edge_runtime.doctor.setup import Setup
from edge_runtime.doctor.trial import PRODUCT
from edge_runtime.errors import ExitCode
from edge_runtime.link.address import TlsFiles
from tests.conftest import Disk

NAMES = [
    *("python", "packages", "onnxruntime", "session", "methods", "processor", "cores", "memory"),
    *("swap", "nice", "sensors", "clock", "state", "data", "broker", "fleet", "artifact"),
]


def doctor(*arguments: object, before: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command; packages in ``before`` come before those that are installed."""
    paths = [*([str(before)] if before is not None else []), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [sys.executable, "-m", "edge_runtime", "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=env)


def levels(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Level by question."""
    return {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "the cat"}\n{"input_ids": [1]}\n')
    return path


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A board about which nothing is asked."""
    return Setup(
        data=None,
        state=None,
        broker=None,
        fleet="lab",
        device_id=None,
        is_encrypted=False,
        tls=TlsFiles(),
        num_threads=None,
        memory_limit_bytes=None,
        nice=19,
        pausing=PauseLimits(),
        sensors=tmp_path / "sys",
        now=machine.NOT_BEFORE.timestamp() + 1,
    )


def test_a_board_where_all_is_well(tmp_path: Path, data: Path, mosquitto: Any) -> None:
    state = tmp_path / "state"
    options = ("--broker", mosquitto.url, "--data", data, "--state", state, "--nice", "19")
    done = doctor(*options)
    assert (done.returncode, done.stderr) == (ExitCode.OK, ""), done.stdout
    found = levels(done)
    assert list(found) == NAMES
    assert {
        level for name, level in found.items() if name not in {"packages", "memory", "swap", "fleet", "artifact"}
    } == {"ok"}
    assert (found["fleet"], found["artifact"]) == ("warning", "warning"), "nobody coordinates it"
    assert "2 examples, 1 of them raw text" in done.stdout
    assert not state.exists()

    told = json.loads(doctor(*options, "--json").stdout)
    assert (told["ok"], told["exit_code"]) == (True, 0)
    assert [check["name"] for check in told["checks"]] == NAMES


def test_what_is_not_named_is_not_looked_at() -> None:
    done = doctor("--nice", "19")
    assert done.returncode == ExitCode.OK
    assert [name for name, level in levels(done).items() if level == "skipped"] == [
        *("state", "data", "broker", "fleet", "artifact")
    ]


def test_every_error_is_named_and_the_first_decides(tmp_path: Path, data: Path) -> None:
    data.write_text("not json\n")
    done = doctor("--broker", "mqtt://127.0.0.1:1", "--data", data, "--max-temperature", "60", "--sensors", tmp_path)
    assert done.returncode == ExitCode.USAGE  # of the sensors, which come first
    assert [name for name, level in levels(done).items() if level == "error"] == ["sensors", "data", "broker"]
    assert done.stderr.splitlines() == ["fedspine-edge: error: 3 of 17 checks failed: sensors, data, broker"]
    told = json.loads(doctor("--broker", "mqtt://127.0.0.1:1", "--json").stdout)
    assert (told["ok"], told["exit_code"]) == (False, ExitCode.BROKER_UNREACHABLE)


@pytest.mark.parametrize(
    ("package", "content", "failed", "code", "expected"),
    [
        ("onnxruntime", "raise ImportError('libgomp.so.1: cannot open')", {"session"}, 27, "libgomp"),
        ("onnxruntime", "import os\nos.kill(os.getpid(), 4)", {"session"}, 1, "crashes with SIGILL"),
        ("psutil", "raise ImportError('broken', name='psutil')", {"memory", "swap"}, 27, "pip install psutil"),
    ],
    ids=["no library", "crash", "no package"],
)  # fmt: skip
def test_a_package_that_is_broken_is_named_and_the_rest_is_asked(
    tmp_path: Path, package: str, content: str, failed: set[str], code: int, expected: str
) -> None:
    (tmp_path / f"{package}.py").write_text(content)
    done = doctor("--nice", "19", before=tmp_path)
    assert done.returncode == code
    found = levels(done)
    assert {name for name, level in found.items() if level == "error"} == failed
    assert list(found) == NAMES
    assert expected in done.stdout


def test_a_wrong_password_is_told_without_it(tmp_path: Path, start_mosquitto: Any) -> None:
    (tmp_path / "passwords").write_text("")
    (tmp_path / "mine").write_text("hunter2\n")
    broker = start_mosquitto(
        "listener {port} 127.0.0.1", "allow_anonymous false", f"password_file {tmp_path / 'passwords'}"
    )
    done = doctor("--broker", f"mqtt://lab@127.0.0.1:{broker.port}", "--password-file", tmp_path / "mine")
    assert done.returncode == ExitCode.BROKER_REFUSED
    assert "hunter2" not in done.stdout + done.stderr


def test_a_password_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = doctor("--broker", "mqtt://lab@127.0.0.1:1", "--password-file", tmp_path / "absent")
    assert done.returncode == ExitCode.USAGE
    assert "--password-file" in done.stdout


# ---- one question at a time ------------------------------------------------------------------------------------------


def install(folder: Path, name: str, version: str, *lines: str, module: str | None = None) -> None:
    """Write the files that pip leaves of a package beside its code."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]))
    (info / "top_level.txt").write_text((module or name) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, the only one."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    return folder


REQUIRES = (
    "Requires-Dist: numpy>=1.26",
    "Requires-Dist: onnxruntime<2,>=1.23",
    'Requires-Dist: torch; extra == "server"',
)


def test_packages_are_those_of_the_base_install(site: Path) -> None:
    install(site, "fedspine", "0.1.0", *REQUIRES)
    install(site, "numpy", "2.0.1")
    install(site, "onnxruntime", "1.31.1")
    assert packages.packages().level == "ok"
    assert "torch" not in packages.packages().detail


def test_a_package_that_is_missing_or_too_old_is_named(site: Path) -> None:
    install(site, "fedspine", "0.1.0", *REQUIRES)
    assert "numpy is not installed" in packages.packages().detail
    install(site, "numpy", "1.9")
    found = packages.packages()
    assert (found.level, found.exit_code) == ("error", ExitCode.MISSING_DEPENDENCY)
    assert "numpy is 1.9, expected >=1.26" in found.detail
    assert found.next_step == "pip install 'numpy>=1.26'"


def test_no_onnxruntime_one_too_old_and_two_of_them(site: Path) -> None:
    install(site, "fedspine", "0.1.0", *REQUIRES)
    assert packages.onnxruntime().exit_code == ExitCode.MISSING_DEPENDENCY
    install(site, "onnxruntime", "1.22.0")
    assert "onnxruntime is 1.22.0, expected <2,>=1.23" in packages.onnxruntime().detail
    install(site, "onnxruntime-training", "1.19.2", module="onnxruntime")
    found = packages.onnxruntime()
    assert "onnxruntime 1.22.0, onnxruntime-training 1.19.2: they write to one folder" in found.detail
    assert found.next_step.startswith("pip uninstall -y onnxruntime onnxruntime-training")


def test_another_build_alone_is_a_warning(site: Path) -> None:
    install(site, "fedspine", "0.1.0", *REQUIRES)
    install(site, "onnxruntime-training", "1.19.2", module="onnxruntime")
    assert packages.onnxruntime().level == "warning"


CRASH = "import os\nprint('at work', flush=True)\nos.kill(os.getpid(), 4)"


@pytest.mark.parametrize(
    ("source", "level", "detail"),
    [
        ("print('loaded')\nclass X:\n    check_run = begin = print", "ok", "x (mine:X)"),
        ("class X: ...", "warning", "device method 'mine:X' is the class X, expected a class with check_run"),
        ("import nowhere", "warning", "cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        (CRASH, "warning", "Python crashes with SIGILL where they are imported"),
    ],
    ids=["well", "another class", "no module", "crash"],
)
def test_methods_of_packages_are_imported_in_another_process(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, level: str, detail: str
) -> None:
    assert methods.methods(setup).detail == "none of other packages"
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    found = methods.methods(dataclasses.replace(setup, device_methods="x=mine:X"))
    assert found.level == level
    assert detail in found.detail
    assert "mine" not in sys.modules


def test_the_trial_s_graph_is_one_product() -> None:
    import onnx

    model = onnx.load_model_from_string(PRODUCT)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


@pytest.mark.parametrize(
    ("limit", "level"),
    [(10**15, "error"), (1_000_000, "error"), (200_000_000, "ok")],
    ids=["more", "too little", "fits"],
)
def test_memory_is_beside_what_may_be_used(setup: Setup, limit: int, level: str) -> None:
    found = machine.memory(dataclasses.replace(setup, memory_limit_bytes=limit))
    assert found.level == level
    assert (found.exit_code == ExitCode.INSUFFICIENT_MEMORY) == (level == "error")


def test_more_threads_than_cores_is_a_warning(setup: Setup) -> None:
    assert machine.cores(dataclasses.replace(setup, num_threads=10_000)).level == "warning"
    assert machine.cores(setup).level == "ok"


def test_a_shell_that_is_too_nice_is_a_warning(setup: Setup) -> None:
    assert machine.nice(dataclasses.replace(setup, nice=-20)).level == "warning"
    assert machine.nice(setup).level == "ok"


@pytest.mark.parametrize(
    ("text", "level"),
    [("flags\t\t: fpu avx2 fma f16c\n", "ok"), ("flags\t\t: fpu sse2\n", "warning"), ("", "ok")],
    ids=["fast", "slow", "not said"],
)
def test_a_processor_without_vectors_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, level: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.processor(tmp_path / "cpuinfo").level == level


def test_a_machine_of_another_kind_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "armv7l")
    assert "armv7l" in machine.processor().detail


@pytest.mark.parametrize(("is_encrypted", "level"), [(True, "error"), (False, "warning")])
def test_a_clock_that_begins_in_1970_keeps_no_certificate_valid(setup: Setup, is_encrypted: bool, level: str) -> None:  # noqa: FBT001
    found = machine.clock(dataclasses.replace(setup, now=60.0, is_encrypted=is_encrypted))
    assert found.level == level
    assert "1970-01-01 00:01 UTC" in found.detail
    assert machine.clock(setup).level == "ok"


def test_a_board_that_is_slowed_down_is_told_to_cool(setup: Setup) -> None:
    flags = setup.sensors / "devices" / "platform" / "soc" / "soc:firmware" / "get_throttled"
    flags.parent.mkdir(parents=True)
    flags.write_text("50001\n")
    found = machine.sensors(setup)
    assert (found.level, found.detail) == ("warning", "slowed down (under-voltage)")


def test_a_full_disk_and_a_small_one(setup: Setup, small_disk: Disk) -> None:
    full = files.state(dataclasses.replace(setup, state=small_disk(2_000_000) / "state"))
    assert (full.level, full.exit_code) == ("error", ExitCode.DISK_FULL)
    assert files.state(dataclasses.replace(setup, state=small_disk(100_000_000) / "state")).level == "warning"


def test_a_folder_that_cannot_be_written_is_an_error(setup: Setup) -> None:
    found = files.state(dataclasses.replace(setup, state=Path("/proc/fedspine")))
    assert (found.level, found.exit_code) == ("error", ExitCode.USAGE)


def test_a_state_in_use_is_not_disturbed(setup: Setup, tmp_path: Path) -> None:
    from edge_runtime.agent.identity import StateDirectory

    with StateDirectory(tmp_path / "state") as state:
        before = sorted(path.name for path in state.path.iterdir())
        assert files.state(dataclasses.replace(setup, state=state.path)).level in {"ok", "warning"}
        assert sorted(path.name for path in state.path.iterdir()) == before


def test_raw_text_needs_a_tokenizer(setup: Setup, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dataclasses.replace(setup, data=data)
    assert files.data(asked).level == "ok"
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert files.data(asked).exit_code == ExitCode.MISSING_DEPENDENCY
    data.write_text('{"input_ids": [1]}\n')
    assert files.data(asked).level == "ok"


@pytest.mark.parametrize(
    ("content", "code"), [("", ExitCode.DATA_EMPTY), ("x\n", ExitCode.DATA_INVALID)], ids=["empty", "no json"]
)
def test_examples_that_cannot_be_read_have_the_code_of_start(
    setup: Setup, data: Path, content: str, code: ExitCode
) -> None:
    data.write_text(content)
    assert files.data(dataclasses.replace(setup, data=data)).exit_code == code


def test_no_line_of_a_finding_is_two(setup: Setup) -> None:
    assert all("\n" not in finding.line() for finding in check_up(setup))


def test_examples_that_are_left_out_are_worth_a_warning(setup: Setup, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"text": ""}\n')
    found = files.data(dataclasses.replace(setup, data=data))
    assert found.level == "warning"
    assert "1 example has an empty text and is left out" in found.detail
