from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_runtime.link.address import BrokerAddress, read_password
from edge_runtime.link.errors import AddressError


@pytest.mark.parametrize(
    ("url", "port"),
    [("mqtt://h", 1883), ("mqtts://h", 8883), ("ws://h", 80), ("wss://h", 443), ("mqtt://h:5", 5)],
)
def test_ports_default_by_scheme(url: str, port: int) -> None:
    assert BrokerAddress.parse(url).port == port


def test_user_and_password_are_unquoted() -> None:
    address = BrokerAddress.parse("mqtts://lab:p%40ss%3Aword@host")
    assert (address.username, address.password) == ("lab", "p@ss:word")


@pytest.mark.parametrize("show", [repr, str])
def test_secrets_are_never_shown(show: object) -> None:
    address = BrokerAddress.parse("mqtts://somebody:hunter2@host")
    text = show(address)  # type: ignore[operator]
    assert "hunter2" not in text
    assert "somebody" not in text


@pytest.mark.parametrize(
    "url", ["", "host", "host:1883", "http://host", "mqtt://", "mqtt://host:99999", "mqtt://host:x", "mqtt://h:0"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(AddressError, match="expected mqtt://"):
        BrokerAddress.parse(url)


def test_a_malformed_url_with_a_password_does_not_show_it() -> None:
    with pytest.raises(AddressError) as caught:
        BrokerAddress.parse("mqtt://lab:hunter2@host:x")
    assert "hunter2" not in str(caught.value)


def test_ipv6_hosts_are_shown_in_brackets() -> None:
    assert str(BrokerAddress.parse("mqtt://[::1]:7")) == "mqtt://[::1]:7"


@pytest.mark.parametrize(("url", "path"), [("ws://h", "/mqtt"), ("ws://h/", "/mqtt"), ("ws://h/x/y", "/x/y")])
def test_websocket_paths_default_to_mqtt(url: str, path: str) -> None:
    assert BrokerAddress.parse(url).path == path


def test_a_password_of_the_url_wins_over_the_environment() -> None:
    own, without = BrokerAddress.parse("mqtt://a:b@h"), BrokerAddress.parse("mqtt://a@h")
    given = (own.with_password("c"), without.with_password("c"), without.with_password(None))
    assert [address.password for address in given] == ["b", "c", None]


@pytest.mark.parametrize("content", [b"secret", b"secret\n", b"secret\r\n"])
def test_a_password_is_the_one_line_of_its_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    assert read_password(tmp_path / "p") == "secret"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hunter2\nhunter3\n", b"\xffhunter2", b"hunter2" * 1000, None], ids=str
)
def test_a_file_that_holds_no_password_is_refused_without_showing_it(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    with pytest.raises(AddressError, match=re.escape(str(tmp_path / "p"))) as caught:
        read_password(tmp_path / "p")
    assert "hunter2" not in str(caught.value)
