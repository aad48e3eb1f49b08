"""Updates that a coordinator takes in a second: ``python -m benchmarks.fleet --devices 1000 --json fleet.json``.

Starts a broker (mosquitto) and a coordinator as processes on this machine, and plays the devices in this one
(``benchmarks.thin_devices``): they train nothing, so the times are those of the server alone. The time of an update
runs from the begin of its round until the last update of the round is on disk. Writes JSON:

- ``updates_per_s``: accepted updates a second, median of the rounds, without aggregation;
- ``coordinator_s_per_update``: processor time of the coordinator process for an update, all of the rounds included;
- ``coordinator_rss_bytes``: its largest resident set;
- ``num_devices``, ``num_rounds``, ``num_accepted``: numbers of devices, rounds and accepted updates;
- ``round_s``: wall time of each round with its aggregation; ``register_s``: until the first round began.

The devices take processor time too, of another core where there is one.

With ``--in-process`` there is no broker and no other process: coordinator and devices share this one, over
:mod:`edge_runtime.link.in_process`. Then ``coordinator_s_per_update`` is the time of all threads but that of the
devices, and ``coordinator_rss_bytes`` is that of the whole process, devices included. Set ``OMP_NUM_THREADS=1`` there,
or idle threads of the matrix products count as work.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.step import environment
from benchmarks.thin_devices import Crowd, InProcessCrowd, MqttCrowd
from broker_server.config import CONFIG_FILE, CoordinatorConfig
from broker_server.experiments.run.preparation import BUILT_IN_MODEL
from broker_server.methods.training import TrainingConfig
from broker_server.serving.coordinator.process import run_coordinator, unix_now
from broker_server.serving.storage.events import EVENTS_FILE, EventReader, RoundFinished, RoundStarted, UpdateAccepted
from edge_runtime.engine.artifact import Artifact
from edge_runtime.link.in_process import InProcessBroker
from edge_runtime.system.interpreter import module_command
from edge_runtime.wire.arms import LORA_AXES

HOST: Final = "127.0.0.1"
FLEET: Final = "bench"
STARTING_S: Final = 60.0
NUM_FILES_BESIDE: Final = 200
"""Open files of a process beside one for each device."""


def main() -> None:
    """Parse, play, write."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="fedspine-fleet-") as folder:
        result = play(options, Path(folder))
    text = json.dumps({"environment": environment() | {"processor": processor()}, **result}, indent=2) + "\n"
    if options.json is None:
        print(text, end="")
    else:
        options.json.write_text(text, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000, help="thin devices, default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the run, default: %(default)s")
    parser.add_argument("--scheduler", default="uniform", help="who plays which arm, default: %(default)s")
    parser.add_argument("--aggregation", default="fedspine", help="how updates are combined, default: %(default)s")
    parser.add_argument("--arms", default="0.0:2,0.5:1", help="default: %(default)s")
    parser.add_argument("--deadline", type=float, default=600.0, help="of a round, seconds, default: %(default)s")
    parser.add_argument("--artifact", type=Path, help="default: the small Llama shipped, exported for this")
    parser.add_argument("--in-process", action="store_true", help="no broker: all in this process")
    parser.add_argument("--json", type=Path, help="file for the result, default: stdout")
    return parser


def play(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Bring up coordinator and devices, and measure until the run is over."""
    run_dir = folder / "run"
    artifact = Artifact.open(place_artifact(options.artifact, run_dir / "artifacts"))
    play_them = play_in_process if options.in_process else play_over_mqtt
    watch, crowd = play_them(options, folder, artifact)
    return {"num_devices": options.devices, **watch.result(), "devices": dict(sorted(crowd.counts.items()))}


def play_over_mqtt(options: argparse.Namespace, folder: Path, artifact: Artifact) -> tuple[Watch, Crowd]:
    """The coordinator in a process of its own, and a broker."""
    raise_file_limit(options.devices)
    run_dir, port = folder / "run", free_port()
    write_config(options, run_dir, artifact.digest, port)
    with contextlib.ExitStack() as stack:
        stack.enter_context(child("broker", folder, "broker", "--port", str(port), "--kind", "mosquitto"))
        wait_for_port(port)
        coordinator = stack.enter_context(child("coordinator", folder, "coordinate", str(run_dir)))
        process = psutil.Process(coordinator.pid)

        def used() -> tuple[float, int]:
            times = process.cpu_times()
            return times.user + times.system, process.memory_info().rss

        crowd = MqttCrowd(options.devices, FLEET, port, artifact.manifest)
        stack.callback(crowd.close)
        watch = Watch(run_dir, lambda: coordinator.poll() is None, used)
        while watch.look():
            crowd.serve(0.25)
        if coordinator.wait() != 0:
            sys.exit(f"the coordinator failed: {(folder / 'coordinator.log').read_text(errors='replace')[-1000:]}")
    return watch, crowd


def play_in_process(options: argparse.Namespace, folder: Path, artifact: Artifact) -> tuple[Watch, Crowd]:
    """The coordinator in a thread beside the devices, which are in this one."""
    run_dir, broker = folder / "run", InProcessBroker()
    write_config(options, run_dir, artifact.digest, 1)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_coordinator, run_dir, broker.open_link)
        crowd = InProcessCrowd(options.devices, FLEET, broker, artifact.manifest)

        def used() -> tuple[float, int]:
            return time.process_time() - time.thread_time(), psutil.Process().memory_info().rss

        watch = Watch(run_dir, lambda: not running.done(), used)
        while watch.look():
            crowd.serve(0.25)
        crowd.close()
        running.result()
    return watch, crowd


class Watch:
    """The coordinator's progress, by its events, and its use of processor and memory."""

    def __init__(self, run_dir: Path, is_running: Callable[[], bool], used: Callable[[], tuple[float, int]]) -> None:
        """Begin.

        Args:
            run_dir: of the run.
            is_running: whether the coordinator is still there.
            used: its processor time so far, seconds, and its resident set, bytes.
        """
        self._is_running = is_running
        self._used = used
        self._events = EventReader(run_dir / EVENTS_FILE)
        self._began_at = unix_now()
        self._started: dict[int, float] = {}
        self._accepted: dict[int, list[float]] = {}
        self._round_s: dict[int, float] = {}
        self._cpu_s: list[float] = []
        self._rss_bytes = 0

    def look(self) -> bool:
        """Read on; False when the coordinator has ended."""
        is_running = self._is_running()
        with contextlib.suppress(psutil.Error):
            cpu_s, rss_bytes = self._used()
            self._rss_bytes = max(self._rss_bytes, rss_bytes)
            if self._started or not self._cpu_s:
                self._cpu_s.append(cpu_s)
            else:
                self._cpu_s[0] = cpu_s
        for event in self._events.new_events():
            match event:
                case RoundStarted():
                    self._started[event.round_number] = event.at
                case UpdateAccepted():
                    self._accepted.setdefault(event.round_number, []).append(event.at)
                case RoundFinished() if event.record.round_number > 0:
                    self._round_s[event.record.round_number] = event.record.seconds
        return is_running

    def result(self) -> dict[str, Any]:
        """See the module."""
        num_accepted = sum(len(times) for times in self._accepted.values())
        rates = {n: len(times) / (max(times) - self._started[n]) for n, times in self._accepted.items()}
        return {
            "num_rounds": len(self._round_s),
            "num_accepted": num_accepted,
            "updates_per_s": round(statistics.median(rates.values()), 2),
            "updates_per_s_by_round": [round(rate, 2) for rate in rates.values()],
            "coordinator_s_per_update": round((self._cpu_s[-1] - self._cpu_s[0]) / num_accepted, 6),
            "coordinator_rss_bytes": self._rss_bytes,
            "round_s": [round(seconds, 2) for seconds in self._round_s.values()],
            "register_s": round(self._started[1] - self._began_at, 2),
        }


def place_artifact(given: Path | None, artifacts: Path) -> Path:
    """The artifact of the run, where the coordinator looks for it."""
    artifacts.mkdir(parents=True)
    if given is not None:
        place = artifacts / Artifact.open(given, verify=False).digest
        place.symlink_to(given.resolve())
        return place
    model = Path(__file__).parents[1] / "models" / "pretrained" / BUILT_IN_MODEL
    made = artifacts / "made"
    command = module_command("broker_server", "export", str(model), "--task", "causal-lm", "--out", str(made))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return made.rename(artifacts / Artifact.open(made, verify=False).digest)


def write_config(options: argparse.Namespace, run_dir: Path, digest: str, port: int) -> None:
    """Configuration of the run."""
    config = CoordinatorConfig(
        run_id="bench",
        fleet=FLEET,
        broker_url=f"mqtt://{HOST}:{port}",
        artifact_url=f"http://{HOST}:1/",
        artifact_digest=digest,
        num_devices=options.devices,
        training=TrainingConfig(num_rounds=options.rounds, num_local_steps=2, batch_size=2, max_length=32),
        arms=LORA_AXES.parse(options.arms),
        scheduler=options.scheduler,
        aggregation=options.aggregation,
        round_deadline_s=options.deadline,
        registration_timeout_s=options.deadline,
        num_threads=1,
    )
    (run_dir / CONFIG_FILE).write_text(config.to_toml(), encoding="utf-8")


@contextlib.contextmanager
def child(name: str, folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the server, ended with the block."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            module_command("broker_server", *command),
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # otherwise idle threads of matrix products would count as work
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Wait until the broker listens."""
    give_up_at = time.monotonic() + STARTING_S
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    sys.exit(f"the broker does not listen on port {port} after {STARTING_S:g} s")


def raise_file_limit(num_devices: int) -> None:
    """Allow a connection for each device; the broker, a child, inherits it."""
    needed = num_devices + NUM_FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            sys.exit(f"--devices {num_devices} needs {needed} open files, the limit is {hard}: raise it (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def processor() -> str:
    """Name of the processor, and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else 'unknown'}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
