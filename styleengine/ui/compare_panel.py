"""The panel of the comparison: all results, their measures as a table and a plot, and before and after of one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from styleengine.comparison import Comparison, caption
from styleengine.images import open_image, save_png, write_whole
from styleengine.ui.charts import scatter
from styleengine.ui.examples import FIRST_COMPARED, beside_content, first_comparison
from styleengine.ui.panel import Updates, line, strip
from styleengine.ui.result import ResultPanel, before, place, save

HINT = "Choose a content and a style image, or click an example."
COLUMNS = ["Method", "Seconds", "Style loss", "Content loss", "Colour distance", "SSIM"]
COLUMN_WIDTHS: list[str | int] = [100, 78, 110, 122, 150, 70]  # pixels; on a phone the table scrolls within itself
PLOT_WORDS = "Lower is nearer to the style. Further left keeps more of the content."


class ComparePanel(ResultPanel):
    """Results appear one by one. A click on a result compares it with the content."""

    def __init__(self) -> None:
        self.pictures, self.measured = first_comparison()
        super().__init__(HINT, "Download contact sheet")

    def example(self) -> tuple[Image.Image, Image.Image] | None:
        return beside_content(FIRST_COMPARED, Path(self.pictures[0][0])) if self.pictures else None

    def show(self) -> list[Any]:
        label = "Results (click to compare with the content)"
        self.results = strip(label, 3, ["fullscreen"], "strip", self.pictures)
        shown = super().show()
        measured = self.measured
        self.table = gr.Dataframe(
            rows(measured) or None,
            headers=COLUMNS,
            interactive=False,
            visible=bool(measured),
            label="Measures",
            column_widths=COLUMN_WIDTHS,
            elem_classes="measures",
        )
        self.plot = gr.HTML(plot(measured), visible=bool(measured))
        self.csv = gr.DownloadButton("Download measures (CSV)", interactive=False)
        self.paths = gr.State([])
        return [self.results, *shown, self.table, self.plot, self.csv, self.paths]

    def waiting(self) -> Updates:
        hidden = {self.results: gr.Gallery(value=None, visible=False), self.table: gr.Dataframe(visible=False)}
        return {**super().waiting(), **hidden, self.plot: gr.HTML(visible=False), self.paths: []}

    def finished(self, result: Comparison, content: Image.Image | None) -> Updates:
        """The results so far. The run goes on until the comparison is finished."""
        done = [entry for entry in result.entries if entry.result]
        paths = [str(save(entry.result, self.slider.GRADIO_CACHE)) for entry in done if entry.result]
        sheet, table = files(result, self.slider.GRADIO_CACHE)
        updates: Updates = {
            self.download: gr.DownloadButton(value=str(sheet), interactive=True),
            self.csv: gr.DownloadButton(value=str(table), interactive=True),
            self.table: gr.Dataframe(rows(result.rows()), visible=True),
            self.plot: gr.HTML(plot(result.rows()), visible=True),
        }
        if paths:
            captions = [caption(entry).partition("\n")[0] for entry in done]
            updates[self.results] = gr.Gallery(list(zip(paths, captions, strict=True)), visible=True)
            updates[self.paths] = paths
            updates[self.slider] = compared(content, paths[-1])
        if result.finished:
            problems = [f"{entry.contender.title}: {entry.problem}" for entry in result.entries if entry.problem]
            updates |= {**self.busy(False), self.status: "".join(map(line, [summary(result), *problems]))}
        return updates

    def kept(self) -> list[Any]:
        return [*super().kept(), self.results]

    def connect_click(self, content: gr.Image) -> None:
        """A click on a result shows it in the slider."""

        def show(paths: list[str], given: Any, event: gr.SelectData) -> Any:
            if not paths and isinstance(event.index, int) and 0 <= event.index < len(self.pictures):
                return beside_content(FIRST_COMPARED, Path(self.pictures[event.index][0]))
            if not isinstance(event.index, int) or not 0 <= event.index < len(paths) or not given:
                return gr.skip()
            return compared(open_image(given["path"], "content image"), paths[event.index])

        self.results.select(
            show,
            [self.paths, content],
            self.slider,
            preprocess=False,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def compared(content: Image.Image | None, path: str) -> tuple[Image.Image, str]:
    """The slider's value: the content and the result at a path."""
    return before(content, open_image(path, "result")), path


def files(result: Comparison, folder: str) -> tuple[Path, Path]:
    """The contact sheet and the table, in Gradio's cache."""
    sheet, table = place(folder, "styleengine-comparison.png"), place(folder, "styleengine-comparison.csv")
    save_png(result.sheet(), sheet, {})
    write_whole(table, result.csv().encode())
    return sheet, table


def rows(measured: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The table from a comparison's rows: the untouched content, then the results."""
    keys = ("style_loss", "content_loss", "color_distance", "ssim")
    return [
        [row["title"], round(row["seconds"], 1) if "seconds" in row else "", *(round(row[key], 3) for key in keys)]
        for row in measured
        if not row.get("problem")
    ]


def plot(measured: Sequence[Mapping[str, Any]]) -> str:
    """Style loss against content loss, as HTML, from a comparison's rows."""
    points = [(row["title"], row["content_loss"], row["style_loss"]) for row in measured if "style_loss" in row]
    return scatter(points, "content loss", "style loss") + line(PLOT_WORDS)


def summary(result: Comparison) -> str:
    seconds = sum(entry.result.seconds + entry.learning_seconds for entry in result.entries if entry.result)
    done = sum(1 for entry in result.entries if entry.result)
    return f"{done} of {result.total} methods in {seconds:.1f} s."
