"""Addresses: only where allowed, only https, never a private network, never without limit."""

import socket
from dataclasses import replace

import pytest

from backend import addresses, settings
from backend.errors import UserError


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "SETTINGS", replace(settings.SETTINGS, allow_addresses=True))


def test_addresses_are_refused_unless_the_owner_allows_them() -> None:
    with pytest.raises(UserError, match="not fetched here"):
        addresses.fetch_address("https://example.org/a.jpg", 1000)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "address",
    ["http://example.org/a.jpg", "https:///a.jpg", "https://user:word@example.org/a.jpg", "https://user@example.org/"],
)
def test_only_plain_https_is_fetched(address: str) -> None:
    with pytest.raises(UserError, match="begin with https"):
        addresses.fetch_address(address, 1000)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *("[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "localhost", "2130706433"),
    ],
)
def test_private_networks_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection(*_: object) -> None:
        pytest.fail("it connected")

    monkeypatch.setattr(socket, "create_connection", no_connection)
    with pytest.raises(UserError, match=r"private network|not known"):
        addresses.fetch_address(f"https://{host}/a.jpg", 1000)


def test_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", (ip, 443)) for ip in ("93.184.216.34", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(UserError, match="private network"):
        addresses.public_address("example.org", 443)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
    assert addresses.public_address("example.org", 443) == "93.184.216.34"


class _Answer:
    def __init__(self, status: int, body: bytes = b"", location: str | None = None) -> None:
        self.status, self.body, self.location = status, body, location

    def getheader(self, name: str) -> str | None:
        return self.location if name == "Location" else None

    def read(self, count: int) -> bytes:
        part, self.body = self.body[:count], self.body[count:]
        return part


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[_Answer]:
    given: list[_Answer] = []
    asked: list[str] = []

    class Connection:
        def __init__(self, host: str, port: int) -> None:
            asked.append(host)

        def request(self, *_: object, **__: object) -> None:
            pass

        def getresponse(self) -> _Answer:
            return given.pop(0)

        def close(self) -> None:
            pass

    monkeypatch.setattr(addresses, "_Connection", Connection)
    return given


@pytest.mark.usefixtures("allowed")
def test_a_file_is_fetched_through_redirects(answers: list[_Answer]) -> None:
    answers += [_Answer(302, location="/other"), _Answer(200, b"x" * 100)]
    assert addresses.fetch_address("https://example.org/a.jpg", 100) == b"x" * 100


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([_Answer(200, b"x" * 101)], "larger than"),
        ([_Answer(404)], "answered with 404"),
        ([_Answer(301, location="http://example.org/a.jpg")], "begin with https"),
        ([_Answer(301, location="https://example.org/b") for _ in range(9)], "too often"),
    ],
)
def test_what_does_not_come_is_said_in_a_sentence(given: list[_Answer], message: str, answers: list[_Answer]) -> None:
    answers += given
    with pytest.raises(UserError, match=message):
        addresses.fetch_address("https://example.org/a.jpg", 100)
