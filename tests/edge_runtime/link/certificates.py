"""Certificates that are not as they should be, and an authority of one's own."""

from __future__ import annotations

import dataclasses
import datetime as dt
import subprocess
from pathlib import Path

import pytest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A faulty certificate, and the words in the message about it."""

    subject: str = "/CN=broker"
    alt_name: str = "IP:127.0.0.1"
    days: tuple[int, int] = (-1, 2)
    """First and last day that it is valid, counted from today."""
    is_known: bool = True
    """Whether the device trusts its authority."""
    said: str
    step: str


WRONG = {
    "expired": Made(days=(-9, -2), said="certificate has expired", step="renew it, or set the clock of this machine"),
    "not yet valid": Made(days=(2, 9), said="certificate is not yet valid", step="clock may be behind, it says 20"),
    "name as CN only": Made(subject="/CN=127.0.0.1", alt_name="", said="mismatch", step="subjectAltName"),
    "another address": Made(alt_name="IP:127.0.0.2", said="not valid for '127.0.0.1'", step="subjectAltName"),
    "another name": Made(alt_name="DNS:broker.example", said="not valid for '127.0.0.1'", step="subjectAltName"),
    "unknown authority": Made(is_known=False, said="unable to get local issuer", step="--ca-file"),
}


def openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")


def signed(authority: Path, folder: Path, made: Made) -> tuple[Path, Path]:
    """A certificate and its key, signed by the authority."""
    cert, key, request, database = (folder / name for name in ("c.pem", "c.key", "c.csr", "index"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", *curve, "-keyout", str(key), "-out", str(request), "-subj", made.subject)
    database.write_text("")
    (folder / "serial").write_text("01\n")
    alt = f"[ext]\nsubjectAltName={made.alt_name}\n" if made.alt_name else "[ext]\nbasicConstraints=CA:FALSE\n"
    config = f"[ca]\ndefault_ca=d\n[d]\ndatabase={database}\nserial={folder / 'serial'}\nnew_certs_dir={folder}\n"
    config += f"default_md=sha256\npolicy=p\nx509_extensions=ext\n[p]\ncommonName=supplied\n{alt}"
    (folder / "ca.conf").write_text(config)
    now = dt.datetime.now(dt.UTC)
    first, last = ((now + dt.timedelta(days=day)).strftime("%Y%m%d%H%M%SZ") for day in made.days)
    who = ("-cert", str(authority / "ca.pem"), "-keyfile", str(authority / "ca.key"))
    when = ("-startdate", first, "-enddate", last)
    openssl("ca", "-batch", "-config", str(folder / "ca.conf"), *who, *when, "-in", str(request), "-out", str(cert))
    return cert, key
