"""A fleet that some benchmarks play: the coordinator and the devices of any run, in one process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from broker_server.config import CONFIG_FILE, CoordinatorConfig
from broker_server.serving.coordinator.process import run_coordinator
from broker_server.serving.storage.records import RoundRecord
from broker_server.serving.storage.store import Store
from edge_runtime.agent.opening import open_agent
from edge_runtime.agent.settings import AgentSettings, WorkSettings
from edge_runtime.formats.run_directory import ARTIFACTS_FOLDER
from edge_runtime.link.in_process import InProcessBroker


def play(
    config: CoordinatorConfig, artifact: Path, run_dir: Path, devices: Mapping[str, WorkSettings]
) -> list[RoundRecord]:
    """Play a run to its end.

    Args:
        config: configuration of the run.
        artifact: directory that ``fedspine export`` wrote.
        run_dir: directory of the run, which is made; those of the devices lie beside it.
        devices: settings by name.

    Returns:
        The records of all rounds.
    """
    shutil.copytree(artifact, run_dir / ARTIFACTS_FOLDER / config.artifact_digest)
    (run_dir / CONFIG_FILE).write_text(config.to_toml(), encoding="utf-8")
    broker, threads = InProcessBroker(), []
    for name, work in devices.items():
        settings = AgentSettings(open_link=broker.open_link, fleet=config.fleet, work=work, exit_when_finished=True)
        state = run_dir.parent / name
        shutil.copytree(artifact, state / ARTIFACTS_FOLDER / config.artifact_digest)
        threads.append(threading.Thread(target=_take_part, args=(settings, state, name), daemon=True))
    for thread in threads:
        thread.start()
    run_coordinator(run_dir, broker.open_link)
    for thread in threads:
        thread.join()
    store = Store.open(run_dir)
    try:
        return list(store.load_round_records())
    finally:
        store.close()


def _take_part(settings: AgentSettings, state: Path, name: str) -> None:
    with open_agent(settings, state, name) as agent:
        agent.run()
