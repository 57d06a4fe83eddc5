"""Assemble the tabs and launch the app."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import logging
import signal
import sys
import threading

from backend import credentials, runtime, settings
from backend.errors import UserError

try:
    settings.read_environment()  # before gradio, which trips over some of the same variables
except UserError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)

if "GRADIO_TEMP_DIR" not in os.environ:  # for uploads and results; read when gradio is imported
    os.environ["GRADIO_TEMP_DIR"] = str(runtime.private_folder())

import gradio as gr

from backend.settings import SETTINGS
from tabs import api, components, events, gpu, visitors
from tabs.counterfactual import CounterfactualTab
from tabs.evaluate import EvaluateTab
from tabs.explain import ExplainTab
from tabs.models import Choosers, ModelsPanel
from tabs.photo import PhotoStep
from tabs.trace_removal import TraceRemovalTab

TITLE = "Is this face forged?"
SESSIONS = 200  # the newest are kept, half a megabyte each
INTRODUCTION = (
    "Face-forgery detectors are programs that look for signs of forgery in the faces of a photo. "
    "This page shows what they find, what they miss, and what would change their answer."
)


def build() -> gr.Blocks:
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
        photo = PhotoStep()
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Counterfactual", id="counterfactual"):
                counterfactual = CounterfactualTab(photo)
            with gr.Tab("Trace Removal", id="trace-removal"):
                removal = TraceRemovalTab(photo)
            with gr.Tab("Explain", id="explain"):
                explain = ExplainTab(photo)
            with gr.Tab("Evaluate", id="evaluate"):
                EvaluateTab()
        detectors = [counterfactual.detector, counterfactual.video.detector, explain.detector]
        models = ModelsPanel(Choosers(detectors, [counterfactual.generator]))
        photo.connect([counterfactual, removal, explain])
        models.wire(demo)
        demo.unload(visitors.forget_visitor)
    gpu.ask_for_gpu(demo)
    return demo.queue(max_size=SETTINGS.queue_size, default_concurrency_limit=1)


def prepare() -> None:
    """Fetch missing models from the repository in the settings, if there is one, and load all models."""
    if SETTINGS.weights_repo:
        from backend.hub import fetching  # the Hub's client takes a second to import

        try:
            fetching.fetch_missing()
        except UserError:
            logging.getLogger("app").exception("Missing models could not be fetched")
    events.warm_up()


def main() -> None:
    """Launch the app, and load the models once the page can be read."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        runtime.device()
        credentials.check_signing()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    runtime.keep_freed_memory()
    demo = build()
    if gpu.is_lent():  # before this process forks: a child would inherit locks that a thread holds
        prepare()
    demo.launch(
        server_name=SETTINGS.host,
        server_port=SETTINGS.port,
        show_error=False,
        max_file_size=max(SETTINGS.max_bytes, SETTINGS.max_video_bytes),
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        allowed_paths=[],
        css_paths=[components.STYLE],
        js=components.SCRIPT,
        theme=components.theme(),
        mcp_server=False,
        app_kwargs={"routes": api.health_routes()},
        share=False,
        state_session_capacity=SESSIONS,
        prevent_thread_lock=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM cleans up too
    if not gpu.is_lent():
        threading.Thread(target=prepare, name="warm-up", daemon=True).start()
    demo.block_thread()


if __name__ == "__main__":
    main()
