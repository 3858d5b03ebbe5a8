"""Theme, style sheet, header, footer and the options of `launch`."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from styleengine.backbones import Backbone, named_backbones
from styleengine.ui.page_cache import PageCache
from styleengine.video import MOST_BYTES

ACCENT = "#b4472e"
MOST_SESSIONS = 1000  # sessions whose state Gradio keeps
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

VERMILION = gr.themes.Color(
    name="vermilion",
    c50="#fdf4f1",
    c100="#fae5de",
    c200="#f3c9bc",
    c300="#e9a58f",
    c400="#d97a5d",
    c500="#c75b3e",
    c600=ACCENT,
    c700="#933824",
    c800="#762e20",
    c900="#5c261c",
    c950="#35130d",
)


def launch_options() -> dict[str, Any]:
    """The options that Gradio 6 takes at `launch`: appearance, error display, MCP server and limits."""
    theme = gr.themes.Base(
        primary_hue=VERMILION,
        secondary_hue=VERMILION,
        neutral_hue="stone",
        radius_size="md",
        font=SYSTEM_FONTS,
        font_mono=MONO_FONTS,
    ).set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")
    return {
        "theme": theme,
        "css": CSS,
        "show_error": True,
        "mcp_server": True,
        "footer_links": ["api"],
        "max_file_size": MOST_BYTES,
        "state_session_capacity": MOST_SESSIONS,
        "app_kwargs": {"middleware": [Middleware(PageCache)]},
    }


def header(title: str) -> None:
    gr.HTML(
        f"<h1>{escape(title)}</h1><p>Diffusion style transfer from a style image, a text prompt or a learned "
        "style.</p>",
        elem_classes="masthead",
    )


def footer(backbone: Backbone) -> None:
    gr.HTML(f"<p>{escape(model_words(backbone))}</p>", elem_classes="colophon")


def model_words(backbone: Backbone) -> str:
    """The model and its device, for the footer."""
    machine = "the GPU" if backbone.device.type == "cuda" else "the CPU"
    return f"Model: {model_title(backbone.name)}, on {machine}."


def model_title(name: str) -> str:
    known = named_backbones().get(name)
    return known.title if known else f"“{Path(name).name}”"


CSS = """
.gradio-container > main { max-width: 1280px; margin: 0 auto; }
.masthead h1 { font-size: 1.75rem; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
.masthead p, .colophon p { color: var(--body-text-color-subdued); margin: 0.15rem 0 0; }
.colophon { font-size: 0.85rem; }
.masthead .html-container, .colophon .html-container, .status .html-container { padding: 0; }
.status { min-height: 2.2rem; }
.status p { margin: 0 0 6px; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.bar { height: 6px; border-radius: 3px; overflow: hidden; background: var(--border-color-primary); }
.bar div { height: 100%; background: var(--color-accent); transition: width 0.2s linear; }
.dice { align-self: end !important; height: 44px; font-size: 1.5rem; line-height: 1; padding: 0 !important; }
[id$=examples] :is(.table-wrap, table, tr, td, td .container) { margin: 0; padding: 0; border: 0; background: none; }
[id$=examples] thead { display: none; }
[id$=examples] tbody { display: flex; flex-wrap: wrap; gap: 12px; }
[id$=examples] tr { display: flex; gap: 2px; cursor: pointer; }
[id$=examples] tr:hover { outline: 2px solid var(--color-accent); outline-offset: 2px; }
#h-space-examples td:nth-child(n + 3) { display: none; }
[id$=examples] td :is(.container, img, video) { width: 68px; height: 68px; border-radius: 4px; object-fit: cover; }
.chart { width: 100%; max-width: 640px; fill: var(--body-text-color); font-size: 12px; }
.chart .grid { stroke: var(--border-color-primary); fill: none; }
@media (max-width: 640px) { .result { height: 380px !important; } }
"""
