"""Options that several commands of ``fedspine-edge`` share, with the ranges of their values."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from edge_runtime.board.guard import COOLER_C, FULLER_PERCENT, PauseLimits
from edge_runtime.board.niceness import DEFAULT_NICE, MAX_NICE
from edge_runtime.board.sensors import SYS
from edge_runtime.board.service import CREDENTIALS, Service
from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import DIGEST, NAME, NAME_RULE
from edge_runtime.doctor.setup import Setup
from edge_runtime.link.address import PASSWORD_VARIABLE, BrokerAddress, TlsFiles, password_shows, read_password
from edge_runtime.link.errors import AddressError
from edge_runtime.system.interpreter import module_command

DEFAULT_CHECKPOINT_EVERY: Final = 20
"""Steps from one checkpoint to the next: on a board of a second or more a step, well under 1 % of the time."""

logger = logging.getLogger(__name__)

MAX_DIGITS: Final = 18
"""Most digits of a whole number, so that 64 bits hold it."""
MAX_THREADS: Final = 1024

SECRETS: Final = ("password_file", "ca_file", "cert_file", "key_file")
"""Files that systemd reads and passes to a service, which may lack the rights to read them itself."""

_UNITS: Final = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1024, "MI": 1024**2, "GI": 1024**3}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with the option as it was typed, and the nearest known option."""

    def error(self, message: str) -> NoReturn:
        """Print the error and end the process."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0].partition("=")[0]
            close = difflib.get_close_matches(word, [option for option in self._known() if option != word], n=1)
            is_elsewhere = word in self._known()
            message = f"{word} is not {'for this command' if is_elsewhere else 'known'}"
            message += f"; did you mean {close[0]}?" if close and not is_elsewhere else ""
        message = re.sub(r"^argument (--[\w-]+): ", r"\1: ", message)
        self.exit(2, f"fedspine-edge: error: {' '.join(message.split())}; see '{self.prog} --help'\n")

    def _known(self) -> list[str]:
        """Options of this command and its subcommands, read from private attributes of argparse."""
        below = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
        parsers = [self, *(parser for action in below for parser in action.choices.values())]
        return sorted({option for parser in parsers for option in parser._option_string_actions})  # noqa: SLF001


def add_sharing(parser: argparse.ArgumentParser) -> None:
    """Add the options for sharing the board with other processes: priority, checkpoints and pauses."""
    sharing = parser.add_argument_group("sharing the board")
    sharing.add_argument(
        "--nice",
        type=whole(0, MAX_NICE),
        default=DEFAULT_NICE,
        metavar="N",
        help=f"priority: from 0, like any process, to {MAX_NICE}, after all others (default %(default)s)",
    )
    sharing.add_argument(
        "--checkpoint-every",
        type=count,
        default=DEFAULT_CHECKPOINT_EVERY,
        metavar="N",
        help="keep a checkpoint every N steps, so that a power cut costs at most N; 0 keeps none (default %(default)s)",
    )
    sharing.add_argument(
        "--max-temperature",
        type=number(20, 120),
        metavar="C",
        help=f"pause while the board is hotter than C degrees; training goes on {COOLER_C:g} degrees below",
    )
    sharing.add_argument(
        "--pause-on-throttling", action="store_true", help="pause while the board slows its cores down"
    )
    sharing.add_argument(
        "--min-battery",
        type=number(1, 100),
        metavar="PERCENT",
        help=f"pause while the battery has less than PERCENT; training goes on {FULLER_PERCENT:g} points above",
    )
    sharing.add_argument("--pause-on-battery", action="store_true", help="pause whenever the board runs on its battery")
    sharing.add_argument(
        "--sensors",
        type=Path,
        default=SYS,
        metavar="DIR",
        help="read the kernel's sensors from here (default %(default)s)",
    )


def add_pins(parser: argparse.ArgumentParser) -> None:
    """Add the options that limit the artifacts that this device may run and the data that it may send."""
    pins = parser.add_argument_group("what is allowed")
    pins.add_argument(
        "--artifact-digest",
        type=digests,
        action=Joined,
        metavar="SHA256[,...]",
        help="train only these artifacts; 'sha256sum manifest.json' prints a digest (default: any that the coordinator "
        "names)",
    )
    pins.add_argument(
        "--artifact-host",
        type=hosts,
        action=Joined,
        metavar="HOST[:PORT][,...]",
        help="fetch artifacts only from these servers (default: any that the coordinator names)",
    )
    pins.add_argument(
        "--send-activations", action="store_true", help="let runs have hidden states and labels of each example"
    )


class Joined(argparse.Action):
    """An option that may be given several times: its lists are joined."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Add a list to the values given before."""
        del parser, option_string
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the options by which this device and the broker authenticate each other."""
    trust = parser.add_argument_group("passwords and encryption")
    trust.add_argument("--password-file", type=Path, metavar="FILE", help="file with the broker's password, one line")
    trust.add_argument(
        "--ca-file", type=Path, metavar="PEM", help="certificate authority of the broker (default: the system's)"
    )
    trust.add_argument("--cert-file", type=Path, metavar="PEM", help="certificate of this device")
    trust.add_argument("--key-file", type=Path, metavar="PEM", help="private key of that certificate")


def add_resources(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the options for the threads and memory that may be used."""
    add_threads(parser)
    parser.add_argument(
        "--memory-limit",
        type=size,
        metavar="SIZE",
        help="most memory to use, such as 512MB (default: 80 %% of what is free)",
    )


def add_threads(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the number of threads."""
    parser.add_argument(
        "--threads", type=whole(1, MAX_THREADS), metavar="N", help="threads to use (default: one for each core)"
    )


def add_engine(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the choice of engine, and how it runs the graphs."""
    parser.add_argument(
        "--mode",
        choices=["auto", "fused", "staged"],
        default="auto",
        help="fused runs one graph a step and is fastest; staged runs one block at a time and needs least memory; auto "
        "(default) takes fused where the memory limit allows it",
    )
    parser.add_argument(
        "--engine",
        choices=["portable", "ort-training"],
        default="portable",
        help="portable (default) runs the artifact's graphs on onnxruntime; ort-training runs models for "
        "onnxruntime-training, on 64-bit x86 only (docs/ort-training.md)",
    )
    parser.add_argument(
        "--ort-models",
        type=Path,
        metavar="DIR",
        help="directory that 'fedspine export --format ort-training' wrote; needed with --engine ort-training",
    )
    parser.add_argument(
        "--device-method",
        type=device_methods,
        action=Joined,
        metavar="NAME=MODULE:CLASS[,...]",
        help="classes for the work of methods that no installed package offers (docs/extending.md)",
    )


def add_service(parser: argparse.ArgumentParser) -> None:
    """Add the options of a service, beside those of the device."""
    service = parser.add_argument_group("service")
    service.add_argument(
        "--name", default="fedspine-edge", metavar="NAME", help="name of the unit (default: %(default)s)"
    )
    service.add_argument(
        "--user", metavar="USER", help="user that the unit runs as (default: one that systemd makes for it)"
    )


def service_of(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Service:
    """The service that runs a device with these options; it gets those that are not the default, with absolute paths.

    Args:
        arguments: parsed by ``parser``.
        parser: has the options of the device, and those of :func:`add_service`.
    """
    options, credentials = [], {}
    for name, value in vars(arguments).items():
        if name in {"name", "user", "wait_for_broker", "command", "parser"} or value == parser.get_default(name):
            continue
        option = f"--{name.replace('_', '-')}"
        if name in SECRETS:
            credentials[option.removeprefix("--")] = value.absolute()
            options += [option, f"{CREDENTIALS}/{option.removeprefix('--')}"]
        elif value is True:
            options.append(option)
        else:
            options += [option, str(value.absolute() if isinstance(value, Path) else value)]
    script = Path(sys.argv[0]).absolute()
    is_script = script.name == "fedspine-edge" and script.is_file()
    program = (str(script),) if is_script else tuple(module_command("edge_runtime"))
    return Service(
        name=arguments.name,
        user=arguments.user,
        program=(*program, "start"),
        options=(*options, "--wait-for-broker"),
        credentials=credentials,
        readable=(arguments.data.absolute(), Path(sys.prefix), Path(sys.base_prefix)),
        nice=arguments.nice,
        num_threads=arguments.threads,
        memory_limit_bytes=arguments.memory_limit,
    )


def pause_limits(arguments: argparse.Namespace) -> PauseLimits:
    """Return the limits of pauses from the options of :func:`add_sharing`."""
    return PauseLimits(
        max_temperature_c=arguments.max_temperature,
        min_battery_percent=arguments.min_battery,
        on_battery=arguments.pause_on_battery,
        on_throttling=arguments.pause_on_throttling,
    )


def broker_of(arguments: argparse.Namespace) -> BrokerAddress:
    """The broker, with the password of the URL, else of ``--password-file``, else of the environment.

    Raises:
        AddressError: the URL is malformed, or the file holds no password.
    """
    given = None if arguments.password_file is None else read_password(arguments.password_file)
    try:
        address = BrokerAddress.parse(arguments.broker)
    except AddressError as error:
        msg = f"--broker: {error}"
        raise AddressError(msg) from error
    if address.password is not None:
        logger.warning("%s", password_shows("--broker"))
    return address.with_password(given or os.environ.get(PASSWORD_VARIABLE))


def tls_files(arguments: argparse.Namespace) -> TlsFiles:
    """Return the TLS files from the options of :func:`add_trust`."""
    return TlsFiles(ca_file=arguments.ca_file, cert_file=arguments.cert_file, key_file=arguments.key_file)


def setup_of(arguments: argparse.Namespace, now: float) -> Setup:
    """Return the input of a check-up; ``now`` is the time of the clock, Unix seconds."""
    return Setup(
        data=arguments.data,
        state=arguments.state,
        broker=None if arguments.broker is None else lambda: broker_of(arguments),
        fleet=arguments.fleet,
        device_id=arguments.device_id,
        is_encrypted=(arguments.broker or "").startswith(("mqtts:", "wss:")),
        tls=tls_files(arguments),
        num_threads=arguments.threads,
        memory_limit_bytes=arguments.memory_limit,
        nice=arguments.nice,
        pausing=pause_limits(arguments),
        sensors=arguments.sensors,
        artifact_digests=arguments.artifact_digest,
        artifact_hosts=arguments.artifact_host,
        device_methods=arguments.device_method,
        now=now,
    )


def digests(text: str) -> str:
    """SHA-256 digests, with commas between them."""
    fault = "not a SHA-256 digest: expected 64 hexadecimal digits, see 'sha256sum manifest.json'"
    return _list(text, DIGEST, fault)


def hosts(text: str) -> str:
    """Hosts, with or without a port, with commas between them; in lower case.

    >>> hosts("Artifacts.example,[::1]:8080")
    'artifacts.example,[::1]:8080'
    """
    pattern = r"([a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
    return _list(text, pattern, "not a host: expected a name or an address without scheme and path, such as host:8080")


def device_methods(text: str) -> str:
    """Names of methods and their classes, with commas between them."""
    fault = "not a method and its class: expected NAME=module:Class"
    return _list(text, rf"{NAME.pattern}=[^\W\d][\w.]*:[^\W\d]\w*", fault, str.strip)


def _list(text: str, pattern: str, fault: str, clean: Callable[[str], str] = lambda part: part.strip().lower()) -> str:
    parts = [clean(part) for part in text.split(",")]
    for part in parts:
        if re.fullmatch(pattern, part) is None:
            msg = f"{part!r} is {fault}"
            raise argparse.ArgumentTypeError(msg)
    return ",".join(parts)


def named(text: str) -> str:
    """A name of a device or a fleet: a level of a topic."""
    if NAME.fullmatch(text) is None:
        msg = f"{text[:100]!r} is not allowed: use {NAME_RULE}"
        raise argparse.ArgumentTypeError(msg)
    return text


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = count(text)
    if value == 0:
        msg = f"{text!r} is not a whole number of 1 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def count(text: str) -> int:
    """A whole number of 0 or more."""
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        msg = f"{text[:50]!r} is not a whole number of 0 or more, of at most {MAX_DIGITS} digits"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``least`` to ``most``."""

    def parse(text: str) -> int:
        value = count(text)
        if not least <= value <= most:
            msg = f"{text!r} is outside {least} to {most}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """Return a parser of numbers from ``least`` to ``most``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            msg = f"{text!r} is not a number from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return parse


def size(text: str) -> int:
    """Bytes of ``512MB``, ``1.5GiB`` or a plain number.

    >>> size("512MB"), size("1.5GiB"), size("4096")
    (512000000, 1610612736, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMG]I?)?B?)", text.strip().upper())
    value = 0.0 if match is None else float(match[1]) * _UNITS[match[2] or ""]
    if not 1 <= value <= limits.MAX_BYTES:
        msg = f"{text[:50]!r} is not a size: expected a number with B, KB, MB, GB, KiB, MiB or GiB"
        raise argparse.ArgumentTypeError(msg)
    return int(value)
