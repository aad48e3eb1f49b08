"""What a run leaves for people and programs: ``report.json`` and ``report.html``."""
