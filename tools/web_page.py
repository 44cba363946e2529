"""The page of tools/web.py: what is on it, and what happens when something is touched."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import viewing
from _init_paths import sentence_of
from viewing import Answer, Footage, Viewer
from web_text import failure, message, networks_there, shares_table, swaps_table

from utils.failures import memory_failure

NO_OTHER = "(no other)"
CLIPS = 8  # files kept for browsers to fetch
CSS = """
footer { display: none !important }
.name { font-weight: bold; overflow-wrap: anywhere }
.rows { width: 100%; border: 0 !important; border-collapse: collapse }
.rows tr, .rows td { padding: 1px 6px !important; border: 0 !important }
.rows td:last-child { text-align: right; white-space: nowrap }
.rows i { display: block; height: 12px; min-width: 2px; outline: 1px solid #8886 }
.view .image-frame { width: 100% }
.view img { width: 100% !important; height: auto !important; max-height: 75vh;
            object-fit: contain !important }
#clip video { max-height: 60vh } #scenes .thumbnail-item { aspect-ratio: 4 / 3 }
"""
Updates = dict[Any, Any]  # component -> its new value or properties
Held = tuple[Footage, list[Answer]]


def theme() -> gr.Theme:
    """With the fonts of the system."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def telling(event: Callable[..., Updates]) -> Callable[..., Updates]:
    """An event of Page whose failure is a sentence on the page."""

    @functools.wraps(event)
    def told(page: "Page", *values: Any, **more: Any) -> Updates:
        try:
            return event(page, *values, **more)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            sentence = memory_failure(error) or sentence_of(error)
            if sentence is None:  # a fault of the program
                raise
            return {page.message: failure(sentence)}

    return told


class Page:
    """blocks: the page itself. folder: for the clips that it shows."""

    def __init__(self, viewer: Viewer, folder: Path) -> None:
        self.viewer, self.folder = viewer, folder
        self._numbers = itertools.count()
        # Every minute what browsers were given more than ten minutes ago is deleted.
        with gr.Blocks(title="RTSeg", fill_width=True, delete_cache=(60, 600)) as self.blocks:
            self.held = gr.State(None)  # (Footage, answers) of this browser
            with gr.Row():
                with gr.Column(scale=0, min_width=340):
                    self._place_inputs()
                with gr.Column(scale=3):
                    self._place_outputs()
            self._connect()

    def _place_inputs(self) -> None:
        self.file = gr.File(
            label="A picture or a short clip; or take a drawn scene", height=140, elem_id="file"
        )
        self.scenes = gr.Gallery(
            show_label=False, columns=2, height=250, allow_preview=False, buttons=[],
            interactive=False, elem_id="scenes",
        )  # fmt: skip
        self.first = gr.Dropdown([], label="Network", elem_id="first")
        self.second = gr.Dropdown([NO_OTHER], label="Compared with", elem_id="second")
        self.look = gr.Button("Look for networks", size="sm", elem_id="look")
        self.opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="opacity")
        self.frame = gr.Slider(0, 1, 0, step=1, label="Frame", visible=False, elem_id="frame")

    def _place_outputs(self) -> None:
        plain = {
            "format": "jpeg", "interactive": False, "buttons": ["fullscreen"],
            "elem_classes": "view",
        }  # fmt: skip
        self.message = gr.HTML(elem_id="message")
        with gr.Row():
            with gr.Column(min_width=260):
                self.image = gr.Image(label="Network", elem_id="image", **plain)
                self.table = gr.HTML(elem_id="table")
            with gr.Column(min_width=260, visible=False) as self.beside:
                self.other_image = gr.Image(label="Compared with", elem_id="other_image", **plain)
                self.other_table = gr.HTML(elem_id="other_table")
            with gr.Column(min_width=260, visible=False) as self.furthest:
                self.difference = gr.Image(label="They disagree", elem_id="difference", **plain)
                self.swaps = gr.HTML(elem_id="swaps")
        self.clip = gr.Video(
            label="Clip", visible=False, autoplay=True, loop=True, interactive=False, elem_id="clip"
        )
        self.again = gr.Button(
            "Make the clip anew with this opacity", visible=False, size="sm", elem_id="again"
        )

    def _connect(self) -> None:
        networks = [self.first, self.second]
        given = [self.held, *networks, self.opacity]
        pictures = [
            self.message, self.image, self.table, self.beside, self.other_image, self.other_table,
            self.furthest, self.difference, self.swaps,
        ]  # fmt: skip
        everything = [*pictures, self.held, self.file, self.frame, self.clip, self.again]
        hidden = {"api_visibility": "undocumented"}
        slow = {"concurrency_limit": 1, "concurrency_id": "network", **hidden}
        slow["show_progress_on"] = self.image
        self.blocks.load(self.on_load, None, [self.scenes, *networks, self.message], **hidden)
        found = self.look.click(self.on_look, networks, [*networks, self.message], **hidden)
        found.then(self.on_found, given, everything, **slow)
        self.file.upload(self.on_file, [self.file, *given], everything, **slow)
        self.scenes.select(self.on_scene, given, everything, **slow)
        for choice in networks:
            choice.input(self.on_network, given, everything, **slow)
        for slider in (self.opacity, self.frame):
            slider.input(
                self.on_slider, [self.held, self.opacity, self.frame], pictures,
                trigger_mode="always_last", show_progress="hidden", **hidden,
            )  # fmt: skip
        self.again.click(
            self.on_again, [self.held, self.opacity], [self.message, self.clip], **hidden
        )

    def on_load(self) -> Updates:
        """Draw the scenes, for each browser anew as files become old, and look for networks."""
        drawn = [viewing.scene(number).frame(0) for number in range(len(viewing.SCENES))]
        return {self.scenes: drawn, **self.on_look(None, None)}

    @telling
    def on_look(self, first: str | None, second: str | None) -> Updates:
        """Offer the networks that are there now; choices that still are there stay."""
        found, left_out = self.viewer.networks()
        titles = list(found)
        first = first if first in found else next(iter(titles), None)
        second = second if second in found else NO_OTHER
        return {
            self.first: gr.Dropdown(titles, value=first),
            self.second: gr.Dropdown([NO_OTHER, *titles], value=second),
            self.message: networks_there(len(found), left_out),
        }

    @telling
    def on_found(
        self, held: Held | None, first: str | None, second: str, opacity: float
    ) -> Updates:
        """Show what was given before there was a network."""
        waits = held is not None and not held[1] and first is not None
        return self._shown(held[0], first, second, opacity, None) if waits else {}

    def on_file(
        self, upload: str | None, held: Held | None, first: str, second: str, opacity: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio finds it by its default)
    ) -> Updates:  # fmt: skip
        if upload is None:
            return {}
        # The place is free for the next file at once, also after one that cannot be read.
        return {self.file: None, **self._uploaded(upload, first, second, opacity, progress)}

    @telling
    def _uploaded(self, upload: str, *choices: Any) -> Updates:
        """Read a file, delete it, and show it."""
        try:
            footage = viewing.read_footage(upload, Path(upload).name)
        finally:
            Path(upload).unlink(missing_ok=True)
        return self._shown(footage, *choices)

    @telling
    def on_scene(
        self, event: gr.SelectData, held: Held | None, first: str, second: str, opacity: float
    ) -> Updates:
        return self._shown(viewing.scene(int(event.index)), first, second, opacity, None)

    @telling
    def on_network(
        self, held: Held | None, first: str, second: str, opacity: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:  # fmt: skip
        return {} if held is None else self._shown(held[0], first, second, opacity, progress)

    def _shown(
        self, footage: Footage, first: str | None, second: str | None, opacity: float,
        progress: Callable[..., Any] | None,
    ) -> Updates:  # fmt: skip
        """What the networks make of it, kept for the sliders."""
        titles = [title for title in (first, second) if title and title != NO_OTHER]
        answers = self.viewer.answers(footage, titles, progress or (lambda _: None))
        held, frames = (footage, answers), len(footage.frames)
        if answers:
            frames = viewing.seen_frames(answers)
        film = footage.rate > 0 and bool(answers)
        updates = {
            self.held: held,
            self.frame: gr.Slider(maximum=max(frames - 1, 1), value=0, visible=frames > 1),
            self.clip: gr.Video(value=None, visible=film),
            self.again: gr.Button(visible=film),
            **self.on_slider(held, opacity, 0),
        }
        if film:
            updates[self.clip] = gr.Video(value=self._film(held, opacity), visible=True)
        return updates

    @telling
    def on_slider(self, held: Held | None, opacity: float, frame: float) -> Updates:
        """The pictures and tables of one frame; no network runs for them."""
        if held is None:
            return {}
        footage, answers = held
        if not answers:
            pictures, tables = [footage.frame(int(frame))], [""]
        else:
            seen = viewing.sight(footage, answers, int(frame), opacity)
            pictures, tables = seen.overlays, list(map(shares_table, answers, seen.shares))
        two = len(pictures) == 2
        updates = {
            self.message: message(footage, answers),
            self.image: pictures[0],
            self.table: tables[0],
            self.beside: gr.Column(visible=two),
            self.furthest: gr.Column(visible=two),
        }
        if two:
            updates[self.other_image], updates[self.other_table] = pictures[1], tables[1]
            updates[self.difference] = seen.difference
            updates[self.swaps] = swaps_table(seen.differing, seen.swaps)
        return updates

    @telling
    def on_again(self, held: Held | None, opacity: float) -> Updates:
        return {} if held is None else {self.clip: self._film(held, opacity)}

    def _film(self, held: Held, opacity: float) -> str:
        path = self.folder / f"clip{next(self._numbers) % CLIPS}.webm"
        self.viewer.write_film(path, *held, opacity)
        return str(path)
