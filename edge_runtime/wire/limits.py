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

MAX_BLOB_BYTES: Final = 512 * 1024 * 1024
"""Largest blob that travels through MQTT in chunks (an adapter), bytes."""

MAX_TENSORS: Final = 16_384
"""Most tensors in one blob."""

MAX_TENSOR_HEADER_BYTES: Final = 8 * 1024 * 1024
"""Largest safetensors header, bytes."""

MAX_RANK: Final = 512
"""Largest LoRA rank."""

MAX_LAYERS: Final = 512
"""Most transformer blocks in one model."""

MAX_UNITS: Final = 1 << 20
"""Most prunable units in one group of one layer."""

MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
"""Largest manifest.json, bytes."""

MAX_CHUNK_INDICES: Final = 8_192
"""Most indices in one request for missing chunks."""
