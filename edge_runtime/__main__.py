"""``python -m edge_runtime`` is ``fedspine-edge``."""

import sys

from edge_runtime.system.interpreter import keep_folder_out

keep_folder_out()  # before imports that `python -m` would take from the current folder

from edge_runtime.cli import main  # noqa: E402 - see above

sys.exit(main())
