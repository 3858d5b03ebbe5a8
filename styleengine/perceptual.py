"""CLIP embeddings of images and texts, and CLIP's patch tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from styleengine.backbones import Backbone, OnBytes, cut_note, load_clip


class Clip:
    """The CLIP model of a backbone. All functions of images are differentiable.

    Images are (batch, 3, height, width) in [−1, 1], of any size. Texts are truncated to `longest_text`
    tokens, including the start and end tokens. `on_bytes` is called during a download, as in `hub.download`.
    Raises StyleEngineError if the backbone has no CLIP and none can be downloaded.
    """

    def __init__(self, backbone: Backbone, on_bytes: OnBytes | None = None) -> None:
        self.model, self.tokenizer, processor = load_clip(backbone, on_bytes)
        config: Any = self.model.config
        self.side: int = config.vision_config.image_size
        self.longest_text: int = config.text_config.max_position_embeddings
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32, device=backbone.device).view(1, 3, 1, 1)
            for values in (processor.image_mean, processor.image_std)
        )

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self.model.parameters())

    @contextmanager
    def checkpointing(self, wanted: bool) -> Iterator[None]:
        """Within the context, the image encoder uses gradient checkpointing layer by layer, if `wanted`.

        Without it CLIP needs most of the memory of a gradient. transformers checkpoints in training mode only.
        """
        encoder: Any = self.model.vision_model
        if not wanted or encoder.config.attention_dropout:
            yield
            return
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        encoder.train()
        try:
            yield
        finally:
            encoder.eval()
            self.model.gradient_checkpointing_disable()

    def framed(self, pictures: torch.Tensor) -> torch.Tensor:
        """The central square of each image at CLIP's resolution."""
        height, width = pictures.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = pictures[..., top : top + side, left : left + side].to(self.mean)
        if side == self.side:
            return square
        return F.interpolate(square, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)

    def prepare(self, pictures: torch.Tensor) -> torch.Tensor:
        """The central square of each image at CLIP's resolution, normalised as in its image processor."""
        return (self.framed(pictures).clamp(-1, 1).add(1).div(2) - self.mean) / self.std

    def embed(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`image_embeddings` and `patch_tokens` of the images, in one forward pass."""
        output = self.model.vision_model(pixel_values=self.prepare(pictures))
        return F.normalize(self.model.visual_projection(output.pooler_output), dim=-1), output.last_hidden_state[:, 1:]

    def image_embeddings(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit vectors (batch, width), in the space of `text_embeddings`."""
        return self.embed(pictures)[0]

    def patch_tokens(self, pictures: torch.Tensor) -> torch.Tensor:
        """The image encoder's last hidden states without the class token: (batch, patches, width)."""
        return self.embed(pictures)[1]

    def reads(self, text: str) -> bool:
        """Whether the text has tokens other than special tokens."""
        marks = {*self.tokenizer.all_special_ids}
        return any(token not in marks for token in self._tokens(text).input_ids)

    def _tokens(self, text: str, **options: Any) -> Any:
        """The text's tokens, not truncated, including the start and end tokens."""
        return self.tokenizer(text, verbose=False, **options)

    def note_on(self, text: str) -> str:
        """A sentence if the text is truncated, else an empty string."""
        ends = [stop for _, stop in self._tokens(text, return_offsets_mapping=True).offset_mapping]
        if len(ends) <= self.longest_text:
            return ""
        return cut_note(text, text[: ends[self.longest_text - 2]], self.longest_text)

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (batch, width)."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.longest_text, return_tensors="pt"
        ).to(self.model.device)
        return F.normalize(self.model.text_projection(self.model.text_model(**tokens).pooler_output), dim=-1)
