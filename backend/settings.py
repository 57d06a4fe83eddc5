"""What the environment may set, read once."""

import os
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """Settings of one process; every field can be set by the environment variable named beside it."""

    profile: str = field(default_factory=lambda: os.environ.get("PROFILE", "embedded"))  # PROFILE
    device: str = field(default_factory=lambda: os.environ.get("DEVICE", "auto"))  # DEVICE: auto, cpu, cuda
    host: str = field(default_factory=lambda: os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    port: int = field(default_factory=lambda: int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    max_bytes: int = field(default_factory=lambda: int(os.environ.get("MAX_UPLOAD_BYTES", str(20_000_000))))
    max_pixels: int = field(default_factory=lambda: int(os.environ.get("MAX_UPLOAD_PIXELS", str(50_000_000))))
    queue_size: int = field(default_factory=lambda: int(os.environ.get("QUEUE_SIZE", "16")))
    weights_dir: Path = ROOT / "weights"


SETTINGS = Settings()
