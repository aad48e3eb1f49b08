"""The start of a run, new or resumed: the files in its directory must agree with its database.

A missing file does not mean a new run. An empty ``state.sqlite`` beside adapters of finished rounds was lost (a power
cut, a copy that left it out), and a run that began again would overwrite the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from broker_server.errors import StoreError
from broker_server.serving.storage.store import UPDATES_FOLDER, Store
from edge_runtime.formats.run_directory import ADAPTERS_FOLDER, STATE_FILE, round_of


def check_not_lost(run_dir: Path) -> None:
    """Refuse a run whose database is missing or empty although rounds were played. Nothing is written.

    Args:
        run_dir: run directory.

    Raises:
        StoreError: the database was lost.
    """
    path = run_dir / STATE_FILE
    try:
        is_there = path.stat().st_size > 0
    except FileNotFoundError:
        is_there = False
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}): check the run directory and who may read it"
        raise StoreError(msg) from error
    if is_there:
        return
    found = [f"adapters of {number} rounds" for number in [_last_adapter(run_dir)] if number > 0]
    if (run_dir / UPDATES_FOLDER).is_dir() and any((run_dir / UPDATES_FOLDER).iterdir()):
        found.append("updates")
    if found:
        msg = (
            f"{path} is {'empty' if path.exists() else 'missing'}, but {' and '.join(found)} lie beside it: put the "
            "file back from a copy, or start a new run in another directory; nothing was changed"
        )
        raise StoreError(msg)


def check_same_run(run_dir: Path, store: Store, identity: Mapping[str, str]) -> None:
    """Refuse to go on with another run, or from a database that is older than the adapters beside it.

    Args:
        run_dir: run directory.
        store: database of the run; a database of an earlier release has no identity, and takes this one.
        identity: settings that may not change within a run.

    Raises:
        StoreError: the settings are of another run, or the database knows too few rounds.
    """
    before = store.identify(identity)
    for name, value in identity.items():
        if before.get(name, value) != value:
            msg = (
                f"{run_dir} is a run with {name} {before[name]}, its config.toml says {value}: "
                f"put {before[name]} back, or start a new run in another directory"
            )
            raise StoreError(msg)
    records = store.load_round_records()
    finished = records[-1].round_number if records else 0
    last = _last_adapter(run_dir)
    if last > finished + 1:  # the next round's adapter may exist: it is written before its record
        msg = (
            f"{run_dir / STATE_FILE} knows {finished} rounds, but an adapter of round {last} lies beside it: put the "
            f"newer file back, or move the adapters after round {finished} away to play these rounds again"
        )
        raise StoreError(msg, round_number=last)


def _last_adapter(run_dir: Path) -> int:
    """Number of the last round with an adapter; 0 = none beyond that of before training."""
    folder = run_dir / ADAPTERS_FOLDER
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return max((number for name in names if (number := round_of(name)) is not None), default=0)
