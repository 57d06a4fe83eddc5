"""How often one visitor may ask for what could be misused in bulk.

A visitor is a page that is open, and a new page is a new one; what one address may do in all is limited too, as a class
behind one connection, or everybody behind a proxy, shares an address.
"""

import threading
import time
from collections import deque

import gradio as gr

from backend.errors import UserError
from backend.settings import SETTINGS


class Limit:
    """A number of calls in a time, for every visitor.

    Args:
        calls: How many.
        seconds: In how long.
        what: What is limited, for the sentence that refuses it.
    """

    def __init__(self, calls: int, seconds: float, what: str) -> None:
        self.calls, self.seconds, self.what = calls, seconds, what
        self._lock = threading.Lock()
        self._made: dict[str, deque[float]] = {}

    def check(self, request: gr.Request | None) -> None:
        """Count one call of a visitor.

        Raises:
            UserError: There were too many.
        """
        now = time.monotonic()
        with self._lock:
            for name in [name for name, made in self._made.items() if now - made[-1] > self.seconds]:
                del self._made[name]
            counted = []
            for name, calls in self._allowed(request).items():
                made = self._made.get(name, deque())
                while made and now - made[0] > self.seconds:
                    made.popleft()
                if len(made) >= calls:
                    whom = "" if calls == self.calls else " for all who share your address"
                    minutes = max(1, round((self.seconds - (now - made[0])) / 60))
                    raise UserError(
                        f"{self.what} is limited to {calls} times in {self.seconds / 60:.0f} minutes{whom}.",
                        f"Try again in about {minutes} minutes.",
                    )
                counted.append((name, made))
            for name, made in counted:
                made.append(now)
                self._made[name] = made

    def _allowed(self, request: gr.Request | None) -> dict[str, int]:
        """Return how many calls are allowed to whom: to the open page, and to its address."""
        address = str(getattr(getattr(request, "client", None), "host", "") or "unknown")
        page = str(getattr(request, "session_hash", None) or address)
        return {f"page {page}": self.calls, f"address {address}": self.calls * SETTINGS.visitors_per_address}
