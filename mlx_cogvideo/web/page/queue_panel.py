"""The panel "Now": what is being made, the finished video, the queue, and what has stopped."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ...errors import CogVideoXError
from ..jobs import DONE, FAILED, RUNNING, STOPPED, Job, UnknownJobError
from ..service import Service
from .made import preview_url, video_url
from .theme import SPEAKS
from .words import (
    STATES,
    escape,
    file_name,
    left_in_words,
    problem,
    stage_in_words,
    title_of,
)

PARTS = ("progress", "actions", "preview", "queue", "finished", "over")
"""The parts of the panel, which change one by one: a video that plays isn't drawn again."""
_MOST_OVER = 10
_EVERY = 1.0

_BUTTONS = """
let held = null;
const key = (button) => button.dataset.action + ' ' + button.dataset.job;
element.addEventListener('focusin', (event) => {
  const button = event.target.closest('button[data-action]');
  held = button ? key(button) : null;
});
element.addEventListener('focusout', (event) => { if (event.relatedTarget) held = null; });
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button || button.disabled) return;
  if (button.dataset.ask && !window.confirm(button.dataset.ask)) return;
  trigger('click', {action: button.dataset.action, job: button.dataset.job});
});
watch('value', () => {
  const at = document.activeElement;
  if (held === null || (at !== document.body && !element.contains(at))) return;
  const buttons = [...element.querySelectorAll('button[data-action]:not([disabled])')];
  const job = held.split(' ')[1];
  const wanted = buttons.find((button) => key(button) === held)
    || buttons.find((button) => button.dataset.job === job) || buttons[0];
  if (wanted && wanted !== at) wanted.focus();
});
"""
_PLAYS = """
const still = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
const play = () => { if (!still) element.querySelector('video')?.play().catch(() => {}); };
watch('value', play);
play();
"""


def add_panel(service: Service) -> None:
    """Adds the panel to the page, within which it has to be called."""
    gr.HTML('<div class="part"><h2>Now</h2></div>')
    spoken = gr.HTML(elem_id="now-spoken", elem_classes="unseen", js_on_load=SPEAKS)
    said = gr.HTML(elem_id="now-said", elem_classes="said", js_on_load=SPEAKS)
    parts = {}
    for name in PARTS:
        js = {"finished": _PLAYS, "progress": "", "preview": ""}.get(name, _BUTTONS)
        parts[name] = gr.HTML(elem_id=f"now-{name}", elem_classes="part", js_on_load=js or None)
    shown = gr.State({})
    outputs = [shown, spoken, *parts.values()]
    hidden: dict[str, Any] = {
        "api_visibility": "private",
        "show_progress": "hidden",
        "queue": False,
    }

    def update(before: dict[str, str]) -> list[Any]:
        return _changes(before, _drawn(service))

    def act(before: dict[str, str], event: gr.EventData) -> list[Any]:
        message = carry_out(service, getattr(event, "action", ""), getattr(event, "job", ""))
        return [message, *update(before)]

    gr.Timer(_EVERY).tick(update, shown, outputs, **hidden)
    for name in ("actions", "queue", "over"):
        parts[name].click(act, shown, [said, *outputs], **hidden)


def carry_out(service: Service, action: str, job_id: str) -> str:
    """Does what a button of the panel is for; returns what to say, as HTML."""
    actions: dict[str, Callable[[str], None]] = {
        "stop": service.runner.stop,
        "resume": service.runner.resume,
        "remove": service.runner.remove,
        "up": lambda name: _move(service, name, -1),
        "down": lambda name: _move(service, name, 1),
    }
    try:
        if action in actions:
            actions[action](str(job_id))
    except UnknownJobError:
        return '<p class="quiet">It was removed already.</p>'
    except CogVideoXError as error:
        return f'<p class="bad">{escape(problem(error, service.home.folder))}</p>'
    return ""


def _move(service: Service, job_id: str, by: int) -> None:
    place = service.runner.place(job_id)
    if place is not None:
        service.runner.move(job_id, place + by)


def _changes(before: dict[str, str], after: dict[str, str]) -> list[Any]:
    """Updates for the parts that have changed, after what is shown from now on."""
    new = [
        gr.skip() if before.get(name) == after[name] else after[name] for name in ("spoken", *PARTS)
    ]
    return [after, *new]


def _drawn(service: Service) -> dict[str, str]:
    """Each part as HTML."""
    jobs = service.store.all()
    running = next((job for job in jobs if job.state == RUNNING), None)
    finished = [job for job in jobs if job.state == DONE and job.kind == "video"]
    last = max(finished, key=lambda job: job.ended or 0, default=None)
    over = [job for job in jobs if job.state in (STOPPED, FAILED)]
    over.sort(key=lambda job: job.ended or job.created, reverse=True)
    return {
        "spoken": _spoken(service, running, last),
        "progress": _progress(service, running),
        "actions": "" if running is None else _running_actions(service, running),
        "preview": "" if running is None else _preview(service, running),
        "finished": "" if last is None else _finished(last),
        "queue": _list("Queue", "ol", [_waiting(*each) for each in _places(service)]),
        "over": _list("Stopped", "ul", [_stopped(service, job) for job in over[:_MOST_OVER]]),
    }


def _places(service: Service) -> Iterator[tuple[Job, int, int]]:
    waiting = service.store.queued()
    return ((job, place, len(waiting)) for place, job in enumerate(waiting))


def _spoken(service: Service, running: Job | None, last: Job | None) -> str:
    """What a screen reader says: only at the beginning, each quarter, and the end."""
    if running is not None:
        quarter = int(service.runner.progress(running.id).fraction * 4) * 25
        return f"{escape(title_of(running))}: {quarter} percent"
    return "" if last is None else f"Finished: {escape(title_of(last))}"


def _progress(service: Service, job: Job | None) -> str:
    if job is None:
        return '<p class="quiet">Nothing is being made. Describe a video and press Make video.</p>'
    progress = service.runner.progress(job.id)
    percent = round(100 * progress.fraction)
    words = [stage_in_words(progress), f"{percent} %", left_in_words(progress)]
    return (
        f'<div class="title">{escape(title_of(job))}</div>'
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
        f"<p>{escape(', '.join(filter(None, words)))}</p>"
    )


def _running_actions(service: Service, job: Job) -> str:
    if service.runner.is_stopping(job.id):
        return '<p class="quiet">It stops after this step.</p>'
    return _buttons(_button("stop", job, "Stop"), _cancel(job))


def _preview(service: Service, job: Job) -> str:
    url = preview_url(service, job)
    return "" if url is None else f'<img src="{escape(url)}" alt="Preview of the video so far">'


def _finished(job: Job) -> str:
    title, url = escape(title_of(job)), escape(video_url(job.id))
    name = escape(file_name(title_of(job), job.about["settings"].get("seed"), ".mp4"))
    return (
        f'<h3>Finished</h3><div class="title">{title}</div>'
        f'<video src="{url}" controls loop muted playsinline aria-label="{title}"></video>'
        f'<p><a href="{url}" download="{name}">Save the video</a></p>'
    )


def _list(heading: str, kind: str, items: list[str]) -> str:
    entries = "".join(f"<li>{item}</li>" for item in items)
    return f"<h3>{heading} ({len(items)})</h3><{kind}>{entries}</{kind}>" if items else ""


def _waiting(job: Job, place: int, count: int) -> str:
    return f'<div class="title">{escape(title_of(job))}</div>' + _buttons(
        _button("up", job, "Move up", disabled=place == 0),
        _button("down", job, "Move down", disabled=place == count - 1),
        _button("stop", job, "Stop"),
        _cancel(job),
    )


def _stopped(service: Service, job: Job) -> str:
    error = "" if job.error is None else problem(job.error, service.home.folder)
    again = "Resume" if job.state == STOPPED else "Try again"
    percent = round(100 * service.runner.progress(job.id).fraction)
    words = STATES[job.state] + (f" at {percent} %" if percent else "")
    return (
        f'<div class="title">{escape(title_of(job))}</div><div class="quiet">{words}</div>'
        + (f'<div class="bad">{escape(error)}</div>' if job.state == FAILED and error else "")
        + _buttons(_button("resume", job, again), _cancel(job, "Remove"))
    )


def _cancel(job: Job, word: str = "Cancel") -> str:
    return _button("remove", job, word, ask="Remove it, with what was made of it so far?")


def _button(action: str, job: Job, word: str, *, disabled: bool = False, ask: str = "") -> str:
    label = escape(f"{word}: {title_of(job)}")
    return (
        f'<button type="button" data-action="{action}" data-job="{escape(job.id)}" '
        f'aria-label="{label}"'
        + (f' data-ask="{escape(ask)}"' if ask else "")
        + (" disabled" if disabled else "")
        + f">{word}</button>"
    )


def _buttons(*buttons: str) -> str:
    return f'<div class="buttons">{"".join(buttons)}</div>'
