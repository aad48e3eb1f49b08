"""Messages that the network thread sends by itself, even while the owner of the link is busy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reflex:
    """A greeting and an answer on one topic. The functions must not block."""

    topic: str
    """Topic that is read beside the link's topics; a broker that forbids it causes only a warning."""
    greet: Callable[[], bytes]
    """Returns the payload to publish on the topic after every connect."""
    hear: Callable[[bytes], bytes | None]
    """Returns the answer to a payload on the topic, own payloads included; None = no answer."""
