"""The report of a run, for people and programs: ``report.json`` and ``report.html``."""
