"""Whatever value an option gets, the error begins with the option as it was typed, or with the file and its key."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

from broker_server import cli
from broker_server.errors import ConfigError
from broker_server.experiments.run.resolve import resolve, said_of_file
from broker_server.experiments.run.settings import RunSettings
from broker_server.methods.by_name import passed_over
from broker_server.methods.presets import PRESETS
from broker_server.naming import as_key, malformed, option_name, said_of
from broker_server.options import options_of
from edge_runtime.errors import ExitCode
from edge_runtime.system.registry import nearest

USAGE, ARM, DATA = ExitCode.USAGE, ExitCode.ARM_OUT_OF_RANGE, ExitCode.DATA_INVALID

BAD: dict[str, tuple[str, ExitCode]] = {
    "model": ("./none", ExitCode.MODEL_NOT_FOUND),
    "task": ("chess", USAGE),
    "top_blocks": ("-1", USAGE),
    "base": ("int2", USAGE),
    "artifact": ("./none", ExitCode.ARTIFACT_CORRUPTED),
    "adapter": ("none", USAGE),
    "data": ("none.jsonl", DATA),
    "test": (".", DATA),
    "text_field": ("", USAGE),
    "label_field": ("", USAGE),
    "max_length": ("1", USAGE),
    "split": ("dirichlet:0", USAGE),
    "devices": ("0", USAGE),
    "rounds": ("0", USAGE),
    "local_steps": ("2147483648", USAGE),
    "batch_size": ("-8", USAGE),
    "accumulation_steps": ("0", USAGE),
    "arms": ("0.25", ARM),
    "method": ("chess", USAGE),
    "method_options": ("x=1", USAGE),
    "callbacks": ("chess", USAGE),
    "zo_cut": ("-2", USAGE),
    "cut": ("-2", USAGE),
    "cut_dtype": ("int2", USAGE),
    "cut_noise": ("-0.1", USAGE),
    "zo_outer": ("0", USAGE),
    "zo_inner": ("0", USAGE),
    "zo_epsilon": ("1e-9", USAGE),
    "zo_lower_learning_rate": ("-0.5", USAGE),
    "zo_combine": ("sum", USAGE),
    "zo_head": ("random", USAGE),
    "tune": ("half", USAGE),
    "zo_noise": ("pink", USAGE),
    "zo_seeds": ("1", USAGE),
    "zo_learning_rate": ("0", USAGE),
    "zo_share": ("-1", USAGE),
    "first_order_rounds": ("-1", USAGE),
    "scheduler": ("uniformly", USAGE),
    "aggregation": ("mean", USAGE),
    "learning_rate": ("nan", USAGE),
    "final_learning_rate_ratio": ("1.5", USAGE),
    "weight_decay": ("-0.1", USAGE),
    "warmup_steps": ("-1", USAGE),
    "class_balance": ("2", USAGE),
    "lora_scaling": ("inf", USAGE),
    "seed": ("-1", USAGE),
    "eval_examples": ("-1", USAGE),
    "round_deadline": ("0", USAGE),
    "importance": ("weights", USAGE),
    "importance_every_steps": ("0", USAGE),
    "importance_smoothing": ("1", USAGE),
    "prune_scope": ("foo", USAGE),
    "protect_first": ("-2", USAGE),
    "protect_last": ("513", USAGE),
    "ramp_warmup_rounds": ("-1", USAGE),
    "ramp_rounds": ("-1", USAGE),
    "recovery_steps": ("0", USAGE),
    "deploy_rounds": ("-1", USAGE),
    "deploy_learning_rate_ratio": ("0", USAGE),
    "sparsity": ("0.96", ARM),
    "keep": ("first", USAGE),
    "quantize": ("int4", USAGE),
    "broker": ("localhost", USAGE),
    "broker_port": ("65536", USAGE),
    "artifact_port": ("-1", USAGE),
    "fleet_name": ("lab/+", USAGE),
    "wire_dtype": ("int8", USAGE),
    "threads": ("-1", USAGE),
    "device_memory_mb": ("-1", USAGE),
    "max_grad_norm": ("-1", USAGE),
    "update_transforms": ("nonsense", USAGE),
    "emulate": ("none.toml", USAGE),
    "calibration": (".", USAGE),
}
LATER = {"targets": "what layers there are is known to the model: tests/exporter/artifact/test_gradients.py"}
FLAGS = {"new_head", "eval_sparse", "compact", "zo_move_cut", "zo_normalise", "zo_precondition", "freeze_lower"}
HINTS = {name: one.kind for name, one in options_of(RunSettings).items()}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    """Exit code of a command, and its one line on stderr."""
    code = cli.call(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return code, line.removeprefix("fedspine: error: ")


def test_every_option_of_a_run_is_tried() -> None:
    assert set(HINTS) == set(BAD) | set(LATER) | FLAGS


@pytest.mark.parametrize("field", BAD)
def test_an_option_that_is_wrong_is_named_before_anything_is_done(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    value, expected = BAD[field]
    needed = ["--task", "causal-lm"] if field == "model" else []

    code, line = refused(capsys, ["run", f"{option_name(field)}={value}", *needed])

    assert line.startswith(option_name(field))
    assert code == expected
    hint = HINTS[field]
    if typing.get_origin(hint) is typing.Literal:
        assert all(repr(choice) in line for choice in typing.get_args(hint) if choice)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", sorted(set(BAD) - {"model", "broker_port", "artifact_port"}))
def test_a_key_of_a_file_that_is_wrong_is_named_with_the_file(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = BAD[field][0]
    is_text = HINTS[field] is not float and (typing.get_args(HINTS[field]) or (str,))[0] not in {int, float}
    Path("my.toml").write_text(f'{field} = "{text}"\n' if is_text else f"{field} = {text}\n")

    code, line = refused(capsys, ["run", "--config", "my.toml"])

    assert line.startswith(f"my.toml: {field}")
    assert code == BAD[field][1]
    assert [path.name for path in tmp_path.iterdir()] == ["my.toml"]


def test_an_option_wins_over_the_file_in_messages_too(tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text("rounds = 3\ndevices = 2\n")
    with pytest.raises(ConfigError, match=r"^--rounds is 0"):
        resolve({"rounds": 0}, config)
    with pytest.raises(ConfigError, match=r"my\.toml: devices is too many"), said_of_file({"rounds"}, config):
        raise ConfigError("--devices is too many")  # noqa: EM101, TRY003
    with pytest.raises(ConfigError, match=r"^--rounds is too many"), said_of_file({"rounds"}, config):
        raise ConfigError("--rounds is too many")  # noqa: EM101, TRY003


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ruonds = 3\n", r"my\.toml: key 'ruonds' is not known; did you mean 'rounds'\?"),
        ("learning-rate = 3\n", r"my\.toml: key 'learning-rate' is not known; did you mean 'learning_rate'\?"),
        ("xyz = 3\n", r"my\.toml: key 'xyz' is not known; known: model, task"),
        ('rounds = "3"\n', r"my\.toml: rounds is '3', expected a whole number from 1"),
        ("rounds = 3.0\n", r"my\.toml: rounds is 3\.0, expected a whole number from 1"),
        ("compact = 1\n", r"my\.toml: compact is 1, expected true or false"),
        ("seed = [1, 2]\n", r"my\.toml: seed is \[1, 2\], expected a whole number"),
        ("rounds = \n", r"--config .*my\.toml cannot be read: it is not TOML \(.*line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_of_its_key(text: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "my.toml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=said):
        resolve({}, config)


def test_every_range_of_a_run_lies_within_the_coordinators() -> None:
    """Else a value would pass as an option and be refused under another name."""
    given = {"task": "text-classification", "model": "m", "data": "d"}
    refused = {}
    for name, hint in HINTS.items():
        method = next((one for one in ("fedspine", *PRESETS) if name not in passed_over(one)), "")
        if typing.get_origin(hint) is typing.Annotated and hint.__origin__ is not str and name != "devices":
            ends = hint.__metadata__[0].ge, hint.__metadata__[0].le
            for value in (end for end in ends if end is not None):
                try:
                    resolve({**given, "method": method, name: hint.__origin__(value)})
                except ConfigError as error:
                    refused[name] = str(error)
    assert all(option_name(name) in message for name, message in refused.items()), refused
    assert refused.keys() == {"zo_outer", "zo_inner", "zo_seeds"}  # more than the log holds; seeds without --tune all


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--ruonds", "3"], "No such option: --ruonds"),
        (["run", "--rounds", "x"], "--rounds is 'x': input should be a valid integer"),
        (["run", "--rounds=x"], "--rounds is 'x': input should be a valid integer"),
        (["run", "--config", "none"], "--config none cannot be read: No such file or directory"),
        (["comprae"], "Did you mean 'compare'"),
        (["broker", "--port", "0"], "--port is 0, expected 1 to 65535"),
        (["broker", "--kind", "rabbit"], "--kind is 'rabbit': 'rabbit' is not one of 'auto', 'mosquitto', 'amqtt'"),
        (["broker", "--host", "256.0.0.1"], "--host 256.0.0.1 cannot be listened on"),
        (["artifacts", ".", "--port", "65536"], "--port is 65536, expected 1 to 65535"),
        (["artifacts", "none"], "none is not a directory"),
        (["coordinate", "none"], "none/config.toml cannot be read: No such file or directory"),
        (["export", "m", "-o", "x"], "--task is needed: text-classification or causal-lm"),
        (["export", "m", "-o", "x", "--task", "foo"], "--task is 'foo': 'foo' is not one of 'text-classification'"),
        (["export", "m", "-o", "x", "--base", "int2"], "--base is 'int2': 'int2' is not one of 'stored', 'float32'"),
        (["export", "m", "-o", "x", "--seed=-1"], "--seed is '-1': input should be greater than or equal to 0"),
        (["export", "m", "-o", "x", "--task", "causal-lm", "--top-blocks", "0"], "--top-blocks is '0'"),
        (["export", "m", "-o", "x", "--format", "ort-training", "--arm", "8"], "--arm: arm '8' is not RATIO:RANK"),
        (["compact", "none", "--sparsity", "1", "-o", "x"], "--sparsity is 1.0, expected 0 or more and less than 1"),
        (["compact", "none", "--sparsity", "0", "-o", "x", "--round", "-1"], "--round is '-1'"),
        (["compact", "none", "--sparsity", "0", "-o", "x", "--quantize", "int4"], "--quantize is 'int4'"),
        (["compare", "none.toml", "--out", "x"], "comparison none.toml cannot be read: No such file or directory"),
        (["compare", "none.toml", "--out", "x", "--jobs", "-1"], "--jobs is '-1'"),
        (["bench", "engine", "--model", "m", "--task", "x"], "--task is 'x', expected 'text-classification' or"),
        (["bench", "engine", "--model", "m", "--task", "causal-lm", "--arm", "8"], "--arm '8' is not RATIO:RANK"),
        (["bench", "engine", "--model", "m", "--task", "causal-lm", "--steps", "0"], "--steps is 0, expected a whole"),
    ],
    ids=" ".join,
)
def test_every_command_names_what_was_typed(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = refused(capsys, arguments)
    assert said in line
    assert code in {USAGE, ARM}
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_said_of_its_option_once() -> None:
    for text, said in (
        ("rounds is 0", "--rounds is 0"),
        ("roundsman is 0", "--rounds: roundsman is 0"),
        ("--devices is 0", "--devices is 0"),
    ):
        with pytest.raises(ConfigError) as caught, said_of("rounds"):
            raise ConfigError(text)
        assert str(caught.value) == said
    assert str(as_key(ConfigError("--round-deadline is 0"), "a.toml: ")) == "a.toml: round_deadline is 0"
    assert str(as_key(ConfigError("--beta2 is 1"), "a.toml: ")) == "a.toml: beta2 is 1"
    assert str(as_key(ConfigError("nothing of an option"))) == "nothing of an option"


def test_the_nearest_name_is_offered_or_all_are() -> None:
    assert nearest("devcies", ("devices", "rounds")) == "did you mean 'devices'?"
    assert nearest("", ("devices", "rounds")) == "known: devices, rounds"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("[fleet]\njiter = 0.1\nclasses = []\n", "key 'jiter' is not known; did you mean 'jitter'?"),
        ("[fleet]\n", "the file lacks the key 'classes'"),
        ('[fleet]\nclasses = [{ name = "a", count = 0 }]\n', "classes[0].count: expected `int` >= 1"),
        ('[fleet]\nclasses = [{ nam = "a" }]\n', "key 'nam' in classes[0] is not known; did you mean 'name'?"),
    ],
)
def test_a_table_that_is_wrong_is_said_of_its_key(changes: str, said: str, tmp_path: Path) -> None:
    from broker_server.emulation.fleet import load_fleet

    path = tmp_path / "fleet.toml"
    path.write_text(changes)
    with pytest.raises(ConfigError) as caught:
        load_fleet(path)
    assert str(caught.value) == f"fleet {path}: {said}"


def test_words_that_are_not_understood_are_passed_on() -> None:
    import msgspec

    class Table(msgspec.Struct):
        value: Any

    assert malformed(msgspec.ValidationError("something else"), Table) == "something else"
