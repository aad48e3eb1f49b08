"""Every command in the documents is run by a test or says why not, and has options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from broker_server.cli import app, call
from broker_server.experiments.run.resolve import resolve
from edge_runtime.cli import _parser
from edge_runtime.cli import main as edge
from exporter.cli import app as exporter_app
from tests.documents.commands import COVERED, HERE, ROOT, Command, commands, documents
from tests.exporter import runs

ALL = [command for document in documents() for command in commands(document)]
OWN = sorted({(words[0], *words[1:]) for command in ALL for words in command.invocations})


def test_there_are_commands_and_each_is_read_as_one() -> None:
    assert len(ALL) > 50
    assert Command("", "").invocations == []
    piped = Command("", "cat x | fedspine-edge infer compact/ - && fedspine run --seed 1")
    assert piped.invocations == [["fedspine-edge", "infer", "compact/", "-"], ["fedspine", "run", "--seed", "1"]]
    assert "fedspine run" in {command.text for command in commands(ROOT / "README.md")}


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.place} {command.text[:50]}")
def test_every_command_is_run_or_says_why_not(command: Command) -> None:
    assert command.covered_by, f"{command.place}: add `{command.text}` to tests/documents/commands.py"


def test_what_runs_the_commands_is_there_and_no_row_is_idle() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for pattern, by in COVERED:
        found = [command for command in ALL if command.covered_by == by and re.fullmatch(pattern, command.text)]
        assert found, f"no command fits {pattern}"
        if by.startswith("not run: "):
            continue
        if by == ".ci/run":
            assert all(command.text.split()[0] in ci for command in found), pattern
        elif by.startswith("scripts/"):
            assert by in ci
        else:
            path, name = by.split("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), by


@pytest.mark.parametrize("words", OWN, ids=" ".join)
def test_its_options_exist_and_take_what_is_given(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "extending" / "plugin_package")  # docs/extending.md has its method
    assert command_of(words) in words[1:]


def command_of(words: tuple[str, ...]) -> object:
    """The command that a command line is read as; raises where an option does not exist or take what is given."""
    program, *arguments = words
    if program == "fedspine-edge":
        return _parser().parse_args(arguments).command.__name__.lstrip("_")
    whole: Any = typer.main.get_command(exporter_app if arguments[0] in {"export", "compact"} else app)
    while hasattr(whole, "commands"):
        whole = whole.commands[arguments.pop(0)]
    context = whole.make_context("fedspine", arguments)
    if words[1] == "run" and not context.params["resume"]:
        own = {"out", "resume", "config", "password_file"}
        resolve({name: value for name, value in context.params.items() if name not in own})
    return context.command.name


def test_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(typer.TyperException, match=r"(?i)no such option: --sede"):
        command_of(("fedspine", "run", "--sede", "1"))
    with pytest.raises(SystemExit):
        command_of(("fedspine-edge", "infer", "small", "--txet", "x"))


@pytest.mark.slow
def test_commands_on_models_and_runs_do_what_they_say(
    tiny_bert_model: Path,
    tiny_bert_artifact: Path,
    tiny_llama_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As printed, each in a folder where what it names is what the lines before it would have left."""
    monkeypatch.setattr(runs, "ROUND_NUMBERS", (0, 4, 10))
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "minilm").symlink_to(tiny_bert_model)
    (folder / "MODEL").symlink_to(tiny_bert_model)
    (folder / "reviews.jsonl").write_text('{"text": "fine"}\n')
    bert = runs.write_run(tmp_path / "bert", tiny_bert_artifact)
    llama = runs.write_run(tmp_path / "llama", tiny_llama_artifact)
    assert call(["compact", str(llama), "--sparsity", "0.25", "-o", str(tmp_path / "writes")]) == 0
    monkeypatch.chdir(folder)
    todo = [command for command in ALL if command.covered_by == HERE]
    for command in sorted(todo, key=lambda one: "fedspine-edge" in one.text):  # models before their use
        words = shlex.split(command.text)
        if words[0] in {"mkdir", "mv"}:
            subprocess.run(["bash", "-ec", command.text], check=True)
            continue
        ((program, *arguments),) = command.invocations
        if program == "fedspine-edge":
            arguments[1] = str(tmp_path / "writes") if arguments[0] == "generate" else "small"
            with Path("reviews.jsonl").open(encoding="utf-8") as reviews:
                monkeypatch.setattr("sys.stdin", reviews)
                assert edge(arguments) == 0, command.text
        else:
            if arguments[0] == "compact":
                arguments[1:] = [str(bert), *arguments[2:], "--force"]
            assert call(arguments) == 0, command.text
    written = capsys.readouterr().out
    assert written.count('"label"') == sum("infer" in command.text for command in todo)
    assert {"ART", "small", "smaller", "earlier", "my-run"} <= {path.name for path in folder.iterdir()}
    (served,) = (folder / "my-run" / "artifacts").iterdir()
    assert len(served.name) == 64
