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
    """``error``: the device would not start, or would fail; ``warning``: it runs, but not as well as it could;
    ``skipped``: its option was not given."""
    detail: str
    """The finding, on one line."""
    next_step: str = ""
    """Next step; empty if there is nothing to do."""
    exit_code: ExitCode = ExitCode.OK
    """Exit code of ``start``, for an error."""

    def line(self) -> str:
        """The finding as text for people."""
        text = f"{self.level:<8} {self.name:<12} {self.detail}"
        return f"{text}; next: {self.next_step}" if self.next_step else text


def ok(name: str, detail: str) -> Finding:
    """A finding without a next step."""
    return Finding(name=name, level="ok", detail=detail)


def skipped(name: str, option: str) -> Finding:
    """A finding of a question that was not asked, because ``option`` was not given."""
    return Finding(name=name, level="skipped", detail=f"name it with {option}")


def warning(name: str, detail: str, next_step: str) -> Finding:
    """A finding that does not keep the device from running."""
    return Finding(name=name, level="warning", detail=detail, next_step=next_step)


def error(name: str, detail: str, next_step: str, exit_code: ExitCode) -> Finding:
    """A finding that keeps the device from running."""
    return Finding(name=name, level="error", detail=detail, next_step=next_step, exit_code=exit_code)


def refused(name: str, why: FedSpineError, next_step: str = "") -> Finding:
    """A finding from an error that ``start`` would raise; its message names a next step, and ``next_step`` another."""
    detail = " ".join(str(why).split())
    return Finding(name=name, level="error", detail=detail, next_step=next_step, exit_code=why.exit_code)


def exit_code_of(findings: Sequence[Finding]) -> ExitCode:
    """Exit code of the first error; 0 without errors."""
    return next((finding.exit_code for finding in findings if finding.level == "error"), ExitCode.OK)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as an object for JSON."""
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
