"""The page in the browser, on Gradio."""

import os

import gradio as gr
from fastapi import FastAPI

from ..service import Service
from . import models, training, videos
from .foreign import OnlyUploads
from .forms import HIDDEN
from .made import routes
from .making import Making, add_making_tabs
from .queue_panel import add_panel
from .shown import shown_routes
from .theme import CSS, JS, make_theme

MOST_UPLOADED = "500mb"
"""Size of the largest file that is taken."""
_MOST_EVENTS = 100
"""Of what was pressed or changed on all open pages, that waits at once."""
_CLEANING = 3600, 24 * 3600
"""How often uploads are looked through, and the age at which they go, in seconds."""
_HEAD = """<div id="head"><h1>CogVideoX</h1>
<p>Describe a video, press the button, and watch how it becomes clearer.</p></div>"""


_TABS_IN_VIEW = """() => {
  document.querySelector('#tabs [role="tablist"]')?.scrollIntoView({block: 'nearest'});
}"""


def add_page(app: FastAPI, service: Service) -> FastAPI:
    """Mounts the page at ``/``. Routes that are added later aren't reached: add it last.

    Gradio is given no folder that it may serve; videos and previews are served by the id of their
    job. Uploads go to a folder in the service's home.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(service.home.uploads)
    app.add_middleware(OnlyUploads, folder=service.home.uploads)
    app.include_router(routes(service))
    app.include_router(shown_routes(service))
    blocks = make_blocks(service)
    blocks.queue(max_size=_MOST_EVENTS)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        allowed_paths=[],
        max_file_size=MOST_UPLOADED,
        show_error=False,  # errors of ours are shown by the tabs
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        theme=make_theme(),
        head=f"<style>{CSS}</style>",  # as css, each selector would be changed
        js=JS,
    )


def make_blocks(service: Service) -> gr.Blocks:
    """The page: the tabs, and beside them the panel that is on all of them."""
    with gr.Blocks(
        title="CogVideoX", analytics_enabled=False, delete_cache=_CLEANING, fill_width=True
    ) as blocks:
        gr.HTML(_HEAD)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=320):
                making = _add_tabs(service, blocks)
            with gr.Column(scale=2, min_width=320, elem_id="now"):
                add_panel(service)
        blocks.load(making.refresh, making.lists, making.lists, **HIDDEN)
    return blocks


def _add_tabs(service: Service, blocks: gr.Blocks) -> Making:
    """All tabs. A further one is a function that is called here, within `tabs`."""
    with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
        making = add_making_tabs(service, blocks, tabs)
        with gr.Tab("My videos", id="videos", elem_id="tab-videos"):
            videos.add_tab(service, making)
        with gr.Tab("Fine-tuning", id="training", elem_id="tab-training"):
            training.add_tab(service, making)
        with gr.Tab("Models", id="models", elem_id="tab-models"):
            models.add_tab(service)
    tabs.change(None, None, None, js=_TABS_IN_VIEW, **HIDDEN)  # also if a button has chosen it
    return making
