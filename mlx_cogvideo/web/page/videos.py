"""The tab "My videos": the finished ones, how they were made, and what can be done with them."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ...device import size
from ...errors import CogVideoXError, InvalidInputError
from ..gallery import ON_A_MAC, PAGE, Gallery, Remake, Video, can_reveal
from ..jobs import Job
from ..service import FILES, Service
from .forms import HIDDEN
from .making import Making
from .shown import file_url, picture_url
from .theme import SPEAKS
from .words import escape, file_name, label_of, place_in_words, problem, short

THIS_MACHINE = {"127.0.0.1", "::1"}
"""Addresses of browsers on the server's own machine."""
_EVERY = 3.0
_LEFT_OUT = {"prompt", "lora", "image_sha256", "video_sha256", *FILES}

_CHOOSES = """
let chosen = null;
const mark = () => element.querySelectorAll('button[data-name]').forEach((button) =>
  button.setAttribute('aria-pressed', String(button.dataset.name === chosen)));
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-name]');
  if (!button) return;
  chosen = button.dataset.name;
  mark();
  trigger('click', {name: chosen});
});
watch('value', mark);
"""
_COMES_INTO_VIEW = """() => {
  const shown = document.querySelector('#videos-shown');
  shown?.scrollIntoView({block: 'start'});
  shown?.querySelector('[tabindex], video')?.focus({preventScroll: true});
}"""
"""What happens in the browser once a video is chosen, in the grid below its player."""
_GRID = """
ul.grid, ul.grid li { list-style: none; margin: 0; padding: 0; }
ul.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .6rem; }
ul.grid li { border: 0; min-width: 0; }
ul.grid button { width: 100%; height: 100%; padding: .4rem; text-align: left; }
ul.grid button > * { display: block; }
ul.grid button[aria-pressed="true"] { outline: 3px solid var(--focus); }
ul.grid img { width: 100%; aspect-ratio: 3 / 2; }
ul.grid .quiet { font-weight: 400; }
ul.grid .title { -webkit-line-clamp: 2; display: -webkit-box; margin-top: .3rem; }
"""
_TABLE = """
table { width: 100%; border: 0; border-collapse: collapse; margin-top: .5rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border: 0;
  border-top: 1px solid var(--border-color-primary); overflow-wrap: anywhere; }
tr { border: 0; }
th { font-weight: 600; width: 40%; }
"""


def add_tab(service: Service, making: Making) -> None:
    """Adds what the tab holds, within which it has to be called.

    Args:
        making: the forms that "Use these settings" fills.
    """
    Tab(service, making).add()


class Tab:
    """The tab's parts and what its buttons do. What is chosen is in the browser's session."""

    def __init__(self, service: Service, making: Making):
        self.service, self.making = service, making
        self.gallery = Gallery(service.store)

    def add(self) -> None:
        page, chosen, drawn = gr.State(0), gr.State(""), gr.State("")
        shown = gr.HTML(elem_id="videos-shown", elem_classes="part")
        with gr.Column(visible=False, elem_id="videos-actions") as actions:
            with gr.Row():
                again = gr.Button("Again with another seed", elem_id="videos-again")
                use = gr.Button("Use these settings", elem_id="videos-use")
                extend = gr.Button("Extend", elem_id="videos-extend")
            with gr.Row():
                where = "Finder" if ON_A_MAC else "file manager"
                reveal = gr.Button(
                    f"Show in {where}", visible=can_reveal(), elem_id="videos-reveal"
                )
                trash = gr.Button("Move to trash", elem_id="videos-trash")
            with gr.Row(visible=False, elem_id="videos-sure") as sure:
                yes = gr.Button("Yes, move it to the trash", variant="stop", elem_id="videos-yes")
                no = gr.Button("No, keep it", elem_id="videos-no")
        said = gr.HTML(elem_id="videos-said", elem_classes="said", js_on_load=SPEAKS)
        table = gr.HTML(elem_id="videos-settings", elem_classes="part", css_template=_TABLE)
        grid = gr.HTML(
            elem_id="videos-grid", elem_classes="part", css_template=_GRID, js_on_load=_CHOOSES
        )
        with gr.Row():
            newer = gr.Button("Newer videos", size="sm", elem_id="videos-newer", visible=False)
            older = gr.Button("Older videos", size="sm", elem_id="videos-older", visible=False)

        listed = [drawn, grid, newer, older]
        gr.Timer(_EVERY).tick(self.draw, [page, drawn], listed, queue=False, **HIDDEN)
        newer.click(lambda number: max(number - 1, 0), page, page, **HIDDEN)
        older.click(lambda number: number + 1, page, page, **HIDDEN)
        page.change(self.draw, [page, drawn], listed, queue=False, **HIDDEN)
        selected = [chosen, shown, table, actions, sure, said]
        grid.click(self.choose, None, selected, **HIDDEN).then(
            None, None, None, js=_COMES_INTO_VIEW, **HIDDEN
        )
        again.click(self.again, chosen, said, **HIDDEN)
        extend.click(self.extend, chosen, said, **HIDDEN)
        lists = self.making.lists  # they don't know the newest adapters and models yet
        use.click(self.making.refresh, lists, lists, **HIDDEN).then(
            self.use, chosen, [said, *self.making.outputs], **HIDDEN
        )
        reveal.click(self.reveal, chosen, said, **HIDDEN)
        trash.click(lambda: gr.update(visible=True), None, sure, **HIDDEN)
        no.click(lambda: gr.update(visible=False), None, sure, **HIDDEN)
        gone = yes.click(self.trash, chosen, selected, **HIDDEN)
        gone.then(self.draw, [page, drawn], listed, queue=False, **HIDDEN)

    def draw(self, page: int, before: str) -> list[Any]:
        """A page of the videos, if it isn't what is shown already."""
        videos, count = self.gallery.page(page), self.gallery.count()
        html = _grid(videos, page, count)
        if html == before:
            return [gr.skip()] * 4
        last, several = (page + 1) * PAGE >= count, count > PAGE
        newer = gr.update(visible=several, interactive=page > 0)
        return [html, html, newer, gr.update(visible=several, interactive=not last)]

    def choose(self, event: gr.EventData) -> list[Any]:
        """Shows a video and how it was made."""
        name = str(getattr(event, "name", ""))
        try:
            video = self.gallery.get(name)
        except CogVideoXError as error:
            return _nothing(self._bad(error))
        return [
            name,
            _player(video),
            _table(video),
            gr.update(visible=True),
            gr.update(visible=False),
            "",
        ]

    def again(self, name: str) -> str:
        return self._queue(name, lambda: self.gallery.remake(name, new_seed=True))

    def extend(self, name: str) -> str:
        return self._queue(name, lambda: self.gallery.remake(name, longer=True))

    def use(self, name: str) -> list[Any]:
        """Fills the form of the tab that makes such videos."""
        nothing = [gr.skip()] * len(self.making.outputs)
        try:
            remake = self.gallery.remake(name)
            about, sources = _for_form(remake)
            updates = self.making.fill(about, sources)
        except CogVideoXError as error:
            return [self._bad(error), *nothing]
        if remake.missing:
            gr.Warning(f"Not filled in: {escape('; '.join(remake.missing))}.")
        gr.Info(f"The form has the settings of “{escape(short(about['settings']['prompt']))}”.")
        return ["", *updates]

    def reveal(self, name: str, request: gr.Request) -> str:
        """Shows the file, for a browser on the same machine."""
        try:
            if request.client.host not in THIS_MACHINE:
                raise InvalidInputError("files are shown only on the machine of the server")
            self.gallery.reveal(name)
        except CogVideoXError as error:
            return self._bad(error)
        return '<p class="well">Its folder is opened.</p>'

    def trash(self, name: str) -> list[Any]:
        try:
            self.gallery.trash(name)
        except CogVideoXError as error:
            return [*[gr.skip()] * 4, gr.update(visible=False), self._bad(error)]
        return _nothing('<p class="well">The video is in the trash.</p>')

    def _queue(self, name: str, remake: Callable[[], Remake]) -> str:
        try:
            with self.gallery.to_queue(remake()) as request:
                job = self.service.add_video(request)
        except CogVideoXError as error:
            return self._bad(error)
        return _queued(self.service, job)

    def _bad(self, error: CogVideoXError) -> str:
        return f'<p class="bad">{escape(problem(error, self.service.home.folder))}</p>'


def _queued(service: Service, job: Job) -> str:
    where, seed = place_in_words(service.runner, job), job.about["settings"]["seed"]
    return f'<p class="well">The new video {where}, with seed {escape(seed)}.</p>'


def _for_form(remake: Remake) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``Making.fill`` takes of a remake."""
    request = remake.request
    sources = {name: getattr(request, name) for name in FILES if getattr(request, name)}
    about = {
        "model": request.model,
        "settings": request.settings,
        "adapters": request.adapters,
        "sources": sorted(sources),
    }
    return about, sources


def _grid(videos: list[Video], page: int, count: int) -> str:
    if not count:
        return '<p class="quiet">No video is finished yet. They appear here by themselves.</p>'
    first = page * PAGE
    pages = f"Videos {first + 1} to {first + len(videos)} of {count}"
    items = "".join(f"<li>{_item(video)}</li>" for video in videos)
    return f'<p class="quiet">{pages}</p><ul class="grid">{items}</ul>'


def _item(video: Video) -> str:
    title, when = escape(_title(video)), escape(_when(video))
    url = escape(picture_url(video.name, video.created))
    return (
        f'<button type="button" data-name="{escape(video.name)}" aria-pressed="false">'
        f'<img src="{url}" alt="" loading="lazy"><span class="title">{title}</span>'
        f'<span class="quiet">{when}</span></button>'
    )


def _title(video: Video) -> str:
    return str(video.settings.get("prompt") or video.name)


def _when(video: Video) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(video.created))


def _nothing(message: str) -> list[Any]:
    """Updates with which no video is chosen."""
    return ["", "", "", gr.update(visible=False), gr.update(visible=False), message]


def _player(video: Video) -> str:
    title, url = escape(_title(video)), escape(file_url(video.name))
    if video.path.suffix == ".gif":
        player = f'<img src="{url}" alt="{title}" tabindex="-1">'
    else:
        player = f'<video src="{url}" controls loop muted playsinline aria-label="{title}"></video>'
    name = escape(file_name(_title(video), video.settings.get("seed"), video.path.suffix))
    save = f'<p><a href="{url}" download="{name}">Save the video</a></p>'
    return f'{player}<p class="title">{title}</p>{save}'


def _table(video: Video) -> str:
    """How a video was made."""
    if video.record is None:
        return f'<p class="quiet">{escape(problem(video.problem))}.</p>'
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in _rows(video)
    )
    return f"<h2>Settings</h2><table><tbody>{rows}</tbody></table>"


def _rows(video: Video) -> list[tuple[str, str]]:
    """What is known of a video, as escaped titles and values."""
    record: Mapping[str, Any] = video.record or {}
    rows = [("Made", _when(video)), ("Model", Path(str(record["model"].get("name"))).name)]
    settings = {n: v for n, v in video.settings.items() if n not in _LEFT_OUT}
    rows += [(label_of(name), _value(value)) for name, value in settings.items() if _says(value)]
    if adapters := video.settings.get("lora"):
        rows.append(("Adapters", ", ".join(f"weight {each['scale']:g}" for each in adapters)))
    rows += [("Made of", f"a {FILES[name]}") for name in FILES if video.settings.get(name)]
    seconds = sum((record.get("timings") or {}).values())
    rows += [("Time to make", f"{seconds:.0f} seconds"), ("File", size(video.bytes))]
    return [(escape(name), escape(value)) for name, value in rows]


def _says(value: Any) -> bool:
    return value not in (None, "", [], False)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return "yes" if value is True else str(value)
