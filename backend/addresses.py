"""Fetch a file from an https address, where the owner allows it: never from a private network, and never without limit.

Every name is resolved once, every address that it stands for is checked, and the connection goes to the one that was
checked: a name that changes its mind in between reaches nothing. Redirects are checked in the same way.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urljoin, urlsplit

from backend.errors import UserError
from backend.settings import SETTINGS

MAX_REDIRECTS = 3
SECONDS = 30  # for everything together
CONNECT_SECONDS = 10
CHUNK = 1 << 16
NOT_ALLOWED = "The owner of this app has not allowed addresses; download the file, and give its name."
REDIRECTS = {301, 302, 303, 307, 308}


def is_address(text: str) -> bool:
    return text.lower().startswith(("https://", "http://"))


def fetch_address(address: str, limit: int) -> bytes:
    """Return the content of an https address, at most `limit` bytes.

    Raises:
        UserError: Addresses are not allowed here, it is none of a public https server, or it cannot be fetched.
    """
    if not SETTINGS.allow_addresses:
        raise UserError("Addresses are not fetched here.", NOT_ALLOWED)
    deadline = time.monotonic() + SECONDS
    for _ in range(MAX_REDIRECTS + 1):
        content, redirect = _request(address, limit, deadline)
        if redirect is None:
            return content
        address = urljoin(address, redirect)
    raise UserError("The address leads from one to the next too often.", "Download the file, and give its name.")


def _request(address: str, limit: int, deadline: float) -> tuple[bytes, str | None]:
    """Return the content, or the address that the server names instead."""
    parts = urlsplit(address)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise UserError("Only addresses that begin with https:// are fetched.", "Download the file, and give its name.")
    connection = _Connection(parts.hostname, parts.port or 443)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*, video/*", "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if answer.status in REDIRECTS and answer.getheader("Location"):
            return b"", answer.getheader("Location")
        if answer.status != 200:
            raise UserError(f"The server answered with {answer.status}.", "Check the address.")
        content = bytearray()
        while part := answer.read(CHUNK):
            content += part
            if len(content) > limit:
                raise UserError(f"The file is larger than {limit / 1e6:g} MB.", "Use a smaller copy of it.")
            if time.monotonic() > deadline:
                raise UserError(f"The file did not come within {SECONDS} seconds.", "Download it, and give its name.")
        return bytes(content), None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError("The address could not be reached.", "Check it, and the network.") from error
    finally:
        connection.close()


class _Connection(http.client.HTTPSConnection):
    """A connection to an address that was checked, under the server's own name."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port, timeout=CONNECT_SECONDS)
        self._checked = ssl.create_default_context()

    def connect(self) -> None:
        plain = socket.create_connection((public_address(self.host, self.port), self.port), CONNECT_SECONDS)
        try:
            self.sock = self._checked.wrap_socket(plain, server_hostname=self.host)
        except OSError:
            plain.close()
            raise


def public_address(host: str, port: int) -> str:
    """Return an address of a host, all of whose addresses are public.

    Raises:
        UserError: The host is unknown, or one of its addresses belongs to a private network or to this machine.
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise UserError("The address is not known.", "Check it, and the network.") from None
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        if not (mapped or address).is_global or address.is_multicast:
            raise UserError("The address belongs to a private network.", "Download the file, and give its name.")
    return min(found)
