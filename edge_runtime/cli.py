"""``fedspine-edge``: take part in a run, or use the compact model that a run made.

Heavy modules are imported after the arguments are parsed: so ``--help`` is quick, and ``--threads`` can limit numpy's
own threads too.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Final

from edge_runtime.arguments import (
    Parser,
    add_engine,
    add_pins,
    add_resources,
    add_service,
    add_sharing,
    add_threads,
    add_trust,
    broker_of,
    count,
    named,
    number,
    pause_limits,
    positive,
    service_of,
    setup_of,
    tls_files,
)
from edge_runtime.board.niceness import be_nice
from edge_runtime.board.service import unit, unreadable
from edge_runtime.bounds.plain import log_plainly, plain
from edge_runtime.errors import ExitCode, FedSpineError
from edge_runtime.link.address import PASSWORD_VARIABLE, BrokerAddress
from edge_runtime.system import streams
from edge_runtime.system.interpreter import keep_folder_out

THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
"""Variables that limit threads of numpy's matrix products and of the tokenizer; onnxruntime has options for it."""

INFER_BATCH: Final = 32
"""Number of texts in a batch of classification."""

logger = logging.getLogger("edge_runtime")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (docs/exit-codes.md)."""
    if argv is None:
        streams.use_utf8()
        keep_folder_out()
    streams.prepare()
    arguments = _parser().parse_args(argv)
    log_plainly(arguments.log_level.upper(), "%(asctime)s %(levelname)s %(message)s")
    if arguments.threads is not None:
        for variable in THREAD_VARIABLES:
            os.environ[variable] = str(arguments.threads)
    try:
        code = int(arguments.command(arguments))
        streams.finish()
    except FedSpineError as error:
        _complain(str(error))
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except UnicodeEncodeError as error:
        _complain(streams.explain(error))
        return int(ExitCode.USAGE)
    except Exception as error:
        logger.debug("unexpected error", exc_info=True)
        if isinstance(error, OSError) and error.filename and error.strerror:
            _complain(f"{error.filename}: {error.strerror}; check what is there, and who may read and write it")
            return int(ExitCode.UNEXPECTED)
        _complain(f"unexpected {type(error).__name__}: {error}; run with --log-level debug for the traceback")
        return int(ExitCode.UNEXPECTED)
    return code


def _complain(message: str) -> None:
    print(f"fedspine-edge: error: {plain(' '.join(message.split()))}", file=sys.stderr)


# ---- arguments -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fedspine-edge",
        description="Train and use language models on this device. The examples stay here. What leaves are adapters, "
        "which the server's graphs compute from them; docs/devices.md says what that means.",
        epilog="Every kind of failure has an exit code of its own: see docs/exit-codes.md.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_start(commands.add_parser("start", help="take part in runs", description=START, epilog=START_EXAMPLE))
    doctor = commands.add_parser("doctor", help="check this board", description=DOCTOR, epilog=DOCTOR_EXAMPLE)
    _add_device(doctor, is_needed=False, log_level="warning").add_argument(
        "--state", type=Path, metavar="DIR", help="directory of this device's state"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object in place of lines")
    doctor.set_defaults(command=_doctor)
    service = commands.add_parser("service", help="print a systemd unit", description=SERVICE, epilog=SERVICE_EXAMPLE)
    _add_device(service)
    add_service(service)
    service.set_defaults(command=_service, parser=service)
    infer = commands.add_parser(
        "infer",
        help="classify texts with a compact model",
        description='Classify texts with a compact model. Prints one JSON line {"label": ..., "score": ...} for each. '
        "Give exactly one of --text, --file and '-'.",
    )
    infer.add_argument("model", type=Path, metavar="DIR", help="compact model, made by 'fedspine compact' or 'run'")
    infer.add_argument("input", nargs="?", choices=["-"], help="'-' reads JSON lines with 'text' from standard input")
    infer.add_argument("--text", help="one text to classify")
    infer.add_argument("--file", type=Path, metavar="F.jsonl", help="file of JSON lines with 'text'")
    infer.set_defaults(command=_infer)
    generate = commands.add_parser(
        "generate",
        help="continue a text with a compact model",
        description="Continue a prompt with a compact model. Prints the text as it is generated.",
    )
    generate.add_argument("model", type=Path, metavar="DIR", help="compact model, made by 'fedspine compact' or 'run'")
    generate.add_argument("--prompt", required=True, help="text to continue")
    generate.add_argument(
        "--max-new-tokens", type=positive, default=64, metavar="N", help="generate up to N tokens (default 64)"
    )
    generate.add_argument("--temperature", type=number(0, 1e6), default=0.0, metavar="T", help="0 is greedy (default)")
    generate.add_argument(
        "--top-k", type=count, default=0, metavar="K", help="draw from the K likeliest tokens; 0 is all (default)"
    )
    generate.add_argument(
        "--seed", type=count, default=0, metavar="N", help="seed of the draws, with a temperature above 0 (default 0)"
    )
    generate.set_defaults(command=_generate)
    for command in (infer, generate):
        add_threads(command)
        _add_log_level(command, "warning")
    return parser


START: Final = (
    "Register with a coordinator, take assignments, train on the examples of this device and send adapters back. The "
    "device survives lost connections, restarts of broker and coordinator, and power cuts. "
    "Ctrl-C or SIGTERM ends it; it tells the coordinator that it leaves."
)

START_EXAMPLE: Final = (
    f"Example: fedspine-edge start --broker mqtts://lab@broker.example --data reviews.jsonl --state ~/fedspine. "
    f"The broker's password may also come from the variable {PASSWORD_VARIABLE}. Each JSON line has 'text' (or "
    "'input_ids'), and 'label' for classification."
)


DOCTOR: Final = (
    "Check this board: one line for each thing that is missing or wrong, with what to do about it. The command takes "
    "the options of 'start', and checks only what they name. It changes nothing. It ends with 0, or with the exit code "
    "of the first error."
)

DOCTOR_EXAMPLE: Final = "Example: fedspine-edge doctor --broker mqtts://b.example --data x.jsonl --state fedspine-state"

SERVICE: Final = (
    "Print a systemd unit that runs this device at every boot, in a sandbox. The command takes the options of 'start'. "
    "Passwords and keys stay in their files, and systemd hands them over. The unit keeps its state in /var/lib/NAME."
)

SERVICE_EXAMPLE: Final = (
    "Example: fedspine-edge service --broker mqtts://board-7@broker.example --password-file /etc/fedspine/password "
    "--data /var/lib/fedspine/examples.jsonl --memory-limit 1GB | sudo tee /etc/systemd/system/fedspine-edge.service"
)


def _add_start(start: argparse.ArgumentParser) -> None:
    needed = _add_device(start)
    needed.add_argument("--state", required=True, type=Path, metavar="DIR", help="directory of this device's state")
    start.set_defaults(command=_start)


def _add_device(
    start: argparse.ArgumentParser, *, is_needed: bool = True, log_level: str = "info"
) -> argparse._ArgumentGroup:
    """Add all options of a device but its state folder; return the group of those that ``start`` needs."""
    needed = start.add_argument_group("required" if is_needed else "what to check")
    urls = "URL of the broker: mqtt://, mqtts://, ws:// or wss://[user@]host[:port]"
    needed.add_argument("--broker", required=is_needed, metavar="URL", help=urls)
    needed.add_argument(
        "--data", required=is_needed, type=Path, metavar="FILE", help="examples of this device, JSON lines"
    )
    identity = start.add_argument_group("identity")
    identity.add_argument(
        "--device-id",
        type=named,
        metavar="ID",
        help="name of this device (default: made once and kept in the state directory)",
    )
    identity.add_argument(
        "--fleet",
        type=named,
        default="default",
        metavar="NAME",
        help="name of the devices that train together (default: %(default)s)",
    )
    work = start.add_argument_group("work")
    add_resources(work)
    add_engine(work)
    work.add_argument(
        "--holdout",
        type=count,
        default=64,
        metavar="N",
        help="examples to evaluate on instead of training on them: up to N, and at most a fifth (default 64)",
    )
    add_pins(start)
    add_sharing(start)
    add_trust(start)
    life = start.add_argument_group("when to end")
    life.add_argument("--exit-when-finished", action="store_true", help="end when the run is over")
    life.add_argument("--wait-for-broker", action="store_true", help="keep trying when no broker answers at first")
    _add_log_level(start, log_level)
    return needed


def _add_log_level(command: argparse.ArgumentParser, default: str) -> None:
    levels = ["debug", "info", "warning", "error"]
    command.add_argument("--log-level", choices=levels, default=default, help=f"least level to log (default {default})")


# ---- commands --------------------------------------------------------------------------------------------------------


def _start(arguments: argparse.Namespace) -> int:
    be_nice(arguments.nice)  # before any thread starts: threads inherit it
    from edge_runtime.agent import capabilities  # noqa: PLC0415 - see the module's docstring
    from edge_runtime.agent.methods.installed import InstalledMethods  # noqa: PLC0415
    from edge_runtime.agent.methods.lora import engines  # noqa: PLC0415
    from edge_runtime.agent.opening import open_agent  # noqa: PLC0415
    from edge_runtime.agent.pins import Pins  # noqa: PLC0415
    from edge_runtime.agent.settings import AgentSettings, WorkSettings  # noqa: PLC0415
    from edge_runtime.link.mqtt import MqttLink  # noqa: PLC0415

    modes = engines.choose_modes(arguments.engine, arguments.mode, arguments.ort_models)
    settings = AgentSettings(
        open_link=functools.partial(MqttLink, broker_of(arguments), tls=tls_files(arguments)),
        fleet=arguments.fleet,
        work=WorkSettings(
            data=arguments.data,
            num_holdout=arguments.holdout,
            num_threads=arguments.threads or capabilities.usable_cores(),
            memory_limit_bytes=arguments.memory_limit or capabilities.default_memory_limit(),
            modes=modes,
            ort_models=arguments.ort_models,
            device_methods=InstalledMethods.of(arguments.device_method).named,
            checkpoint_every=arguments.checkpoint_every,
            pausing=pause_limits(arguments),
            sensors=arguments.sensors,
            sends_activations=arguments.send_activations,
        ),
        pins=Pins.of(arguments.artifact_digest, arguments.artifact_host),
        exit_when_finished=arguments.exit_when_finished,
        wait_for_broker=arguments.wait_for_broker,
    )
    with open_agent(settings, arguments.state, arguments.device_id) as agent:

        def end(number: int, _frame: FrameType | None) -> None:
            signal.signal(number, signal.default_int_handler)  # a second signal ends the process at once
            agent.stop(
                ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.OK,
                f"stopped by {signal.Signals(number).name}",
            )

        signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGTERM, end)
        return agent.run()


def _doctor(arguments: argparse.Namespace) -> int:
    from edge_runtime.doctor.checkup import check_up  # noqa: PLC0415 - see the module's docstring
    from edge_runtime.doctor.findings import as_json, exit_code_of  # noqa: PLC0415

    now = dt.datetime.now(dt.UTC).timestamp()
    findings = []
    for finding in check_up(setup_of(arguments, now)):
        findings.append(finding)
        if not arguments.json:
            print(plain(finding.line()), flush=True)
    if arguments.json:
        print(json.dumps(as_json(findings), indent=2))
    wrong = [finding.name for finding in findings if finding.level == "error"]
    if wrong:
        _complain(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}")
    return int(exit_code_of(findings))


def _service(arguments: argparse.Namespace) -> int:
    broker = BrokerAddress.parse(arguments.broker)
    if broker.password is not None:
        _complain("a unit would show the password in the broker's URL: put it into a file and give --password-file")
        return int(ExitCode.USAGE)
    service = service_of(arguments, arguments.parser)
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(unit(service)))  # paths keep their bytes, whatever the terminal's encoding is
    sys.stdout.flush()
    closed = [] if service.user is not None else unreadable(service.readable)
    notes = [
        f"{path} cannot be read by every user: allow that, or give --user NAME of a user who may read it"
        for path in closed
    ]
    if broker.username is not None and not service.credentials:
        notes.append(f"without --password-file, the broker must let {broker.username!r} in without a password")
    notes.append(
        f"save it as /etc/systemd/system/{service.name}.service, then: "
        f"sudo systemctl daemon-reload && sudo systemctl enable --now {service.name}"
    )
    for note in notes:
        print(f"fedspine-edge: {note}", file=sys.stderr)
    return int(ExitCode.OK)


def _infer(arguments: argparse.Namespace) -> int:
    from edge_runtime.engine.examples import read_texts  # noqa: PLC0415 - see the module's docstring
    from edge_runtime.inference import CompactModel  # noqa: PLC0415

    given = [arguments.input is not None, arguments.text is not None, arguments.file is not None]
    if sum(given) != 1:
        _complain("give exactly one of --text, --file and '-' (standard input)")
        return int(ExitCode.USAGE)
    model = CompactModel.open(arguments.model, arguments.threads)
    stream = sys.stdin.buffer if arguments.input is not None else None
    texts = iter([arguments.text]) if arguments.text is not None else read_texts(stream, arguments.file)
    while not streams.is_cut() and (batch := list(islice(texts, INFER_BATCH))):
        for prediction in model.classify(batch):
            print(json.dumps({"label": prediction.label, "score": round(prediction.score, 6)}), flush=True)
    return int(ExitCode.OK)


def _generate(arguments: argparse.Namespace) -> int:
    import numpy as np  # noqa: PLC0415 - see the module's docstring

    from edge_runtime.inference import CompactModel  # noqa: PLC0415

    model = CompactModel.open(arguments.model, arguments.threads)
    pieces = model.generate(
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        rng=np.random.default_rng(arguments.seed),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
        if streams.is_cut():
            break
    print()
    return int(ExitCode.OK)
