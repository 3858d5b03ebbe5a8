"""Measures of a result: how near it is to the style, and how much of the content it keeps.

The losses are computed on features of the embedded model's image encoder, whichever model made the result, so that
results of different models can be compared. They are not comparable with losses on VGG features.
"""

from dataclasses import dataclass

from PIL import Image

from styleengine.backbones import embedded_autoencoder
from styleengine.images import fit, to_tensor, working_size
from styleengine.metrics import color_distance, content_loss, encoder_features, ssim, style_loss

SIDE = 256  # shorter side, in pixels, at which images are compared
MULTIPLE = 8


@dataclass(frozen=True)
class Measures:
    """Measures of one result. `ssim` and `content_loss` compare it with the content, the others with the style image.

    `style_loss` and `content_loss` are those of Z-STAR+ (Eq. 21 and 20), at least 0, lower is nearer. `color_distance`
    of 0 means the same colours, 1 none in common. `ssim` of 1 means the same structure.
    """

    style_loss: float
    content_loss: float
    color_distance: float
    ssim: float


def measures(image: Image.Image, content: Image.Image, style: Image.Image) -> Measures:
    """Measures the image, which has the content's aspect ratio. Takes a few tenths of a second."""
    size = working_size(content, SIDE, MULTIPLE)
    x, c = (to_tensor(fit(picture, size)) for picture in (image, content))
    s = to_tensor(fit(style, working_size(style, SIDE, MULTIPLE)))
    of_x, of_c, of_s = (encoder_features(embedded_autoencoder(), picture) for picture in (x, c, s))
    return Measures(style_loss(of_x, of_s), content_loss(of_x, of_c), color_distance(x, s), ssim(x, c))
