"""QS-Attn: similarity to the prompt, content preservation by the choice of anchors, and runtime.

    python -m benchmarks.qs_attn --size 128 --to sheets
    python -m benchmarks.qs_attn --size 256 --costs

The second command measures only the runtime. With --to, writes a contact sheet for each prompt: a row per content
with the content, the result for each choice of anchors, and the result without contrast.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.machine import machine
from benchmarks.pairs import CONTENTS, PROMPTS, content_image
from benchmarks.tables import mean_of, table
from styleengine import QSAttnSettings, StyleEngine
from styleengine.contact_sheet import contact_sheet
from styleengine.images import fit, to_tensor, working_size
from styleengine.methods.qs_attn.clip_losses import cut
from styleengine.methods.qs_attn.contrast import encoder_features
from styleengine.methods.qs_attn.guide import Guide
from styleengine.methods.qs_attn.method import way
from styleengine.methods.qs_attn.prompts import parse_prompts
from styleengine.metrics import ssim
from styleengine.perceptual import Clip
from styleengine.run import Run

VARIANTS = {
    "global": {"selection": "global"},
    "local": {"selection": "local"},
    "local + global": {"selection": "local_global"},
    "random (ZeCon)": {"selection": "random"},
    "no contrast": {"contrast": 0.0},
}
MOST_OVER_BARE = 1.15


def kept(clip: Clip, image: Image.Image, content: Image.Image) -> dict[str, float]:
    """Content preservation: SSIM, and the mean cosine similarity of CLIP's patch tokens."""
    x, c = to_tensor(image), to_tensor(fit(content, image.size))
    with torch.no_grad():
        tokens = torch.cosine_similarity(clip.patch_tokens(x), clip.patch_tokens(c), dim=-1).mean()
    return {"SSIM": ssim(x, c), "patch tokens": float(tokens)}


def quality(
    engine: StyleEngine,
    clip: Clip,
    contents: Sequence[str],
    prompts: Sequence[str],
    settings: QSAttnSettings,
    variants: Sequence[str],
    to: Path | None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The means by variant, and those of the default variant by prompt."""
    by_variant: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    by_prompt: dict[str, dict[str, float]] = {}
    for prompt in prompts:
        rows, rises = [], []
        for name in contents:
            content, images = content_image(name), list[Image.Image | None]()
            for variant in variants:
                result = engine.qs_attn(content, prompt, settings.replace(**VARIANTS[variant]))
                rise = result.details["similarity_after"] - result.details["similarity_before"]
                measures = {"similarity": result.details["similarity_after"], "its rise": rise}
                by_variant[variant].append({**measures, **kept(clip, result.image, content)})
                images.append(result.image)
            rises.append(by_variant["global"][-1])
            rows.append([fit(content, result.image.size), *images])
            print(f"{prompt}: {name}", flush=True)
        by_prompt[prompt] = mean_of(rises)
        if to:
            contact_sheet(rows, (192, 192)).save(to / f"{prompt.replace(' ', '-')}.png")
    return {variant: mean_of(values) for variant, values in by_variant.items()}, by_prompt


def at_equal_style(engine: StyleEngine, clip: Clip, name: str, prompt: str, settings: QSAttnSettings) -> list[str]:
    """Similarity and SSIM for three balances, with selected and with random anchors."""
    lines = []
    for selection in ("global", "random"):
        cells = []
        for balance in (0.3, 0.5, 0.7):
            content = content_image(name)
            result = engine.qs_attn(content, prompt, settings.replace(selection=selection, balance=balance))
            structure = kept(clip, result.image, content)["SSIM"]
            cells.append(f"{result.details['similarity_after']:.3f} / {structure:.3f}")
        lines.append(f"| {selection} | " + " | ".join(cells) + " |")
    return lines


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The median of several calls: CPU time, which other processes hardly affect, or wall time on a GPU."""

    def clock() -> float:
        if not torch.cuda.is_available():
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    times = []
    for _ in range(repeats):
        began = clock()
        function()
        times.append(clock() - began)
    return statistics.median(times)


def cost(engine: StyleEngine, clip: Clip, settings: QSAttnSettings, repeats: int) -> tuple[dict[str, float], float]:
    """Seconds of the bare network passes of a run, by network, and of the whole run with an empty cache."""
    backbone, content = engine.backbone, content_image("temple")
    content = fit(content, working_size(content, settings.size, backbone.multiple))
    x = backbone.encode(to_tensor(content))
    guide = Guide(Run(backbone, way(backbone, settings)), clip, content, x, parse_prompts(settings.prompt), settings)
    picture, null = backbone.decode(x), guide.null
    # CLIP's batch in one step: the whole image, for the perceptual loss, and the patches.
    seen = torch.cat([clip.framed(picture), cut(picture, guide.boxes[0], clip.side)])

    def forward_and_back(function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> Callable[[], object]:
        def run() -> object:
            leaf = given.detach().requires_grad_()
            return torch.autograd.grad(function(leaf).sum(), leaf)

        return run

    guided = settings.steps - settings.unguided_steps
    passes = {
        "U-Net, no gradient": (settings.steps + 1, lambda: backbone.predict_noise(x, 1, null)),
        "U-Net": (guided, forward_and_back(lambda v: backbone.predict_noise_with_gradient(v, 1, null), x)),
        "U-Net's encoder": (guided, forward_and_back(lambda v: encoder_features(backbone, v, null)[-1], x)),
        "decoder": (guided, forward_and_back(backbone.decode_with_gradient, x)),
        "CLIP": (guided, forward_and_back(lambda v: clip.embed(v)[0], seen)),
        "CLIP, no gradient": (len(guide.boxes), lambda: clip.image_embeddings(seen.detach())),
    }
    bare = {part: count * seconds(function, repeats) for part, (count, function) in passes.items()}

    def whole() -> object:
        engine.cache.clear()
        return engine.qs_attn(content, settings=settings)

    return bare, seconds(whole, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--contents", nargs="+", choices=CONTENTS, default=CONTENTS[:4])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--patches", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="also local anchors")
    parser.add_argument("--brief", action="store_true", help="only selected anchors and no contrast")
    parser.add_argument("--costs", action="store_true", help="measure only the runtime")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--to", type=Path, help="a folder for contact sheets")
    arguments = parser.parse_args()
    if arguments.to:
        arguments.to.mkdir(parents=True, exist_ok=True)
    engine = StyleEngine(arguments.model)
    given = {"size": arguments.size, "steps": arguments.steps, "prompt": PROMPTS[1]}
    if arguments.patches:
        given["patches"] = arguments.patches
    settings = engine.settings_for(QSAttnSettings, "qs_attn", QSAttnSettings(**given))
    clip = Clip(engine.backbone)
    contents, prompts = list(arguments.contents), list(PROMPTS[: arguments.prompts])

    print(f"{machine()}; {engine.backbone.identity}; {arguments.size} px, {arguments.steps} steps", flush=True)
    claims = {} if arguments.brief else compare_costs(engine, clip, settings, arguments.repeats)
    if not arguments.costs:
        variants = [variant for variant in VARIANTS if arguments.all or "local" not in variant]
        if arguments.brief:
            variants = ["global", "no contrast"]
        by_variant, by_prompt = quality(engine, clip, contents, prompts, settings, variants, arguments.to)
        level = [] if arguments.brief else at_equal_style(engine, clip, contents[0], settings.prompt, settings)
        print(f"\n{len(contents)} contents × {len(prompts)} prompts\n\n{table(by_prompt)}\n\n{table(by_variant)}\n")
        if level:
            print(f"“{settings.prompt}” on {contents[0]}, similarity / SSIM by balance\n")
            print("\n".join(["| anchors | 0.3 | 0.5 | 0.7 |", "| --- | --- | --- | --- |", *level]))
        selected, none = by_variant["global"], by_variant["no contrast"]
        claims |= {
            "mean similarity rises for every prompt": all(row["its rise"] > 0 for row in by_prompt.values()),
            "without contrast the structure is worse": none["SSIM"] < selected["SSIM"],
        }
        if random := by_variant.get("random (ZeCon)"):
            claims["selected anchors keep more structure than random ones"] = selected["SSIM"] > random["SSIM"]
    print()
    for claim, holds in claims.items():
        print(f"- {'holds' if holds else 'DOES NOT HOLD'}: {claim}")


def compare_costs(engine: StyleEngine, clip: Clip, settings: QSAttnSettings, repeats: int) -> dict[str, bool]:
    """Prints the runtime by network; returns whether the whole is little more than the bare passes."""
    bare, whole = cost(engine, clip, settings, repeats)
    print("\n| bare passes | seconds |\n| --- | --- |")
    print("\n".join(f"| {part} | {taken:.2f} |" for part, taken in bare.items()))
    ratio = whole / sum(bare.values())
    print(f"\nan image {whole:.1f} s, its bare passes {sum(bare.values()):.1f} s: {ratio:.2f} times", flush=True)
    return {f"an image costs less than {MOST_OVER_BARE:g} times its bare passes": ratio < MOST_OVER_BARE}


if __name__ == "__main__":
    main()
