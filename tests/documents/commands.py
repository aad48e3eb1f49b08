"""Commands of README.md and the documents, and what runs each of them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
SHELL: Final = {"", "console", "sh", "bash"}
"""Languages that mark a fenced block as commands; other blocks are marked by theirs (text, toml, python)."""

HERE: Final = "tests/documents/test_commands.py::test_commands_on_models_and_runs_do_what_they_say"
_RUN: Final = "tests/e2e/test_run.py::"
_HOURS: Final = "not run: takes hours; the same command with its smallest file: tests/e2e/test_compare.py"
_OUTSIDE: Final = "not run: changes the machine outside the repository"

COVERED: Final[tuple[tuple[str, str], ...]] = (
    (r"scripts/setup", ".ci/run"),
    (r"scripts/test --all", ".ci/run"),
    (r"scripts/test", "not run: it is what runs this; .ci/run runs it with --all"),
    (r"scripts/(check|docs|test-device \[--oldest\]|test-ort-training|test-arm64|device-size)", ".ci/run"),
    (r"scripts/setup-ort-training", "scripts/test-ort-training"),
    (r"bash \.ci/run", "not run: it is what runs this"),
    (r"pre-commit install", "not run: changes the git hooks of the checkout"),
    (r"fedspine run", _RUN + "test_a_run_without_options_learns"),
    (
        r"fedspine run --model \S+ --task text-classification .*--split dirichlet:0\.5 .*",
        _RUN + "test_a_classifier_with_classes_of_its_own_from_the_command_line",
    ),
    (
        r"fedspine run .*--emulate jetson .*",
        "tests/e2e/test_emulation.py::test_a_fleet_learns_what_to_prune_and_time_is_emulated",
    ),
    (
        r"fedspine run --method fedit --rounds 8",
        "tests/broker_server/methods/test_presets.py::test_a_run_takes_the_settings_of_its_method",
    ),
    (
        r"(export PYTHONPATH=tests/extending/plugin_package|fedspine run --method fedspine_example\S+ .*)",
        "tests/e2e/test_plugin.py::test_a_run_plays_a_method_of_a_package",
    ),
    (
        r"fedspine run --method split --freeze-lower .*",
        "tests/e2e/test_split.py::test_devices_send_activations_once_and_the_server_tunes_what_lies_above_the_cut",
    ),
    (
        r"fedspine run --resume --out OUT",
        "tests/e2e/test_failures.py::test_an_interrupted_run_leaves_no_process_and_resumes",
    ),
    (
        r"fedspine run --resume --rounds 20 --out OUT",
        "tests/e2e/test_more_rounds.py::test_rounds_are_added_to_a_run_that_ended",
    ),
    (
        r"fedspine compare benchmarks/compare/quick\.toml --quick --out OUT",
        "tests/e2e/test_compare.py::test_the_quick_comparison_is_sane_and_goes_on_after_an_interruption",
    ),
    (r"fedspine compare benchmarks/compare/(agnews|sst2|docstrings)\.toml --out OUT", _HOURS),
    (r"python benchmarks/compare/fill_results\.py .*", "not run: needs summaries of comparisons, which take hours"),
    (
        r"fedspine bench engine .*",
        "tests/broker_server/benchmark/test_command.py::test_all_engines_train_the_same_encoder",
    ),
    (r"fedspine export ART --format ort-training .*", "scripts/test-ort-training"),
    (r"fedspine export .*", HERE),
    (r"fedspine compact .*", HERE),
    (r"(cat reviews\.jsonl \| )?fedspine-edge (infer|generate) .*", HERE),
    (
        r"fedspine-edge service .*",
        "tests/edge_runtime/board/test_service.py::test_the_command_prints_a_unit_with_the_options_that_were_given",
    ),
    (r"fedspine-edge doctor .*", "tests/edge_runtime/doctor/test_doctor.py::test_a_board_where_all_is_well"),
    (r"fedspine-edge start --engine ort-training .*", "scripts/test-ort-training"),
    (r"fedspine-edge start .*", "tests/e2e/test_boards.py::test_two_boards_and_a_server_finish_a_round"),
    (
        r"fedspine (broker --host 0\.0\.0\.0|artifacts my-run/artifacts --host 0\.0\.0\.0|coordinate my-run)",
        "tests/e2e/test_hostile_fleet.py::test_honest_boards_count_in_every_round_among_attackers",
    ),
    (r"mkdir -p my-run/artifacts", HERE),
    (r"mv artifact my-run/artifacts/\$\(.*\)", HERE),
    (r"sha256sum manifest\.json", "not run: prints a digest"),
    (r"sqlite3 my-run/state\.sqlite .*", "not run: prints rows; the program is not a dependency"),
    (r"python3 -m venv ~/fedspine-env", _OUTSIDE),
    (r"pip install '\./fedspine.*\.whl\[text\]'", "scripts/test-device"),
    (r"sudo .*", _OUTSIDE),
)
"""Commands as regular expressions, the first that fits counts; and a test, a script that .ci/run calls, or a reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One command of a document."""

    place: str
    text: str
    """On one line, without a comment and without the folder of its program."""

    @property
    def invocations(self) -> list[list[str]]:
        """Command lines of FedSpine's own programs in it, each up to the next pipe."""
        words = shlex.split(self.text)
        ends = [index for index, word in enumerate(words) if word in {"|", "&&"}] + [len(words)]
        parts = [words[start:end] for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]
        return [part for part in parts if part and part[0] in {"fedspine", "fedspine-edge"}]

    @property
    def covered_by(self) -> str:
        """Return the test that runs it, or the reason why none does; empty if the document says neither."""
        return next((by for pattern, by in COVERED if re.fullmatch(pattern, self.text)), "")


def documents() -> list[Path]:
    """README.md and what else tells people what to type."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> Iterator[Command]:
    """Every command in the fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if block[1] not in SHELL:
            continue
        first = text[: block.start()].count("\n") + 2
        joined = re.sub(r"(\\|\|)\n\s*", lambda end: "| " if end[1] == "|" else "", block[2])
        for line in joined.splitlines():
            plain = re.sub(r"\s+#\s.*$", "", line).strip()
            plain = re.sub(r"(?<!\S)(?:~|\.)?[\w./~-]*/bin/(?=[\w-]+(\s|$))", "", plain)
            if plain:
                yield Command(f"{document.relative_to(ROOT)}:{first}", re.sub(r"\s+", " ", plain))
