"""Every limit of the protocol, checked before memory is allocated.

The message limit is below the limit of AWS IoT Core (128 KB) and the default limits of mosquitto and EMQX. A broker
with a lower limit cannot be used. See docs/wire.md.
"""

from __future__ import annotations

from typing import Final

MAX_MESSAGE_BYTES: Final = 96 * 1024
"""Largest MQTT payload that coordinator and devices publish or accept, bytes."""

CHUNK_BYTES: Final = 64 * 1024
"""Payload of one chunk of a blob, bytes; leaves room for the envelope inside MAX_MESSAGE_BYTES."""

MIN_CHUNK_BYTES: Final = 1024
"""Smallest payload of a chunk that a header may announce, bytes: a blob has at most half a million chunks."""

MAX_INLINE_BYTES: Final = 1024
"""Largest blob that an update holds itself, without chunks, bytes."""

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
"""Largest count; every graph, message and table can hold it."""

MAX_BYTES: Final = 2**53
"""Largest accepted amount of memory or traffic, bytes: every reader of JSON keeps it exactly."""

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
"""Largest magnitude of a number among these settings: float64 and JSON hold all integers up to it."""

MAX_PRUNINGS: Final = 1_024
"""Most prunings inside one assignment."""

MAX_LOGGED_ROUNDS: Final = 256
"""Most logged rounds of zero-order tuning in one assignment."""

MAX_SEEDS: Final = 8_192
"""Most seeds in a pool of zero-order tuning: one message holds their coefficients."""

MAX_GROUPS: Final = 16 * MAX_LAYERS
"""Most prune groups of one model."""

MAX_TARGETS: Final = 32 * MAX_LAYERS
"""Most LoRA targets of one model."""

MAX_TEXT: Final = 2_000
"""Longest text for people in a message, characters."""

MAX_SHORT_TEXT: Final = 200
"""Longest name that is shown to people (of a machine, a package, a version), characters."""

LONGEST_S: Final = 1e9
"""Longest duration, seconds: 30 years, within the range of timers."""

MAX_FACTOR: Final = 1e6
"""Largest learning rate, scaling or norm: products of larger ones may overflow a float32."""

MAX_FLOAT32: Final = 3.5e38
"""Just above the largest float32."""
