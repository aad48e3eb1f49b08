"""An answer that the network thread gives by itself, whatever the owner of a link does meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reflex:
    """A greeting and an answer on one topic. Neither function may wait for anything."""

    topic: str
    """Read beside the link's own topics; a broker that forbids it is warned of, no more."""
    greet: Callable[[], bytes]
    """Payload that is said there after every connect."""
    hear: Callable[[bytes], bytes | None]
    """The answer to a payload there, one's own included; None = none."""
