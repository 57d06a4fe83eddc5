"""Run every step of the Dockerfile as written in an empty root of its own, and start the app there.

    unshare --mount --net --pid --fork --kill-child --mount-proc python tests/image_replay.py FOLDER

Real are: the accounts that `useradd` makes, the files, the paths, the rights, the user with number 1000, port 7860,
every RUN with its own `pip`, the health check and the command. There is no network at all, neither for the steps nor
for the app. Two things are stood in for: the base image, by this machine's programs (read-only) and a fresh virtual
environment of the Python that runs this, whatever its version; and the download of packages, since `pip` finds
those of this Python installed and says that they satisfy the list. The last line that is written is what was found.
"""

import fcntl
import json
import os
import shutil
import site
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.settings import ROOT
from tests.dockerfile import STEPS, assigned, left_out

IMAGE = "/opt/image"  # where the Python of the base image would be in /usr/local
ACCOUNTS = (
    "passwd",
    "group",
    "login.defs",
    "nsswitch.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
)
START_SECONDS = 400
ASK = """
import json, urllib.request
page = urllib.request.urlopen("http://127.0.0.1:7860/", timeout=60).read().decode()
health = json.load(urllib.request.urlopen("http://127.0.0.1:7860/health", timeout=60))
print(json.dumps({"health": health, "page": "Is this face forged?" in page}))
"""


class Image:
    """An empty root that becomes the image.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.variables = {"PATH": f"{IMAGE}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
        self.arguments: dict[str, str] = {}
        self.folder = "/"
        self.user = "root"
        self.check: list[str] = []
        self.command: list[str] = []
        self.said: list[str] = []

    def begin(self) -> None:
        """Mount this machine's programs, and make a virtual environment: what FROM would give."""
        places = [Path("/usr"), Path(sys.base_prefix), *map(Path, site.getsitepackages())]
        for place in dict.fromkeys(place.resolve() for place in places):
            # Some systems name folders for packages that nobody has made.
            if place.is_dir() and (place == Path("/usr") or Path("/usr") not in place.parents):
                self._mount_readable(place)
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if Path("/", name).is_symlink():
                (self.root / name).symlink_to(Path("/", name).readlink())
            elif Path("/", name).is_dir():
                self._mount_readable(Path("/", name))
        for name in ("proc", "dev", "tmp", "etc", "root", "opt", "home"):
            (self.root / name).mkdir(exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        _run(["mount", "-t", "proc", "proc", str(self.root / "proc")])
        _run(["mount", "--bind", "/dev", str(self.root / "dev")])
        for name in ACCOUNTS:
            source = Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, self.root / "etc" / name, symlinks=True)
            elif source.exists():
                shutil.copy(source, self.root / "etc" / name)
        (self.root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # as every container has it
        for name in ("passwd", "group"):  # people are of this machine, and in no base image
            file = self.root / "etc" / name
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if not 1000 <= int(line.split(":")[2]) < 60000))
        self.inside([str(Path(sys.executable).resolve()), "-m", "venv", IMAGE])
        (site_packages,) = (self.root / IMAGE.lstrip("/") / "lib").glob("python*/site-packages")
        # Before Python 3.12 a fresh environment has a setuptools of its own, which would hide the newer one.
        for old in ("setuptools", "setuptools-*", "pkg_resources", "_distutils_hack"):
            for folder in site_packages.glob(old):
                shutil.rmtree(folder)
        (site_packages / "distutils-precedence.pth").unlink(missing_ok=True)
        (site_packages / "installed.pth").write_text("\n".join(site.getsitepackages()) + "\n")

    def take(self, name: str, argument: str) -> None:
        """Follow one instruction."""
        steps: dict[str, Callable[[str], None]] = {
            "ARG": lambda text: self.arguments.update(assigned(text)),
            "ENV": lambda text: self.variables.update(assigned(text)),
            "WORKDIR": self._work_in,
            "USER": lambda text: setattr(self, "user", text),
            "COPY": self._copy,
            "RUN": lambda text: self.said.append(self.inside(["/bin/sh", "-c", text], **self.arguments)),
            "HEALTHCHECK": lambda text: setattr(self, "check", json.loads(text.partition("CMD ")[2])),
            "CMD": lambda text: setattr(self, "command", json.loads(text)),
            "EXPOSE": lambda _text: None,
        }
        steps[name](argument)

    def inside(self, command: list[str], **variables: str) -> str:
        """Run a command in the image as its user of now, and return what it says."""
        done = subprocess.run(command, text=True, capture_output=True, check=False, **self._place(variables))
        if done.returncode:
            raise SystemExit(f"{command} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def start(self) -> dict[str, Any]:
        """Start the app, wait until the health check passes, and return what is seen of it."""
        with (self.root / "tmp" / "log").open("wb") as log:
            app = subprocess.Popen(self.command, stdout=log, stderr=log, **self._place({}))
        try:
            self._wait(app)
            state = json.loads(self.inside(["python", "-c", ASK]).splitlines()[-1])
            status = Path(f"/proc/{app.pid}/status").read_text().splitlines()
            (state["uid"],) = {int(value) for line in status if line.startswith("Uid:") for value in line.split()[1:]}
            writable = "find / -xdev -type d -writable -not -path '/proc*' -not -path '/dev*' 2>/dev/null || true"
            return state | {"writable": self.inside(["/bin/sh", "-c", writable]).splitlines()}
        finally:
            app.terminate()
            app.wait(60)

    def _wait(self, app: subprocess.Popen) -> None:
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(self.check, capture_output=True, check=False, **self._place({})).returncode:
            if app.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the app did not answer:\n{(self.root / 'tmp' / 'log').read_text()}")
            time.sleep(2)

    def _place(self, variables: dict[str, str]) -> dict[str, Any]:
        lines = [line.split(":") for line in (self.root / "etc" / "passwd").read_text().splitlines()]
        number, group = next((int(line[2]), int(line[3])) for line in lines if line[0] == self.user)

        def enter() -> None:
            os.chroot(self.root)
            os.chdir(self.folder)
            os.setgroups([])
            os.setgid(group)
            os.setuid(number)

        # The number of threads is this machine's affair, and none of the image's.
        threads = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
        return {"env": {**threads, **variables, **self.variables}, "preexec_fn": enter}

    def _work_in(self, folder: str) -> None:
        self.folder = folder
        (self.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _copy(self, argument: str) -> None:
        *options, source, target = argument.split()
        place = self.root / self.folder.lstrip("/") / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=left_out, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / source, place)
        for option in options:
            user, self.user = self.user, "root"
            self.inside(["chown", "-R", option.removeprefix("--chown="), str(Path(self.folder, target))])
            self.user = user

    def _mount_readable(self, place: Path) -> None:
        target = self.root / str(place).lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        _run(["mount", "--bind", str(place), str(target)])
        _run(["mount", "-o", "remount,bind,ro", str(target)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _loopback() -> None:
    """Switch on the one connection that there is: to oneself."""
    with socket.socket() as any_one:
        fcntl.ioctl(any_one, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running


def main() -> None:
    """Build and start the image in the folder that is named."""
    os.umask(0o022)
    image = Image(Path(sys.argv[1]))
    _loopback()
    image.begin()
    first = next(number for number, (name, _) in enumerate(STEPS) if name == "FROM")
    for name, argument in STEPS[first + 1 :]:
        image.take(name, argument)
    sys.stdout.write(json.dumps({"said": image.said, **image.start()}) + "\n")


if __name__ == "__main__":
    main()
