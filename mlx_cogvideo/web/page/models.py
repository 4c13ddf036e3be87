"""The tab "Models": which ones there are, how large they are, and their downloads."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import gradio as gr

from ...checkpoints.variants import ALIASES
from ...device import size
from ...errors import CogVideoXError
from ..downloads import BITS, copy_bytes
from ..jobs import QUEUED, RUNNING, STOPPED, Job
from ..models import Model, list_models
from ..service import Service
from .forms import HIDDEN
from .theme import SPEAKS
from .words import escape, left_in_words, place_in_words, problem

_EVERY = 2.0
_GETS = """
let held = null;
element.addEventListener('focusin', (event) => {
  held = event.target.closest('button[data-model]')?.getAttribute('aria-label') || null;
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-model]');
  if (!button || !window.confirm(button.dataset.ask)) return;
  trigger('click', {model: button.dataset.model, bits: button.dataset.bits});
});
watch('value', () => {
  if (held === null || document.activeElement !== document.body) return;
  const buttons = [...element.querySelectorAll('button[data-model]')];
  buttons.find((button) => button.getAttribute('aria-label') === held)?.focus();
});
"""
_TABLE = """
.wide { overflow-x: auto; }
table { width: 100%; border: 0; border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0; border: 0;
  border-top: 1px solid var(--border-color-primary); }
tr { border: 0; }
tbody th { font-weight: 600; }
tbody th .quiet { font-weight: 400; }
@media (max-width: 600px) {
  thead { display: none; }
  tr, th, td { display: block; }
  td { border: 0; padding-top: 0; }
}
"""
_ABOUT = """<p class="quiet">A copy in 4 bits needs the least memory and is the best choice for most
Macs; 8 bits are closer to the published model. A copy is made of the published model, which is
downloaded first; its button says how large it will be. A download that was stopped continues
with the files that it lacks.</p>"""


def add_tab(service: Service) -> None:
    """Adds what the tab holds, within which it has to be called."""
    drawn = gr.State("")
    table = gr.HTML(
        elem_id="models-table", elem_classes="part", css_template=_TABLE, js_on_load=_GETS
    )
    said = gr.HTML(elem_id="models-said", elem_classes="said", js_on_load=SPEAKS)

    def update(before: str) -> list[Any]:
        html = _table(service)
        return [gr.skip(), gr.skip()] if html == before else [html, html]

    def get(before: str, event: gr.EventData) -> list[Any]:
        name, bits = str(getattr(event, "model", "")), str(getattr(event, "bits", ""))
        try:
            job = service.add_download(name, int(bits) if bits.isdecimal() else None)
            where = place_in_words(service.runner, job)
            message = f'<p class="well">The download {where}.</p>'
        except CogVideoXError as error:
            message = f'<p class="bad">{escape(problem(error, service.home.folder))}</p>'
        return [message, *update(before)]

    gr.Timer(_EVERY).tick(update, drawn, [drawn, table], queue=False, **HIDDEN)
    table.click(get, drawn, [said, drawn, table], **HIDDEN)


def _table(service: Service) -> str:
    models = list_models(service.home)
    here = {model.name for model in models if model.is_here}
    jobs = {job.about["name"]: job for job in service.store.all() if job.kind == "model"}
    rows = "".join(_row(service, model, here, jobs) for model in models)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Model", "Size", "", "Get it"))
    heads = heads.replace('<th scope="col"></th>', '<th scope="col">On this machine</th>')
    return (
        f'{_ABOUT}<div class="wide"><table class="models"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(service: Service, model: Model, here: set[str], jobs: dict[str, Job]) -> str:
    kind = "picture to video" if model.takes_image else "text to video"
    title = f'<th scope="row">{escape(model.title)}<br><span class="quiet">{kind}</span></th>'
    there = "yes" if model.is_here else f"no: {size(model.download)} to download"
    gets = "".join(_gets(service, model, here, jobs)) if model.name in ALIASES else ""
    gets = f'<div class="buttons">{gets}</div>'
    return f"<tr>{title}<td>{size(model.bytes)}</td><td>{there}</td><td>{gets}</td></tr>"


def _gets(service: Service, model: Model, here: set[str], jobs: dict[str, Job]) -> Iterator[str]:
    """For each form of an official model its button, or how far its download is."""
    for bits in (*BITS, None):
        name = model.name if bits is None else f"{model.name}-q{bits}"
        form = "as published" if bits is None else f"{bits} bits"
        job = jobs.get(name)
        if name in here:
            yield f"<p>{form}: here</p>"
        elif job is not None and job.state in (QUEUED, RUNNING):
            yield f"<p>{form}: {escape(_far(service, job))}</p>"
        else:
            yield _button(model, bits, form, job)


@lru_cache(maxsize=100)  # the table is made again every few seconds
def _size_of_copy(model: Model, bits: int) -> str:
    try:
        return f" ({size(copy_bytes(model, bits))})"
    except CogVideoXError:
        return ""


def _far(service: Service, job: Job) -> str:
    if job.state == QUEUED:
        return "waiting"
    progress = service.runner.progress(job.id)
    doing = "downloading" if progress.stage in ("", "download") else "converting"
    words = [f"{doing}, {100 * progress.fraction:.0f} %", left_in_words(progress)]
    return ", ".join(filter(None, words))


def _button(model: Model, bits: int | None, form: str, job: Job | None) -> str:
    copy = "" if bits is None else _size_of_copy(model, bits)
    stopped = "; it was stopped" if job is not None and job.state == STOPPED else ""
    ask = f"Download {size(model.download)}" if model.download else "Make the copy"
    ask += " and make a copy" if bits and model.download else ""
    return (
        f'<button type="button" data-model="{escape(model.name)}" data-bits="{bits or ""}" '
        f'aria-label="{escape(f"Get {model.title} {form}{stopped}")}" '
        f'data-ask="{escape(f"{ask} of {model.title}?")}">{form}{copy}</button>'
    )
