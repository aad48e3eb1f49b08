"""Findings of a check-up, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from edge_runtime.errors import ExitCode, FedSpineError

Level = Literal["ok", "skipped", "warning", "error"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer to one question."""

    name: str
    """The question, one word."""
    level: Level
    """``error``: the device would not start, or would fail; ``warning``: it runs, and could do better; ``skipped``: it
    was not asked, since nothing was named to look at."""
    detail: str
    """The finding, on one line."""
    next_step: str = ""
    """Next step; empty if there is nothing to do."""
    exit_code: ExitCode = ExitCode.OK
    """For an error: exit code with which ``start`` would end."""

    def line(self) -> str:
        """For people."""
        text = f"{self.level:<8} {self.name:<12} {self.detail}"
        return f"{text}; next: {self.next_step}" if self.next_step else text


def ok(name: str, detail: str) -> Finding:
    """Nothing to be done."""
    return Finding(name=name, level="ok", detail=detail)


def skipped(name: str, option: str) -> Finding:
    """Not asked."""
    return Finding(name=name, level="skipped", detail=f"name it with {option}")


def warning(name: str, detail: str, next_step: str) -> Finding:
    """It runs, and could do better."""
    return Finding(name=name, level="warning", detail=detail, next_step=next_step)


def error(name: str, detail: str, next_step: str, exit_code: ExitCode) -> Finding:
    """It would not run."""
    return Finding(name=name, level="error", detail=detail, next_step=next_step, exit_code=exit_code)


def refused(name: str, why: FedSpineError, next_step: str = "") -> Finding:
    """The error that ``start`` would end with; its message says what to do, so a next step is more than that."""
    detail = " ".join(str(why).split())
    return Finding(name=name, level="error", detail=detail, next_step=next_step, exit_code=why.exit_code)


def exit_code_of(findings: Sequence[Finding]) -> ExitCode:
    """That of the first error; 0 without one."""
    return next((finding.exit_code for finding in findings if finding.level == "error"), ExitCode.OK)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    code = exit_code_of(findings)
    return {
        "ok": code == ExitCode.OK,
        "exit_code": int(code),
        "checks": [
            {
                "name": finding.name,
                "level": finding.level,
                "detail": finding.detail,
                "next": finding.next_step,
                "exit_code": int(finding.exit_code),
            }
            for finding in findings
        ],
    }
