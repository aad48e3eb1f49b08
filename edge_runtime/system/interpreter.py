"""Command lines of Python as a child process, without the current folder on its import path.

``python -m`` and ``python -c`` put the current folder before the standard library: a ``models.py`` or ``random.py`` of
the person who started FedSpine would be executed in place of the intended module. ``-P`` leaves the folder out. This
module imports only modules of the standard library that a starting interpreter has loaded, because ``__main__`` modules
call it before any other import.
"""

import os
import sys

OWN_PACKAGES = frozenset({"broker_server", "edge_runtime", "exporter", "fedspine", "models"})
_MEND = "take what has the same name off PYTHONPATH, or install FedSpine anew"
_STANDARD_LIBRARY = os.path.dirname(os.path.abspath(os.__file__))  # noqa: PTH100, PTH120 - pathlib imports much
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - as above


def module_command(module: str, *arguments: str, python: str | None = None) -> list[str]:
    """Command line that runs a module of this installation, not of the current folder.

    Args:
        module: dotted name.
        arguments: arguments of the module.
        python: interpreter of another environment; None = this one.
    """
    return [python or sys.executable, "-P", "-m", module, *arguments]


def code_command(code: str) -> list[str]:
    """Command line that runs a line of Python; its imports ignore the current folder."""
    return [sys.executable, "-P", "-c", code]


def keep_folder_out() -> None:
    """Remove the current folder from the import paths of this process and of each Python that it starts.

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
    """Return the message for a command that could not import a package of the server's installation.

    Args:
        error: the error that Python raised.
        command: the command that needs the package.
    """
    if is_own(error.name):
        return f"{command} cannot import {error.name!r}, a part of FedSpine{_place(error.name)}: {_MEND}"
    return f"{command} needs the package {error.name!r}: install the server, pip install 'fedspine[server]'"


def install_step(error: ImportError) -> str:
    """Return the next step on a device that could not import a package."""
    if error.name is None or is_own(error.name):
        return _MEND
    return f"pip install {error.name.partition('.')[0]}; if it is there already, install it anew"


def is_own(module: str | None) -> bool:
    """Return whether a module is a part of FedSpine, not of another package.

    >>> is_own("models.registry"), is_own("models_of_others"), is_own(None)
    (True, False, False)
    """
    return (module or "").partition(".")[0] in OWN_PACKAGES


def _place(module: str | None) -> str:
    """Return the path of another module with this name, in brackets; empty = there is none."""
    found = getattr(sys.modules.get((module or "").partition(".")[0]), "__file__", None)
    return f" ({found} has its name)" if found and not found.startswith(_ROOT + os.sep) else ""
