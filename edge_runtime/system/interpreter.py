"""Python as a child process: one builder of its command lines; the current folder is never on the import path.

``python -m`` and ``python -c`` put the current folder before the standard library: a ``models.py`` or ``random.py`` of
the person who started FedSpine would be executed in place of ours. ``-P`` leaves it out. Only the standard library is
used here, and no more of it than a starting interpreter has loaded: ``__main__`` modules call this before any other
import.
"""

import os
import sys

OWN_PACKAGES = frozenset({"broker_server", "edge_runtime", "exporter", "fedspine", "models"})
_MEND = "take what has the same name off PYTHONPATH, or install FedSpine anew"
_STANDARD_LIBRARY = os.path.dirname(os.path.abspath(os.__file__))  # noqa: PTH100, PTH120 - pathlib imports much
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - as above


def module_command(module: str, *arguments: str, python: str | None = None) -> list[str]:
    """Command line that runs a module of this installation, whatever lies in the current folder.

    Args:
        module: dotted name.
        arguments: of the module.
        python: interpreter of another environment; None = this one.
    """
    return [python or sys.executable, "-P", "-m", module, *arguments]


def code_command(code: str) -> list[str]:
    """Command line that runs a line of Python, whatever lies in the current folder."""
    return [sys.executable, "-P", "-c", code]


def keep_folder_out() -> None:
    """Take the current folder off the import paths of this process and of each Python that it starts.

    Processes that libraries start get a safe path from ``PYTHONSAFEPATH``. Empty parts of ``PYTHONPATH`` mean the
    current folder, and come from ``PYTHONPATH=$PYTHONPATH:/other``; named folders stay. A checkout that is run from
    its root without being installed stays importable.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    if named := [part for part in inherited.split(os.pathsep) if part]:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    else:
        os.environ.pop("PYTHONPATH", None)
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        here = os.getcwd()  # noqa: PTH109 - see above
    except OSError:  # the folder was removed: nothing can be imported from it
        return
    if here == _ROOT or here in {os.path.abspath(part) for part in named}:  # noqa: PTH100 - see above
        return
    first = sys.path.index(_STANDARD_LIBRARY) if _STANDARD_LIBRARY in sys.path else len(sys.path)
    sys.path[:first] = [part for part in sys.path[:first] if part not in {"", here}]


def missing(error: ImportError, command: str) -> str:
    """Return the message for a command that could not import something of the server's installation.

    Args:
        error: as Python raised it.
        command: that needs it.
    """
    if is_own(error.name):
        return f"{command} cannot import {error.name!r}, a part of FedSpine{_place(error.name)}: {_MEND}"
    return f"{command} needs the package {error.name!r}: install the server, pip install 'fedspine[server]'"


def install_step(error: ImportError) -> str:
    """Return the next step on a device that could not import something."""
    if error.name is None or is_own(error.name):
        return _MEND
    return f"pip install {error.name.partition('.')[0]}; if it is there already, install it anew"


def is_own(module: str | None) -> bool:
    """Return whether a module is a part of FedSpine, and not a package that could be installed beside it.

    >>> is_own("models.registry"), is_own("models_of_others"), is_own(None)
    (True, False, False)
    """
    return (module or "").partition(".")[0] in OWN_PACKAGES


def _place(module: str | None) -> str:
    """Return the place of another module with that name, in brackets; empty = there is none."""
    found = getattr(sys.modules.get((module or "").partition(".")[0]), "__file__", None)
    return f" ({found} has its name)" if found and not found.startswith(_ROOT + os.sep) else ""
