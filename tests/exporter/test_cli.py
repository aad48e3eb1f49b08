"""``fedspine export``: what it takes, what it prints, and how it ends."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from broker_server.cli import call
from edge_runtime.errors import ExitCode
from edge_runtime.formats import names
from edge_runtime.formats.manifest import digest_of
from exporter.cli import needed_packages
from exporter.errors import MissingPackageError
from tests.conftest import Disk, save_bert
from tests.exporter.reference import manifest_of


def test_it_exports(tiny_bert_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "artifact"
    options = ["--task", "text-classification", "--labels", "red, green,blue", "-o", str(out)]
    assert call(["export", str(tiny_bert_model), *options]) == ExitCode.OK
    assert manifest_of(out).labels == ("red", "green", "blue")
    printed = capsys.readouterr()
    assert digest_of((out / names.MANIFEST_FILE).read_bytes()) in printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 5, lines
    assert all(line.startswith("fedspine: ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["./nowhere", "--task", "causal-lm"], ExitCode.MODEL_NOT_FOUND),
        (["{bert}", "--task", "causal-lm"], ExitCode.MODEL_UNSUPPORTED),
        (["{bert}", "--task", "translation"], ExitCode.USAGE),
        (["{bert}", "--task", "text-classification"], ExitCode.USAGE),
        (["{bert}", "--task", "text-classification", "--num-labels", "1"], ExitCode.USAGE),
        (["{bert}"], ExitCode.USAGE),
        ([], ExitCode.USAGE),
    ],
)
def test_each_mistake_is_one_line_and_its_code(
    arguments: list[str], code: ExitCode, tiny_bert_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(bert=tiny_bert_model) for argument in arguments]
    assert call(["export", *filled, "-o", str(tmp_path / "artifact")]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert not (tmp_path / "artifact").exists()


def test_a_taken_directory_is_refused(tiny_bert_artifact: Path, tiny_bert_model: Path) -> None:
    options = ["--task", "text-classification", "--num-labels", "2", "-o", str(tiny_bert_artifact)]
    assert call(["export", str(tiny_bert_model), *options]) == ExitCode.USAGE


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'onnx']))\n"
        "import exporter.cli\n"
        "exporter.cli.app(args=['export', '--help'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--num-labels" in done.stdout


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch']))\n"
        "from broker_server.cli import call\n"
        f"sys.exit(call(['export', 'x', '--task', 'causal-lm', '-o', {str(tmp_path / 'a')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.MISSING_DEPENDENCY, done.stderr
    assert "torch" in done.stderr


def test_a_disk_with_room_for_graphs_but_not_for_weights(
    small_disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_bert(tmp_path / "model", vocab_size=20_000)
    disk = small_disk(1_000_000)

    code = call(["export", str(model), "--task", "text-classification", "--num-labels", "2", "-o", str(disk / "a")])

    assert code == ExitCode.DISK_FULL
    assert "disk full" in capsys.readouterr().err
    assert list(disk.iterdir()) == []


def test_what_imports_bring_is_not_looked_at_by_the_garbage_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large_package.py").write_text("KEPT = [[] for _ in range(1000)]")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    try:
        with needed_packages("export"):
            assert not gc.isenabled()
            importlib.import_module("large_package")
        assert gc.get_freeze_count() > before + 1000
        frozen = gc.get_freeze_count()
        with needed_packages("export"):
            importlib.import_module("large_package")
        assert gc.get_freeze_count() == frozen, "nothing new was imported"
        with pytest.raises(MissingPackageError), needed_packages("export"):
            importlib.import_module("package_that_is_missing")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        sys.modules.pop("large_package", None)
