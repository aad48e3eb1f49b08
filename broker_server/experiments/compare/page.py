"""``comparison.html``: one self-contained page, for people; made from the summary alone."""

from __future__ import annotations

from pathlib import Path

from broker_server.experiments.compare.charts import all_charts
from broker_server.experiments.compare.summary_schema import Summary
from broker_server.experiments.compare.tables import all_tables, remarks
from broker_server.serving.report.template import load_template, moment_text


def render_page(summary: Summary) -> str:
    """HTML of a comparison; needs nothing from the network."""
    return load_template(Path(__file__).with_name("comparison.html.j2")).render(
        summary=summary,
        created=moment_text(summary.created_at),
        remarks=remarks(summary),
        tables=all_tables(summary),
        charts=all_charts(summary),
    )
