"""Methods of packages outside on a real device: found by name, imported late, refused in one line where they lack."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.agent.errors import DeviceMethodError
from edge_runtime.agent.methods.installed import GROUP, InstalledMethods
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.tensors import decode_integers
from edge_runtime.wire.messages import DeviceState, Failure, FailureReason, Register, Status, Update
from edge_runtime.wire.work import PluginWork
from tests.edge_runtime.agent.methods import label_counts
from tests.edge_runtime.agent.stage import Coordinator, StartDevice

CLASS = f"{label_counts.__name__}:LabelCounts"
OWN = {"device_methods": {"label_counts": CLASS}}
NAMED: dict[str, Any] = {"work": "plugin", "device_method": "label_counts"}

Install = Callable[[str, Mapping[str, str], str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package of one module, as pip leaves it."""

    def install(package: str, entries: Mapping[str, str], source: str) -> None:
        info = tmp_path / package / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        (info.parent / f"{package}.py").write_text(source)
        monkeypatch.delitem(sys.modules, package, raising=False)
        monkeypatch.syspath_prepend(str(info.parent))

    return install


def work_of(coordinator: Coordinator, **changes: Any) -> PluginWork:
    plan = Plan.full(coordinator.artifact.manifest).packed
    fields = {"method": "label_counts", "plan": plan, "batch_size": 4, "max_length": 16, "settings": {}, **changes}
    return PluginWork(**fields)


def counts_of(update: Update) -> list[int]:
    return [int(count) for count in decode_integers(update.inline)["counts"]]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_package_is_imported_when_its_method_is_asked_for_and_not_before(install: Install) -> None:
    install("outside", {"label_counts": "outside:Mine"}, f"from {label_counts.__name__} import LabelCounts as Mine")
    installed = InstalledMethods()
    assert installed.names() == ("label_counts",)
    assert installed.source_of("label_counts") == "outside"
    assert "outside" not in sys.modules
    assert installed.find("label_counts") is label_counts.LabelCounts
    assert "outside" in sys.modules


def test_what_the_owner_names_comes_before_what_a_package_offers(install: Install) -> None:
    install("outside", {"label_counts": "outside:Mine"}, "raise RuntimeError('imported')")
    installed = InstalledMethods.of(f"label_counts={CLASS}")
    assert installed.find("label_counts") is label_counts.LabelCounts
    assert installed.source_of("label_counts") == CLASS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('half')", "of the package outside cannot be imported .*half.*: fix or uninstall"),
        ("Mine = 3", "is a int, expected a class with check_run and begin"),
        ("class Mine:\n    def begin(self): ...", "is the class Mine, expected a class with check_run"),
    ],
)
def test_what_is_not_a_method_is_refused(install: Install, source: str, message: str) -> None:
    install("outside", {"x": "outside:Mine"}, source)
    with pytest.raises(DeviceMethodError, match=message):
        InstalledMethods().find("x")


def test_two_packages_cannot_offer_one_name(install: Install) -> None:
    for package in ("first", "second"):
        install(package, {"x": f"{package}:X"}, "")
    with pytest.raises(DeviceMethodError, match=r"offered by two packages, (first and second|second and first)"):
        InstalledMethods().find("x")


@pytest.mark.parametrize("name", ["os:system", "label_counts:LabelCounts", CLASS])
def test_a_name_never_imports_by_module_and_class(name: str) -> None:
    with pytest.raises(DeviceMethodError, match=r"no device method .* here: pip install its package"):
        InstalledMethods().find(name)


# ---- work ------------------------------------------------------------------------------------------------------------


def test_a_device_does_the_work_of_a_package(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device(**OWN)
    coordinator.bring_in(**NAMED)
    coordinator.assign(work=work_of(coordinator), payload=None)
    first = coordinator.wait(Update)
    assert counts_of(first) == [10, 0, 10]
    assert (first.num_examples, first.evaluation) == (20, None)
    coordinator.verdict(first)
    coordinator.assign(2, work=work_of(coordinator, settings={"factor": 3}), payload=None)
    assert counts_of(coordinator.wait(Update)) == [30, 0, 30]


def test_a_device_without_the_method_refuses_the_run_and_takes_the_next(
    coordinator: Coordinator, start_device: StartDevice, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    device = start_device()
    coordinator.wait(Register)
    coordinator.welcome(**NAMED)
    expected = (
        "run run-1 is refused: no device method 'label_counts' here: pip install its package (entry point label_counts "
        f"of {GROUP}), or start with --device-method label_counts=module:Class"
    )
    assert coordinator.wait(Status, detail=expected).state is DeviceState.IDLE
    for round_number in (1, 2):
        coordinator.assign(round_number, work=work_of(coordinator), payload=None)
        failure = coordinator.wait(Failure, round_number=round_number)
        assert (failure.reason, failure.detail) == (FailureReason.INTERNAL, expected)
    assert caplog.text.count("no device method") == 1
    assert not list((tmp_path / "state" / "artifacts").iterdir()), "nothing is fetched for a run that is refused"

    coordinator.welcome(run_id="good")
    coordinator.wait(Status, state=DeviceState.IDLE, detail="")
    coordinator.assign(7, run_id="good")
    assert coordinator.wait(Update, round_number=7).key.run_id == "good"
    assert device.thread.is_alive()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a name that is not installed": ({"method": "absent"}, "no device method 'absent' here: pip install"),
    "a setting of another type": ({"settings": {"factor": "2"}}, "settings of method 'label_counts' refused: .*int"),
    "a setting that is not known": ({"settings": {"other": 1}}, "unknown field `other`"),
}


def test_one_assignment_that_cannot_be_done_costs_no_other(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device(**OWN)
    coordinator.bring_in(**NAMED)
    for round_number, (name, (changes, message)) in enumerate(BAD.items(), start=1):
        coordinator.assign(round_number, work=work_of(coordinator, **changes), payload=None)
        failure = coordinator.wait(Failure, round_number=round_number)
        assert failure.reason is FailureReason.INTERNAL, name
        assert re.search(message, failure.detail), failure.detail
    coordinator.assign(9, work=work_of(coordinator), payload=None)
    assert counts_of(coordinator.wait(Update, round_number=9)) == [10, 0, 10]


def test_code_of_a_package_that_fails_ends_no_device(
    coordinator: Coordinator, start_device: StartDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = start_device(**OWN)
    coordinator.bring_in(**NAMED)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(label_counts.Counting, "train", fail)
        coordinator.assign(work=work_of(coordinator), payload=None)
        assert coordinator.wait(Failure).reason is FailureReason.INTERNAL
    coordinator.assign(2, work=work_of(coordinator), payload=None)
    assert counts_of(coordinator.wait(Update)) == [10, 0, 10]
    assert device.thread.is_alive()
