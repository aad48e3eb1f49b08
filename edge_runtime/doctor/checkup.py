"""All questions, in order; each is answered even if others fail."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from edge_runtime.doctor import broker, files, machine, methods, packages, trial
from edge_runtime.doctor.findings import Finding, error
from edge_runtime.doctor.setup import Setup
from edge_runtime.errors import ExitCode
from edge_runtime.system.interpreter import install_step


def check_up(setup: Setup) -> Iterator[Finding]:
    """Ask everything, one after the other.

    Args:
        setup: the options of ``start``.
    """
    for name, ask in _questions(setup):
        try:
            yield ask()
        except ImportError as why:
            step = install_step(why)
            detail = " ".join(f"cannot be checked: {why}".split())
            yield error(name, detail, step, ExitCode.MISSING_DEPENDENCY)


def _questions(setup: Setup) -> tuple[tuple[str, Callable[[], Finding]], ...]:
    tried = functools.cache(lambda: broker.try_out(setup))
    return (
        ("python", packages.python),
        ("packages", packages.packages),
        ("onnxruntime", packages.onnxruntime),
        ("session", trial.session),
        ("methods", lambda: methods.methods(setup)),
        ("processor", machine.processor),
        ("cores", lambda: machine.cores(setup)),
        ("memory", lambda: machine.memory(setup)),
        ("swap", machine.swap),
        ("nice", lambda: machine.nice(setup)),
        ("sensors", lambda: machine.sensors(setup)),
        ("clock", lambda: machine.clock(setup)),
        ("state", lambda: files.state(setup)),
        ("data", lambda: files.data(setup)),
        ("broker", lambda: broker.broker(tried())),
        ("fleet", lambda: broker.fleet(tried())),
        ("artifact", lambda: broker.artifact(tried())),
    )
