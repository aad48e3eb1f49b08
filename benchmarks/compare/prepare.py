"""Make the model and the data of agnews.toml and sst2.toml from their authors' files.

    python benchmarks/compare/prepare.py model --to ../shared/models/minilm-l6
    python benchmarks/compare/prepare.py agnews train.csv test.csv --to ../shared/data/agnews
    python benchmarks/compare/prepare.py sst2 SST-2/train.tsv --to ../shared/data/sst2

The model is downloaded from the Hugging Face hub (90 MB); the files of the data sets are those of their archives, named
in the comparison files. Rows are drawn with a seed, so the same originals give the same files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
AGNEWS_LABELS: Final = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
AGNEWS_TRAIN: Final = 10_001
"""Rows drawn from the 120,000."""
SST2_LABELS: Final = {"0": "negative", "1": "positive"}
SST2_TEST_SHARE: Final = 0.1
"""Of GLUE's training rows, held out: its own test rows have no labels."""
SEED: Final = 0

Row = dict[str, str]


def model(to: Path) -> None:
    """The encoder and its tokenizer, weights in half precision."""
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - slow, and only this command needs it

    AutoModel.from_pretrained(MODEL).half().save_pretrained(to)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(to)


def agnews(train: Path, test: Path, to: Path, num_train: int = AGNEWS_TRAIN) -> None:
    """AG News: descriptions without titles; some of the training rows, all test rows in their order.

    Args:
        train: ``train.csv``: class, title, description.
        test: ``test.csv``, likewise.
        to: folder for ``train.jsonl`` and ``test.jsonl``.
        num_train: rows that are drawn for training.
    """
    rows = _agnews_rows(train)
    drawn = np.random.default_rng(SEED).permutation(len(rows))[:num_train]
    _write(to / "train.jsonl", [rows[index] for index in drawn])
    _write(to / "test.jsonl", _agnews_rows(test))


def sst2(train: Path, to: Path) -> None:
    """SST-2: GLUE's training rows, a tenth of them held out.

    Args:
        train: ``train.tsv``: sentence, label, with a header.
        to: folder for ``train.jsonl`` and ``test.jsonl``.
    """
    with train.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [{"text": row["sentence"].strip(), "label": SST2_LABELS[row["label"]]} for row in table]
    drawn = np.random.default_rng(SEED).permutation(len(rows))
    num_test = round(SST2_TEST_SHARE * len(rows))
    _write(to / "train.jsonl", [rows[index] for index in drawn[num_test:]])
    _write(to / "test.jsonl", [rows[index] for index in drawn[:num_test]])


def _agnews_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{"text": text, "label": AGNEWS_LABELS[label]} for label, _, text in csv.reader(file)]


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(data)
    print(f"{path}: {len(rows)} rows, SHA-256 {hashlib.sha256(data).hexdigest()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    inputs = {"model": (), "agnews": ("train", "test"), "sst2": ("train",)}
    for name, files in inputs.items():
        command = commands.add_parser(name)
        for file in files:
            command.add_argument(file, type=Path)
        command.add_argument("--to", type=Path, required=True, metavar="DIR")
    options = vars(parser.parse_args(arguments))
    make: dict[str, Callable[..., None]] = {"model": model, "agnews": agnews, "sst2": sst2}
    make[options.pop("what")](**options)


if __name__ == "__main__":
    main()
