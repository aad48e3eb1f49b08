"""``python -m broker_server``: the same as ``fedspine``."""

from broker_server.cli import main

main()
