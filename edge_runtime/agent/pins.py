"""The artifacts and artifact servers that the owner of a board allows, by digest and by host."""

from __future__ import annotations

import dataclasses
from typing import Self

from edge_runtime.link.errors import AddressError
from edge_runtime.link.http import host_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Allowed artifacts and servers; an empty set allows all."""

    digests: frozenset[str] = frozenset()
    """SHA-256 of manifests, 64 hexadecimal digits each."""
    hosts: frozenset[str] = frozenset()
    """``host`` or ``host:port``, in lower case; IPv6 addresses in brackets."""

    @classmethod
    def of(cls, digests: str | None, hosts: str | None) -> Self:
        """The pins of two options, lists with commas; None = the option was not given."""
        return cls(
            digests=frozenset((digests or "").split(",")) - {""}, hosts=frozenset((hosts or "").split(",")) - {""}
        )

    def objection(self, run_id: str, digest: str, url: str) -> str | None:
        """Return why this device may not take part in a run, one line; None if it may.

        Args:
            run_id: the run.
            digest: SHA-256 of its artifact's manifest.
            url: URL of the artifact.
        """
        if self.digests and digest not in self.digests:
            allowed = ", ".join(sorted(digest[:12] for digest in self.digests))
            return (
                f"run {run_id} is refused: its artifact is {digest[:12]}..., but --artifact-digest allows only "
                f"{allowed}; ask whoever runs the coordinator, or allow it on the board"
            )
        if not self.hosts:
            return None
        try:
            host, port = host_of(url)
        except AddressError as error:
            return f"run {run_id} is refused: {error}"
        name = f"[{host}]" if ":" in host else host
        if self.hosts.isdisjoint({name, f"{name}:{port}"}):
            return (
                f"run {run_id} is refused: its artifact is at {name}:{port}, but --artifact-host allows only "
                f"{', '.join(sorted(self.hosts))}; ask whoever runs the coordinator, or allow it on the board"
            )
        return None
