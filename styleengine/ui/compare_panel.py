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
from styleengine.ui.result import LABEL, ResultPanel, before, place, save
from styleengine.ui.runs import Report

HINT = "Choose a content and a style image, or click an example."
COLUMNS = ["Method", "Seconds", "Style loss", "Content loss", "Colour distance", "SSIM"]
COLUMN_WIDTHS: list[str | int] = [94, 76, 106, 120, 144, 66]  # pixels; on a phone the table scrolls within itself
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
        self.made = gr.State([])  # title and path of each result
        return [self.results, *shown, self.table, self.plot, self.csv, self.made]

    def waiting(self) -> Updates:
        hidden = {self.results: gr.Gallery(value=None, visible=False), self.table: gr.Dataframe(visible=False)}
        nothing = {button: gr.DownloadButton(value=None, interactive=False) for button in (self.download, self.csv)}
        return {**super().waiting(), **hidden, **nothing, self.plot: gr.HTML(visible=False), self.made: []}

    def working(self, report: Report, content: Image.Image | None) -> Updates:
        """The results so far can be downloaded meanwhile."""
        updates = super().working(report, content)
        updates.pop(self.download, None)
        return updates

    def finished(self, result: Comparison, content: Image.Image | None) -> Updates:
        """The results so far. The run goes on until the comparison is finished."""
        done = [entry for entry in result.entries if entry.result]
        made = [(one.contender.title, str(save(one.result, self.slider.GRADIO_CACHE))) for one in done if one.result]
        sheet, table = files(result, self.slider.GRADIO_CACHE)
        updates: Updates = {
            self.download: gr.DownloadButton(value=str(sheet), interactive=True),
            self.csv: gr.DownloadButton(value=str(table), interactive=True),
            self.table: gr.Dataframe(rows(result.rows()), visible=True),
            self.plot: gr.HTML(plot(result.rows()), visible=True),
        }
        if made:
            captions = [caption(entry).partition("\n")[0] for entry in done]
            pictures = [(path, words) for (_, path), words in zip(made, captions, strict=True)]
            updates[self.results] = gr.Gallery(pictures, visible=True)
            updates[self.made] = made
            updates[self.slider] = compared(content, *made[-1])
        if result.finished:
            problems = [f"{entry.contender.title}: {entry.problem}" for entry in result.entries if entry.problem]
            sentences = [summary(result), *ranked(result.rows()), *problems]
            updates |= {**self.busy(False), self.status: "".join(map(line, sentences))}
        return updates

    def kept(self) -> list[Any]:
        return [*super().kept(), self.results]

    def connect_click(self, content: gr.Image) -> None:
        """A click on a result shows it in the slider."""

        def show(made: list[tuple[str, str]], given: Any, event: gr.SelectData) -> Any:
            if not made and isinstance(event.index, int) and 0 <= event.index < len(self.pictures):
                return beside_content(FIRST_COMPARED, Path(self.pictures[event.index][0]))
            if not isinstance(event.index, int) or not 0 <= event.index < len(made) or not given:
                return gr.skip()
            return compared(open_image(given["path"], "content image"), *made[event.index])

        self.results.select(
            show,
            [self.made, content],
            self.slider,
            preprocess=False,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def compared(content: Image.Image | None, title: str, path: str) -> gr.ImageSlider:
    """The slider with the content and the result at a path, named by its method."""
    return gr.ImageSlider((before(content, open_image(path, "result")), path), label=f"{LABEL}: {title}")


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


def ranked(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """From a comparison's rows, the methods with the best measures in a sentence, if there are several."""
    results = [row for row in measured if "seconds" in row and "style_loss" in row]
    if len(results) < 2:
        return []
    nearest = min(results, key=lambda row: row["style_loss"])["title"]
    most_kept = min(results, key=lambda row: row["content_loss"])["title"]
    fastest = min(results, key=lambda row: row["seconds"] + row["learning_seconds"])["title"]
    return [f"Nearest to the style: {nearest}; most of the content kept: {most_kept}; fastest: {fastest}."]


def summary(result: Comparison) -> str:
    seconds = sum(entry.result.seconds + entry.learning_seconds for entry in result.entries if entry.result)
    done = sum(1 for entry in result.entries if entry.result)
    return f"{done} of {result.total} methods in {seconds:.1f} s."
