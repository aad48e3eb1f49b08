"""The device: fetch, verify, slice, train, measure, publish. Never torch.

onnxruntime's builds for Linux report to their maker from 1.29 on, unless the environment says otherwise before it is
imported. FedSpine sends nothing to anyone but the broker and the artifact server, so it is switched off here, before
any other module of this package is run; who wants it sets ``ORT_DISABLE_TELEMETRY=0``.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
