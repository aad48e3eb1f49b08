"""Errors of the doors to the network.

LinkError
├── AddressError              a URL or a TLS file that cannot be used
├── BrokerUnreachableError    nobody answers, or the answer is not that of an MQTT broker
├── BrokerRefusedError        a broker answers and says no
├── ArtifactUnreachableError  HTTP fails after all attempts
└── ArtifactCorruptedError    the bytes over HTTP do not match the manifest
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class LinkError(FedSpineError):
    """Base of the errors between this machine and another."""


class AddressError(LinkError):
    """A URL is malformed, or a file that TLS needs cannot be read."""

    exit_code = ExitCode.USAGE


class BrokerUnreachableError(LinkError):
    """No MQTT broker answers at the address."""

    exit_code = ExitCode.BROKER_UNREACHABLE


class BrokerRefusedError(LinkError):
    """The broker refuses: credentials, permissions, its certificate, or a limit that is too small."""

    exit_code = ExitCode.BROKER_REFUSED


class ArtifactUnreachableError(LinkError):
    """A file cannot be fetched over HTTP."""

    exit_code = ExitCode.ARTIFACT_UNREACHABLE


class ArtifactCorruptedError(LinkError):
    """A fetched file has another size or digest than promised, twice in a row."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED
