"""Start the real app in a process of its own, and its answers for programs."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from backend.detectors.efficientnet import build_torchvision_b0
from backend.settings import ROOT
from tests.hub_server import HubServer

START_SECONDS = 240
HOSTED = ("Xicor9/efficientnet-b0-ffpp-c23", "efficientnet_b0_ffpp_c23.pth")  # an entry without a pinned hash


@contextmanager
def app(**environment: str) -> Iterator[str]:
    """Start the app with these variables, and give its address."""
    port = free_port()
    usual = {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "DEVICE": "cpu"}
    variables = {**os.environ, **usual, **environment}
    running = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=variables)
    try:
        _wait_for(f"http://127.0.0.1:{port}", running)
        yield f"http://127.0.0.1:{port}"
        assert running.poll() is None, f"the app stopped by itself with exit code {running.returncode}"
    finally:
        running.terminate()
        running.wait(timeout=120)


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(url: str, running: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert running.poll() is None, "the app stopped before it answered"
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the app did not answer")


def host_a_detector(hub: HubServer, folder: Path) -> bytes:
    """Put a detector with random weights on the Hub, under the name and in the layout of a published one."""
    torch.manual_seed(0)
    path = folder / "published.pth"
    torch.save(build_torchvision_b0().state_dict(), path)
    hub.add(*HOSTED, path.read_bytes())
    return path.read_bytes()
