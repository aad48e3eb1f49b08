"""Put the tables of comparisons into a document: fill_results.py DOCUMENT NAME=SUMMARY.json ...

Between the lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->``, and nowhere else.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
from pathlib import Path

from broker_server.experiments.compare.summary_schema import Summary, decode_summary
from broker_server.experiments.compare.tables import all_tables, remarks


def section(summary: Summary) -> str:
    """Date, machine and tables of a summary, as Markdown."""
    date = dt.datetime.fromtimestamp(summary.created_at, tz=dt.UTC).date().isoformat()
    machine = ", ".join(f"{name} {value}" for name, value in summary.environment.items())
    quick = " Quick form: sanity only." if summary.is_quick else ""
    head = [f"Measured on {date}; {machine}.{quick}", *remarks(summary)]
    return "\n\n".join([*head, *(table.markdown(3).rstrip() for table in all_tables(summary))])


def fill(document: str, name: str, text: str) -> str:
    """The document with ``text`` between the marks of ``name``.

    Raises:
        ValueError: the document has no such marks, or more than one pair.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(rf"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        msg = f"expected {begin} and {end} once in the document"
        raise ValueError(msg)
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", document)


def main(arguments: list[str]) -> None:
    """Fill a document in place."""
    if len(arguments) < 2 or not all("=" in argument for argument in arguments[1:]):
        sys.exit("usage: fill_results.py DOCUMENT NAME=SUMMARY.json ...")
    path = Path(arguments[0])
    document = path.read_text(encoding="utf-8")
    for argument in arguments[1:]:
        name, _, summary = argument.partition("=")
        document = fill(document, name, section(decode_summary(Path(summary).read_bytes())))
    path.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
