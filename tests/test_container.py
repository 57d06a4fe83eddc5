"""The container and the Space: their files say what they should, and the steps of the Dockerfile run as written."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from backend.settings import ROOT, Settings, read_environment
from tests.dockerfile import STEPS, environment, ignored, left_out, values


def test_the_image_is_slim_and_runs_as_a_user():
    assert [name for name, _ in STEPS[:2]] == ["ARG", "FROM"]
    assert values("FROM") == ["python:${PYTHON}-slim"]
    assert values("USER") == ["user"]
    order = [name for name, _ in STEPS]
    assert order.index("USER") < order.index("CMD")
    assert "--uid 1000 user" in values("RUN")[0]
    # Nothing after the user is chosen needs rights that it has not.
    after = STEPS[order.index("USER") :]
    assert not any(
        re.search(r"\b(apt|apt-get|pip|useradd|chown)\b", argument) for name, argument in after if name == "RUN"
    )


def test_its_port_is_the_apps_and_its_variables_are_settings():
    variables = environment()
    assert values("EXPOSE") == [variables["GRADIO_SERVER_PORT"]] == [str(Settings().port)] == ["7860"]
    settings = read_environment(variables)
    assert (settings.host, settings.port, str(settings.cache_dir)) == ("0.0.0.0", 7860, variables["WEIGHTS_CACHE"])
    assert variables["WEIGHTS_CACHE"] in values("RUN")[0], "the cache belongs to the user"
    assert not {"VARIANT", "HUB_WEIGHTS"} & variables.keys()


def test_the_image_starts_the_app_and_checks_its_health():
    assert json.loads(values("CMD")[0]) == ["python", "app.py"]
    (check,) = values("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    compile(command[2], "health", "exec")
    assert "http://127.0.0.1:7860/health" in command[2]


def test_everything_it_copies_is_there():
    assert values("COPY") == ["requirements.txt ./", "--chown=user:user . ."]
    assert not ignored(ROOT / "requirements.txt")
    for name in (
        "app.py",
        "backend/cli/main.py",
        "tabs/components.py",
        "tabs/style.css",
        "tabs/templates/table.html",
        "weights/registry.toml",
    ):
        assert (ROOT / name).exists() and not ignored(ROOT / name), name
    for folder, pattern in (("weights", "*.safetensors"), ("weights", "*.toml"), ("examples", "*.json")):
        files = list((ROOT / folder).glob(pattern))
        assert files and not any(ignored(file) for file in files)
    for name in (".git/config", ".venv/bin/python", "tests/tabs/test_app.py", "runs/x", "backend/__pycache__/cli.pyc"):
        assert ignored(ROOT / name), name


def test_nothing_that_the_app_imports_is_left_out():
    for file in (path for folder in ("backend", "tabs") for path in (ROOT / folder).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (tests|benchmarks)\b", text, flags=re.MULTILINE), file


def build(folder: Path, **arguments: str) -> tuple[int, list[str]]:
    """Run the shell steps as written, with commands that only write down how they were called."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    log = folder / "log"
    log.write_text("")
    for name in ("pip", "python", "useradd", "install"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n')
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    usual = dict(argument.split("=", 1) for argument in values("ARG"))
    variables = {key: value.strip('"') for key, value in usual.items()} | arguments
    code = 0
    for step in values("RUN"):
        environ = {"PATH": f"{tools}:/usr/bin:/bin", **variables}
        code = subprocess.run(["/bin/sh", "-c", step], env=environ, capture_output=True, check=False).returncode
        if code:
            break
    return code, log.read_text().splitlines()


def test_the_steps_run_as_written(tmp_path):
    code, calls = build(tmp_path)
    assert code == 0
    assert calls == [
        "useradd --create-home --uid 1000 user",
        "install --directory --owner user --group user /home/user/app /home/user/weights",
        "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu",
        "pip install -r requirements.txt",
        "python -m backend weights verify",
    ]


def test_cuda_and_models_of_the_hub_come_only_when_asked(tmp_path):
    code, calls = build(tmp_path, VARIANT="cuda", HUB_WEIGHTS="ffhq_1024 xception_ffpp")
    assert code == 0
    assert not any("whl/cpu" in call for call in calls)
    assert "python -m backend weights fetch ffhq_1024 xception_ffpp" in calls
    code, calls = build(tmp_path, VARIANT="rocm")
    assert code == 1 and not any(call.startswith("pip") for call in calls)


def front_matter() -> dict[str, str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    lines = text.split("---\n", 2)[1].splitlines()
    pairs = (line.partition(": ") for line in lines if line and not line.startswith((" ", "-")))
    return {key.rstrip(":"): value.strip('"') for key, _, value in pairs}


def test_the_readme_describes_a_space_and_still_begins_with_two_commands():
    metadata = front_matter()
    assert metadata["sdk"] == "gradio" and (ROOT / metadata["app_file"]).is_file()
    assert re.fullmatch(r"6\.\d+\.\d+", metadata["sdk_version"])
    assert metadata["python_version"] in {"3.10", "3.12"}
    assert len(metadata["short_description"]) <= 60
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    first, second = re.findall(r"```sh\n(.+?)\n```", text, flags=re.DOTALL)[:2]
    assert first.endswith("python app.py") and "\n" not in first
    assert second.endswith("python -m pytest -rs") and "\n" not in second
    assert text.lstrip().startswith("# ")


def test_the_version_of_a_space_is_one_that_the_app_allows():
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (requirement,) = [Requirement(line.partition("#")[0].strip()) for line in lines if line.startswith("gradio")]
    assert requirement.specifier.contains(front_matter()["sdk_version"])


def test_the_documents_say_how_to_deploy():
    assert "docs/deploy.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for word in ("Space", "docker build", "VARIANT=cuda", "HUB_WEIGHTS", "pip download", "/health", "WEIGHTS_REPO"):
        assert word in text, word


def test_links_between_documents_lead_somewhere():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "weights" / "MODELCARD.md"]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_health_answers_beside_the_page():
    import gradio as gr
    from gradio.routes import App

    from tabs import api

    with gr.Blocks() as demo:
        gr.Markdown("page")
    client = TestClient(App.create_app(demo, app_kwargs={"routes": api.health_routes()}))
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok" and answer.json()["device"] in {"cpu", "cuda", "mps"}
    assert client.get("/gradio_api/info").status_code == 200


@pytest.mark.slow
def test_the_app_starts_in_a_clean_root_as_the_images_user_where_that_is_possible():
    root = Path(tempfile.mkdtemp(prefix="container-"))
    try:
        app_folder = root / "app"
        shutil.copytree(ROOT, app_folder, ignore=left_out)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = environment() | {"HOME": str(root), "WEIGHTS_CACHE": str(root / "weights")}
        variables |= {"GRADIO_SERVER_PORT": str(port), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        other = {"user": 1000, "group": 1000, "extra_groups": []} if _others_may_run() else {}
        if other:
            for path in (root, *root.rglob("*")):
                os.chown(path, 1000, 1000)
        command = [sys.executable, *json.loads(values("CMD")[0])[1:]]
        app = subprocess.Popen(
            command, cwd=app_folder, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **other
        )
        try:
            answer = _health(app, port)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
                assert b"Is this face forged?" in page.read()
        finally:
            app.terminate()
            app.wait(30)
        assert answer["status"] == "ok"
    finally:
        shutil.rmtree(root)


def _others_may_run() -> bool:
    """Say whether this process may start Python as another user; that Python may lie where only its owner looks."""
    places = {Path(sys.executable).absolute(), Path(sys.executable).resolve(), Path(os.__file__)}
    folders = {parent for place in places for parent in (place, *place.parents) if parent.is_dir()}
    return os.geteuid() == 0 and all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def _health(app: subprocess.Popen, port: int) -> dict:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return json.loads(answer.read())
        except OSError:
            assert app.poll() is None, app.stderr.read().decode()
            time.sleep(1)
    pytest.fail("the app did not answer")


def _a_root_of_its_own_is_possible() -> bool:
    """Say whether this process may mount, and has what starts another one that sees none of it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("useradd") is None:
        return False
    return subprocess.run([*APART, "true"], capture_output=True, check=False).returncode == 0


APART = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.mark.slow
def test_every_step_runs_as_written_in_an_empty_root_and_the_app_starts_as_its_user():
    """`image_replay` says what stands in for the base image and for the download of packages."""
    if not _a_root_of_its_own_is_possible():
        pytest.skip("this process may not mount, so there is no root of its own to build the image in")
    root = Path(tempfile.mkdtemp(prefix="image-"))
    try:
        root.chmod(0o755)
        command = [*APART, sys.executable, str(ROOT / "tests" / "image_replay.py"), str(root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])
        home = root / "home" / "user"
        assert home.stat().st_uid == 1000 and (home / "app" / "app.py").stat().st_uid == 1000
        assert re.search(r"^user:[^:]*:1000:", (root / "etc" / "passwd").read_text(), flags=re.MULTILINE)
        assert not (home / "app" / "tests").exists() and not (home / "app" / ".git").exists()
        installed = next(line for line in report["said"] if "Requirement already satisfied: gradio" in line)
        assert "Collecting" not in installed and "files are here and whole" in report["said"][-1]
        assert report["uid"] == 1000 and report["page"] and report["health"]["status"] == "ok"
        # The home and the folder for what is passing are all that the app can write to.
        assert report["writable"] and all(
            folder == "/tmp" or folder.startswith(("/tmp/", "/home/user")) for folder in report["writable"]
        )
    finally:
        assert not (root / "usr").exists() or not any((root / "usr").iterdir()), "nothing of the machine is left there"
        shutil.rmtree(root)
