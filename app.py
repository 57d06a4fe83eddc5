"""Assemble the tabs and launch the app."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import logging
import signal
import sys
import threading

from backend import settings, visitors_files
from backend.errors import UserError

try:
    settings.read()  # before gradio, which trips over some of the same variables
except UserError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)

if "GRADIO_TEMP_DIR" not in os.environ:  # what is uploaded and shown lies there; read when gradio is imported
    os.environ["GRADIO_TEMP_DIR"] = str(visitors_files.private_folder())

import gradio as gr

from backend import runtime
from backend.settings import SETTINGS
from tabs import common, gpu, health
from tabs.choosers import Choosers
from tabs.counterfactual import CounterfactualTab
from tabs.evaluate import EvaluateTab
from tabs.explain import ExplainTab
from tabs.photo import PhotoStep
from tabs.trace_removal import TraceRemovalTab
from tabs.where import WherePanel

TITLE = "Is this face forged?"
SESSIONS = 200  # each keeps half a megabyte until as many others came after it
INTRODUCTION = (
    "Face-forgery detectors are programs that say whether a face in a photo is real or fake. "
    "This page shows what they say, how often they are wrong, and what would change their minds."
)


def build() -> gr.Blocks:
    """Return the app, not yet running."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
        photo = PhotoStep()
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Counterfactual", id="counterfactual"):
                search = CounterfactualTab(photo)
            with gr.Tab("Trace Removal", id="trace-removal"):
                removal = TraceRemovalTab(photo)
            with gr.Tab("Explain", id="explain"):
                explain = ExplainTab(photo)
            with gr.Tab("Evaluate", id="evaluate"):
                EvaluateTab()
        where = WherePanel(Choosers([search.detector, search.video.detector, explain.detector], [search.generator]))
        photo.connect([search, removal, explain])
        where.wire(demo)
        demo.unload(common.forget)
    gpu.use(demo)
    return demo.queue(max_size=SETTINGS.queue_size, default_concurrency_limit=1)


def prepare() -> None:
    """Fetch models that are missing, where the settings say from where, and load all."""
    if SETTINGS.weights_repo:
        from backend.hub import fetching  # the Hub's client takes a second to import

        try:
            fetching.complete()
        except UserError:
            logging.getLogger("app").exception("Models that are missing could not be fetched")
    common.warm_up()


def main() -> None:
    """Launch the app, and load the models once the page can be read."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        runtime.device()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    runtime.keep_freed_memory()
    demo = build()
    if gpu.lent():  # before any process is forked from this one: it would inherit a lock that a thread holds
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
        css_paths=[common.STYLE],
        js=common.SCRIPT,
        theme=common.theme(),
        mcp_server=False,
        app_kwargs={"routes": health.routes()},
        share=False,
        state_session_capacity=SESSIONS,
        prevent_thread_lock=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stop by the system tidies up too
    if not gpu.lent():
        threading.Thread(target=prepare, name="warm-up", daemon=True).start()
    demo.block_thread()


if __name__ == "__main__":
    main()
