"""Every limit of the protocol, checked before memory is allocated.

The message limit is below that of AWS IoT Core (128 KB) and of what mosquitto and EMQX allow unless they are told
otherwise; a broker that accepts less than a message of this size cannot be used. See docs/wire.md.
"""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 96 * 1024
"""Largest MQTT payload either side publishes or accepts, bytes."""

CHUNK_BYTES: Final = 64 * 1024
"""Payload of one chunk of a blob, bytes; leaves room for the envelope inside MAX_MESSAGE_BYTES."""

MIN_CHUNK_BYTES: Final = 1024
"""Smallest payload of a chunk that a header may announce, bytes: a blob has at most half a million chunks."""

MAX_INLINE_BYTES: Final = 1024
"""Most bytes that an update brings inside itself instead of in chunks."""

MAX_BLOB_BYTES: Final = 512 * 1024 * 1024
"""Largest blob that travels through MQTT in chunks (an adapter), bytes."""

MAX_TENSORS: Final = 16_384
"""Most tensors in one blob."""

MAX_TENSOR_NAME: Final = 400
"""Longest name of a tensor in a blob, characters: a module path and a suffix."""

MAX_TENSOR_HEADER_BYTES: Final = 8 * 1024 * 1024
"""Largest safetensors header, bytes."""

MAX_RANK: Final = 512
"""Largest LoRA rank."""

MAX_LAYERS: Final = 512
"""Most transformer blocks in one model."""

MAX_END_TOKENS: Final = 256
"""Most tokens that end a generated text."""

MAX_UNITS: Final = 1 << 20
"""Most prunable units in one group of one layer."""

MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
"""Largest manifest.json, bytes."""

MAX_CHUNK_INDICES: Final = 8_192
"""Most indices in one request for missing chunks."""

MOST: Final = 2**31 - 1
"""Largest count, which every graph, message and table on the way can hold."""

MAX_BYTES: Final = 2**53
"""Largest amount of memory or traffic that is believed, bytes: every reader of JSON keeps it exactly."""

MAX_FILE_BYTES: Final = 1 << 40
"""Largest file of an artifact, bytes."""

MAX_TENSOR_ELEMENTS: Final = 1 << 40
"""Most elements of one tensor of a model."""

MAX_TENSOR_AXES: Final = 8
"""Most axes of one tensor of a model."""

MAX_FILES: Final = 4_096
"""Most files of an artifact."""

MAX_LABELS: Final = 1 << 20
"""Most classes of a model."""

MAX_ARMS: Final = 4_096
"""Most arms of a run."""

MAX_AXES: Final = 16
"""Most values of one arm beyond its fields."""

MAX_SETTINGS: Final = 64
"""Most settings of the work of an installed package's method."""

MAX_SETTING: Final = 2**53
"""Largest magnitude of a number among them: up to it a float64 and JSON hold each integer."""

MAX_PRUNINGS: Final = 1_024
"""Most prunings inside one assignment."""

MAX_LOGGED_ROUNDS: Final = 256
"""Rounds of zero-order tuning in an assignment."""

MAX_SEEDS: Final = 8_192
"""In a pool of zero-order tuning: their coefficients are a part of one message."""

MAX_GROUPS: Final = 16 * MAX_LAYERS
"""Most prune groups of one model."""

MAX_TARGETS: Final = 32 * MAX_LAYERS
"""Most LoRA targets of one model."""

MAX_TEXT: Final = 2_000
"""Longest text for people in a message, characters."""

MAX_SHORT_TEXT: Final = 200
"""Longest name of a thing for people (a machine, a package, a version), characters."""

LONGEST_S: Final = 1e9
"""Longest time of anything: 30 years, which timers can still count."""

MAX_FACTOR: Final = 1e6
"""Largest learning rate, scaling or norm: beyond it a float32 overflows where such numbers are multiplied."""

MAX_FLOAT32: Final = 3.5e38
"""Just above the largest float32."""
