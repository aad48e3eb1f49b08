"""The systemd unit of a device: it starts the device at boot, in a sandbox, within the owner's limits.

Meaning of every line: ``man systemd.service``, ``systemd.exec`` and ``systemd.resource-control``. The unit needs
systemd 247 (2020), which introduced credentials; an older systemd warns of unknown lines and ignores them. Matrix
products and the tokenizer run under these restrictions; a narrower filter of system calls would keep onnxruntime from
pinning its threads.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from edge_runtime.board.errors import ServiceError
from edge_runtime.errors import ExitCode

NEVER_MENDS: Final = (
    ExitCode.USAGE,
    ExitCode.DATA_INVALID,
    ExitCode.DATA_EMPTY,
    ExitCode.STATE_IN_USE,
    ExitCode.MISSING_DEPENDENCY,
)
"""Exit codes whose cause is on the board itself: a person must act, and a restart would end in the same way.

Refusals of a broker or a server are not among them: once the server is repaired, devices go on without a visit.
"""

STATE: Final = Path("/var/lib")
"""Folder in which systemd makes the directories of services."""

CREDENTIALS: Final = "${CREDENTIALS_DIRECTORY}"
"""Folder of the files that ``LoadCredential`` reads for a service; systemd fills in the path."""

MEMORY_HEADROOM: Final = 1.25
"""Memory of the service, as a multiple of the memory of training: the page cache of the base weights counts too."""

UNIT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_HOMES: Final = tuple(map(Path, ("/home", "/root", "/run/user")))
_SHORT_LIVED: Final = tuple(map(Path, ("/tmp", "/var/tmp", "/dev", "/proc", "/run")))  # noqa: S108 - refused, not used

_TEMPLATE: Final = """\
# Made by 'fedspine-edge service'.
[Unit]
Description=FedSpine device
Documentation=https://www.freedesktop.org/software/systemd/man/systemd.exec.html
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=exec
{identity}
StateDirectory={name}
StateDirectoryMode=0700
UMask=0077
{credentials}ExecStart={command}
# SIGTERM is a good-bye; 30 s are for the step under way.
TimeoutStopSec=30
Restart=on-failure
RestartSec=30
# A wrong option, bad data or a missing package do not mend themselves.
RestartPreventExitStatus={never_mends}

# What it may use.
Nice={nice}
{limits}OOMPolicy=stop

# What it may see and do.
{homes}ProtectSystem=strict
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@keyring @setuid
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The contents of a unit."""

    name: str
    """Name of the unit, and of its directory under ``/var/lib``."""
    user: str | None
    """User of the service; None = systemd makes a user for the service alone."""
    program: tuple[str, ...]
    """Absolute path of the program, and its first arguments."""
    options: tuple[str, ...]
    """Options of ``start``, beside ``--state``; :data:`CREDENTIALS` may stand in them."""
    credentials: Mapping[str, Path]
    """Files that only systemd reads, by the name under which the service finds them."""
    readable: tuple[Path, ...]
    """Files and folders that the service reads itself."""
    nice: int
    num_threads: int | None
    """Threads of one operator; None = all cores, and no quota."""
    memory_limit_bytes: int | None
    """Memory that training may use; None = a share of the machine's memory."""


def unit(service: Service) -> str:
    """The text of the unit file.

    Raises:
        ServiceError: a unit cannot hold a name, a path or a word, or a path would be gone after a reboot.
    """
    for what, name in (("name", service.name), ("user", service.user)):
        if name is not None and UNIT_NAME.fullmatch(name) is None:
            msg = f"service {what} {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-'"
            raise ServiceError(msg)
    for path in (*service.readable, *service.credentials.values()):
        if any(path.is_relative_to(folder) for folder in _SHORT_LIVED):
            msg = f"{path} does not survive a reboot: move it, for example to {STATE / 'fedspine'}"
            raise ServiceError(msg)
    words = [*service.program, *service.options, "--state", str(STATE / service.name)]
    credentials = [f"LoadCredential={name}:{_path(path)}" for name, path in service.credentials.items()]
    return _TEMPLATE.format(
        name=service.name,
        identity="DynamicUser=yes" if service.user is None else f"User={service.user}",
        credentials=_lines(credentials),
        command=_command(words),
        never_mends=" ".join(str(int(code)) for code in NEVER_MENDS),
        nice=service.nice,
        limits=_lines(_limits(service)),
        homes=_lines(_homes(service.readable)),
    )


def unreadable(paths: Iterable[Path]) -> list[Path]:
    """Existing files and folders that a user made for the service could not read."""
    closed = []
    for path in paths:
        if not path.exists():
            continue
        inside_home = any(path.is_relative_to(home) for home in _HOMES)
        above = [] if inside_home else list(path.parents)  # a unit mounts paths inside a home separately
        if not path.stat().st_mode & 0o004 or any(not folder.stat().st_mode & 0o001 for folder in above):
            closed.append(path)
    return closed


def _limits(service: Service) -> list[str]:
    limit = service.memory_limit_bytes
    memory = "90%" if limit is None else str(int(limit * MEMORY_HEADROOM))
    quota = [] if service.num_threads is None else [f"CPUQuota={100 * service.num_threads}%"]
    return [f"MemoryMax={memory}", *quota]


def _homes(readable: Iterable[Path]) -> list[str]:
    """Homes are hidden; needed paths in them are visible, read-only."""
    shown = sorted({path for path in readable if any(path.is_relative_to(home) for home in _HOMES)})
    outermost = [path for path in shown if not any(other in path.parents for other in shown)]
    if not outermost:
        return ["ProtectHome=yes"]
    return ["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={_path(path)}" for path in outermost)]


def _command(words: Iterable[str]) -> str:
    """A command line, with one line for each option."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and lines[0]:
            lines.append([])
        lines[-1].append(_quoted(word))
    return " \\\n    ".join(" ".join(line) for line in lines)


def _quoted(word: str) -> str:
    """A word of a command line, quoted for systemd so that it stands for itself; :data:`CREDENTIALS` is expanded.

    >>> _quoted("100% of my data.jsonl")
    '"100%% of my data.jsonl"'
    """
    _check(word)
    first, *rest = [part.replace("$", "$$") for part in word.split(CREDENTIALS)]
    text = CREDENTIALS.join([first, *rest]).replace("\\", "\\\\").replace("%", "%%")
    return f'"{text.replace(chr(34), chr(92) + chr(34))}"' if re.search(r"[\s\"';]", text) or not text else text


def _path(path: Path) -> str:
    """A path as a setting's value; settings take no quotes, so a path that needs quotes is refused."""
    text = str(path)
    _check(text)
    if re.search(r"[\s\"':\\]", text):
        msg = f"{text!r} cannot stand in a unit file: use a path without spaces, quotes, colons and backslashes"
        raise ServiceError(msg)
    return text.replace("%", "%%")


def _check(text: str) -> None:
    if not text.isprintable():
        msg = f"{text!r} cannot stand in a unit file: it holds a line break or another control character"
        raise ServiceError(msg)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
