"""How often one visitor may ask for what could be misused in bulk."""

import threading
import time
from collections import deque

import gradio as gr

from backend.errors import UserError


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
        visitor = _name(request)
        now = time.monotonic()
        with self._lock:
            for name in [name for name, made in self._made.items() if now - made[-1] > self.seconds]:
                del self._made[name]
            made = self._made.setdefault(visitor, deque())
            while made and now - made[0] > self.seconds:
                made.popleft()
            if len(made) >= self.calls:
                minutes = max(1, round((self.seconds - (now - made[0])) / 60))
                raise UserError(
                    f"{self.what} is limited to {self.calls} times in {self.seconds / 60:.0f} minutes.",
                    f"Try again in about {minutes} minutes.",
                )
            made.append(now)


def _name(request: gr.Request | None) -> str:
    """Name a visitor by the address; a new page is no new visitor."""
    client = getattr(request, "client", None)
    return str(getattr(client, "host", "") or getattr(request, "session_hash", "") or "unknown")
