"""``python -m broker_server``: the same as ``fedspine``."""

from edge_runtime.system.interpreter import keep_folder_out

keep_folder_out()  # before imports that `python -m` would take from the current folder

from broker_server.cli import main  # noqa: E402 - see above

main()
