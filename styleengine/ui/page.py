"""Theme, style sheet, scripts, header, footer and the options of `launch`."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_space
from starlette.middleware import Middleware

from styleengine.backbones import named_backbones
from styleengine.engine import StyleEngine
from styleengine.stylization import model_name
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

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "results.js")
HUB = "https://huggingface.co"
CC_BY_SA = ("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/")
GPL = ("GPL 2.0", "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html")
OPENRAIL = ("CreativeML OpenRAIL-M", f"{HUB}/spaces/CompVis/stable-diffusion-license")
APACHE = ("Apache 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
DDPMS = ("ddpm-celebahq-256", "ddpm-church-256", "ddpm-bedroom-256")
OWN = ("mini", "figures")  # trained by this project
LICENCES = {"mini": CC_BY_SA, "figures": GPL, "sd15": OPENRAIL, **dict.fromkeys(DDPMS, APACHE)}  # of the weights


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
        "css": (HERE / "page.css").read_text(),
        "head": "".join(f"<script>{(HERE / name).read_text()}</script>" for name in SCRIPTS),
        "show_error": True,
        "mcp_server": True,
        "footer_links": ["api"],
        "max_file_size": MOST_BYTES,
        "state_session_capacity": MOST_SESSIONS,
        "app_kwargs": {"middleware": [Middleware(PageCache)]},
    }


def header(title: str, engine: StyleEngine | None = None) -> None:
    """The title, the model with its licence, and on a Space a button that duplicates it."""
    words = "Redraws a photo in the style of a painting, of a text or of a learned style, with diffusion models."
    model = f'<p class="model">{model_words(engine.model, engine.device)}</p>' if engine else ""
    with gr.Row(elem_classes="titlebar"):
        gr.HTML(f"<h1>{escape(title)}</h1><p>{words}</p>{model}", elem_classes="masthead")
        if get_space():
            gr.DuplicateButton("Duplicate this Space", size="sm", min_width=180, elem_classes="duplicate")


def footer() -> None:
    """The place of the visitor's last results, which `results.js` fills."""
    script = "window.styleengine?.show()"
    gr.HTML('<div class="place"></div>', elem_classes="kept-results", js_on_load=script, apply_default_css=False)


def model_words(model: str, device: torch.device) -> str:
    """The model, its device and the licence of its weights, as HTML."""
    machine = "the GPU" if device.type == "cuda" else "the CPU"
    words, licence, address = licence_of(model)
    link = f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(licence)}</a>.' if address else ""
    return f"Model: {escape(model_title(model))}, on {machine}. {words} {link}"


def licence_of(model: str) -> tuple[str, str, str]:
    """The licence of a model's weights, or where it is stated: words, then the name and address that end them."""
    if model in LICENCES:
        return ("Weights: this project's, under" if model in OWN else "Weights: under", *LICENCES[model])
    if model == model_name(model) and model.count("/") == 1:  # a hub id
        return "The licence is stated on", "the model's page", f"{HUB}/{model.partition('@')[0]}"
    return "The licence is stated in the model's files.", "", ""


def model_title(name: str) -> str:
    known = named_backbones().get(name)
    return known.title if known else f"“{Path(name).name}”"
