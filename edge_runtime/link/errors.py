"""Errors of the doors to the network.

LinkError
├── AddressError              a URL or a TLS file cannot be used
├── BrokerUnreachableError    no MQTT broker answers
├── BrokerRefusedError        a broker answers and refuses
├── ArtifactUnreachableError  HTTP fails after all attempts
└── ArtifactCorruptedError    the bytes over HTTP do not match the manifest
"""

from __future__ import annotations

from edge_runtime.errors import ExitCode, FedSpineError


class LinkError(FedSpineError):
    """Base of the errors of connections to other machines."""


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
    """A fetched file has a wrong size or digest, twice in a row."""

    exit_code = ExitCode.ARTIFACT_CORRUPTED
