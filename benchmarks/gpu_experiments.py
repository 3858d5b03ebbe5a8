"""The experiments of gpu.py: pictures that show which default suits real weights. One pair of images each.

The orderings of Z-STAR+'s Table IV need more pairs: `python -m benchmarks.ablation --model sd15`.
"""

from itertools import product
from typing import Any

from benchmarks.gpu_parts import Bench, Row, Rows, qs_attn_settings
from benchmarks.pairs import content_image, style_image
from styleengine import HSpaceSettings, InSTLearningSettings, InSTSettings, Stylization, ZStarSettings

CONTENT, STYLE = "temple", "auvers"
GAMMAS = (0.0, 0.5, 1.0)


def shown(bench: Bench, name: str, result: Stylization, **columns: str) -> tuple[str, Row]:
    """Keeps the picture. `columns` are titles of columns and the names of the details in them."""
    bench.keep(name, result.image)
    details = {title: result.details[key] for key, title in columns.items()}
    return name, {"seconds": result.seconds, **details}


def inversion(bench: Bench) -> Rows:
    """Does plain inversion drift, and do more iterations or a pull help?"""
    engine, fixed = bench.engine(), _zstar_values(bench)
    for iterations, pull in product((1, 2, 3), (0.0, 0.01)):
        values: dict[str, Any] = {"inversion_iterations": iterations, "content_pull": pull}
        settings = ZStarSettings(**fixed, **values, measure_reconstruction=True)
        result = engine.zstar(content_image(CONTENT), style_image(STYLE), settings)
        name = f"zstar-iterations-{iterations}-pull-{pull:g}"
        yield shown(bench, name, result, reconstruction_psnr="PSNR of the reconstruction")


def colors(bench: Bench) -> Rows:
    """How much of SAIN's colour alignment is right?"""
    engine, fixed = bench.engine(), _zstar_values(bench)
    for factor in (0.0, 0.25, 0.5, 0.75, 1.0):
        settings = ZStarSettings(**fixed, color_factor=factor)
        result = engine.zstar(content_image(CONTENT), style_image(STYLE), settings)
        yield shown(bench, f"zstar-color-factor-{factor:g}", result)


def _zstar_values(bench: Bench) -> dict[str, Any]:
    return {"size": bench.size(), "steps": bench.some(30, 2)}


def injection(bench: Bench) -> Rows:
    """Does γ show anything on a latent model, at which t_edit, and with calibration?"""
    engine = bench.engine()
    for t_edit, calibration in product((400, 569), (False, True)):
        values: dict[str, Any] = {"t_edit": t_edit, "calibration": calibration}
        settings = HSpaceSettings(size=bench.size(), steps=bench.some(50, 10), **values)
        strip = engine.h_space_strip(content_image(CONTENT), style_image(STYLE), GAMMAS, settings)
        for gamma, result in zip(GAMMAS, strip, strict=True):
            calibrated = "-calibrated" if calibration else ""
            yield shown(bench, f"h_space-t_edit-{t_edit}{calibrated}-gamma-{gamma:g}", result)


def injection_on_pixels(bench: Bench) -> Rows:
    """Calibration and ω on faces."""
    engine, pair = bench.engine(bench.pixel), (content_image("astronaut"), content_image("cat"))
    variants: dict[str, dict[str, Any]] = {
        "plain": {"calibration": False},
        "calibrated-omega-0": {"calibration": True, "omega": 0.0},
        "calibrated-omega-0.3": {"calibration": True, "omega": 0.3},
    }
    for name, values in variants.items():
        settings = HSpaceSettings(size=bench.size(256), steps=bench.some(50, 4), **values)
        yield shown(bench, f"h_space-ddpm-{name}", engine.h_space(*pair, settings))


def learning(bench: Bench) -> Rows:
    """What does a higher learning rate give, and which strength with or without AdaIN keeps the content?"""
    engine = bench.engine()
    applied = InSTSettings(size=bench.size(), steps=bench.some(50, 3))
    for rate in (4e-4, 1e-4):
        settings = InSTLearningSettings(
            steps=bench.some(100, 2), size=bench.size(), batch=1, learning_rate=rate, patience=0
        )
        style = engine.inst_learn(style_image(STYLE), settings)
        first, last = (loss for _, loss in (style.record.history[0], style.record.history[-1]))
        name, row = shown(bench, f"inst-rate-{rate:g}", engine.inst_apply(content_image(CONTENT), style, applied))
        yield name, {**row, "fall of the validation loss, %": 100 * (1 - last / first)}
    for strength, adain in product((0.5, 0.6, 0.7), (False, True)):
        chosen = applied.replace(strength=strength, adain=adain)
        result = engine.inst_apply(content_image(CONTENT), style, chosen)
        yield shown(bench, f"inst-strength-{strength:g}{'-adain' if adain else ''}", result)


def guidance(bench: Bench) -> Rows:
    """Which size, depth, weight of the contrast, and selection of anchors suit QS-Attn?"""
    engine = bench.engine()
    variants: dict[str, dict[str, Any]] = {
        f"size-{size}-depth-{depth:g}": {"size": size, "depth": depth}
        for size, depth in product((256, 512), (0.5, 0.7))
    }
    variants |= {
        "size-256-contrast-2500": {"size": 256, "contrast": 2500.0},
        "size-256-random": {"size": 256, "selection": "random"},
        "size-256-instance_norm": {"size": 256, "features": "instance_norm"},
    }
    for name, values in variants.items():
        result = engine.qs_attn(content_image(CONTENT), settings=qs_attn_settings(bench, **values))
        yield shown(bench, f"qs_attn-{name}", result, similarity_after="CLIP similarity")


EXPERIMENTS = (inversion, colors, injection, injection_on_pixels, learning, guidance)
