"""``comparison.html``: one self-contained page, for people; made from the summary alone."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import jinja2

from broker_server.experiments.compare.charts import all_charts
from broker_server.experiments.compare.summary_schema import Summary
from broker_server.experiments.compare.tables import all_tables, remarks


def render_page(summary: Summary) -> str:
    """HTML of a comparison; needs nothing from the network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison.html.j2").render(
        summary=summary,
        created=dt.datetime.fromtimestamp(summary.created_at, tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        remarks=remarks(summary),
        tables=all_tables(summary),
        charts=all_charts(summary),
    )
