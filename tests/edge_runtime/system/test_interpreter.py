"""Whatever lies in the folder of the person who starts FedSpine, none of it is executed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.system import interpreter
from edge_runtime.system.interpreter import code_command, install_step, keep_folder_out, missing, module_command

ROOT = Path(__file__).parents[3]
SHADOWED = ("models", "exporter", "random", "torch", "numpy", "json", "edge_runtime", "broker_server", "sitecustomize")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A person's folder, in which each module says that it ran."""
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text(f"print('ran {name}')\n")
    return tmp_path


def run_in(folder: Path, command: list[str], **environment: str) -> str:
    """Return the output of a command."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    env |= {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=env, timeout=60)
    return done.stdout


IMPORTS_ALL = f"import {', '.join(name for name in SHADOWED if name not in {'sitecustomize', 'torch'})}"


def test_a_module_is_ours_wherever_it_is_started(folder: Path) -> None:
    assert "ran" not in run_in(folder, module_command("edge_runtime", "--help"))
    unsafe = [part for part in module_command("random") if part != "-P"]
    assert run_in(folder, unsafe) == "ran random\n"  # which shows that the folder would be seen


def test_a_line_of_python_imports_nothing_from_the_folder(folder: Path) -> None:
    assert run_in(folder, code_command(f"{IMPORTS_ALL}; print('done')")) == "done\n"


def test_another_interpreter_is_started_as_safely() -> None:
    assert module_command("exporter.x", "a", python="/opt/python") == ["/opt/python", "-P", "-m", "exporter.x", "a"]


@pytest.mark.parametrize("given", ["", os.pathsep, "."])
def test_processes_of_libraries_import_nothing_from_the_folder(folder: Path, given: str) -> None:
    """As multiprocessing starts them: without ``-P``, with what the environment holds."""
    child = [sys.executable, "-c", f"{IMPORTS_ALL}; print('done')"]
    code = (
        "import os, subprocess, sys; "
        f"os.environ['PYTHONPATH'] = {str(ROOT)!r} + {os.pathsep + given!r}; "
        "from edge_runtime.system.interpreter import keep_folder_out; keep_folder_out(); "
        f"sys.stdout.write(subprocess.run({child!r}, capture_output=True, text=True).stdout)"
    )
    said = run_in(folder, code_command(code)).splitlines()
    assert said[-1:] == ["done"]
    assert ("ran random" in said) is (given == ".")  # whoever names the folder wants it


def test_a_spawned_pool_imports_nothing_from_the_folder(folder: Path) -> None:
    code = (
        "from edge_runtime.system.interpreter import keep_folder_out; keep_folder_out(); "
        "import multiprocessing as mp, os; context = mp.get_context('spawn'); "
        "pool = context.Pool(1); print(pool.map(abs, [-1])); pool.close(); pool.join()"
    )
    assert run_in(folder, code_command(code)) == "[1]\n"


def test_what_a_person_starts_with_dash_m_forgets_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standard = str(Path(os.__file__).parent)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/opt/other")
    monkeypatch.setattr(sys, "path", [str(folder), "", "/opt/other", standard, str(folder)])

    keep_folder_out()

    assert sys.path == ["/opt/other", standard, str(folder)]  # what an installation put at the end stays
    assert (os.environ["PYTHONPATH"], os.environ["PYTHONSAFEPATH"]) == ("/opt/other", "1")


def test_a_checkout_stays_importable_from_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), str(Path(os.__file__).parent)])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.delenv("PYTHONPATH", raising=False)

    keep_folder_out()

    assert sys.path[0] == str(ROOT)
    assert "PYTHONPATH" not in os.environ


def test_a_folder_that_was_removed_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("PYTHONSAFEPATH", "")

    keep_folder_out()

    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_a_part_of_fedspine_is_no_package_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    foreign = type(sys)("models")
    foreign.__file__ = str(tmp_path / "models.py")
    monkeypatch.setitem(sys.modules, "models", foreign)

    line = missing(ModuleNotFoundError("x", name="models.registry"), "export")

    assert "pip install" not in line
    assert str(tmp_path / "models.py") in line
    assert "pip install" not in install_step(ImportError("x", name="edge_runtime.engine"))
    assert "pip install" not in install_step(ImportError("cannot import name 'x'"))


def test_a_package_of_others_is_named_with_what_installs_it() -> None:
    assert "pip install 'fedspine[server]'" in missing(ModuleNotFoundError("x", name="torch"), "export")
    assert install_step(ImportError("x", name="tokenizers.models")).startswith("pip install tokenizers;")


def test_every_python_process_is_started_by_one_builder() -> None:
    """``sys.executable`` is named there, in the launcher that is isolated altogether, and where a program starts anew
    as it was started."""
    places = {
        path.relative_to(ROOT).as_posix()
        for room in sorted(interpreter.OWN_PACKAGES)
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "executable"
    }
    as_it_was = "edge_runtime/system/streams.py"
    assert places == {"edge_runtime/system/interpreter.py", "broker_server/experiments/run/tether.py", as_it_was}
    words = {
        path.relative_to(ROOT).as_posix()
        for room in sorted(interpreter.OWN_PACKAGES)
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in {"-m", "-c"}
    }
    assert words <= {
        "edge_runtime/system/interpreter.py",
        "broker_server/serving/services/broker.py",
    }  # mosquitto has a -c of its own
