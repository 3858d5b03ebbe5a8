"""Latent diffusion models: an autoencoder, a text encoder, and a U-Net that is conditioned on text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from styleengine.backbones.base import Backbone
from styleengine.errors import StyleEngineError

PLACEHOLDER = "*"  # in a prompt, stands for a learned token embedding


@dataclass
class LatentBackbone(Backbone):
    """A latent diffusion model of Stable Diffusion 1's topology.

    Latents have 1 / `multiple` of the image's height and width, and about unit variance.
    """

    vae: Any  # AutoencoderKL or AutoencoderTiny
    tokenizer: Any
    text_encoder: nn.Module

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.unet, self.vae, self.text_encoder

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images → latents (the mean of the posterior, so deterministic)."""
        latents = self._by_autoencoder(self._encoded, pixels) * self.vae.config.scaling_factor
        return self.finite(latents, "the image's latents")

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents → images; StyleEngineError if they are not finite."""
        return self.finite(self._by_autoencoder(self.decode_with_gradient, latents), "the image")

    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = latents / self.vae.config.scaling_factor
        return self.vae.decode(scaled.to(self.device, self.vae.dtype)).sample.float()

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        encoded = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        return (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean).float()

    def _by_autoencoder(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """function(x), image by image: the autoencoder needs more memory than the U-Net."""
        return torch.cat([self._sound(function, row) for row in x.split(1)])

    def _sound(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """function(x), in float32 if it overflows in float16, as some images do with Stable Diffusion's autoencoder."""
        result = function(x)
        if self.vae.dtype != torch.float16 or bool(result.isfinite().all()):
            return result
        del result
        try:
            self.vae.float()  # may run out of memory halfway
            return function(x)
        finally:
            self.vae.half()  # exact: the weights were float16

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (batch, tokens, width) of the prompts; "" is the null condition."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0].to(self.dtype)

    @property
    def words(self) -> str:
        """The text encoder's shape: token embeddings learned on one work with any other of the same shape."""
        config: Any = self.text_encoder.config
        return f"{config.vocab_size} tokens, width {config.hidden_size}, {config.num_hidden_layers} layers"

    @property
    def word_width(self) -> int:
        return self._token_embeddings.weight.shape[1]

    @property
    def word_size(self) -> float:
        """The root mean square of the token embeddings."""
        return float(self._token_embeddings.weight.float().square().mean().sqrt())

    def condition_with_word(self, prompt: str, words: torch.Tensor) -> torch.Tensor:
        """Text embeddings (batch, tokens, width) of the prompt, with each of `words` in turn for “*”.

        `words` are token embeddings (batch, word_width); differentiable with respect to them if gradients
        are enabled. “*” may occur several times and need not be in the tokenizer's vocabulary.

        Raises StyleEngineError for a prompt without “*”, or with “*” beyond the token limit.
        """
        ids, places, _ = self._tokens_around_word(prompt)
        tokens = torch.tensor([ids], dtype=torch.long, device=self.device).expand(len(words), -1)
        with _replaced(self._token_embeddings, torch.tensor(places, dtype=torch.bool, device=self.device), words):
            return self.text_encoder(tokens)[0].to(self.dtype)

    @property
    def _token_embeddings(self) -> nn.Embedding:
        encoder: Any = self.text_encoder
        return encoder.get_input_embeddings()

    def note_on(self, prompt: str) -> str:
        """A sentence if `condition_with_word` truncates the prompt, else an empty string."""
        *_, read = self._tokens_around_word(prompt)
        return cut_note(prompt, read, self.tokenizer.model_max_length)

    def _tokens_around_word(self, prompt: str) -> tuple[list[int], list[bool], str]:
        """Padded token ids, which of them are replaced, and the part of the prompt that is not truncated."""
        before, *others = prompt.split(PLACEHOLDER)
        if not others:
            raise StyleEngineError(
                f"The prompt “{prompt}” has no {PLACEHOLDER}, which stands for the learned style: write one, "
                f"as in “a lighthouse in the style of {PLACEHOLDER}”."
            )
        tokenizer, room = self.tokenizer, self.tokenizer.model_max_length
        ids, places, ends, end = [tokenizer.bos_token_id], [False], [0], 0

        def read(text: str) -> None:
            tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids.extend(tokens.input_ids)
            places.extend([False] * len(tokens.input_ids))
            ends.extend(end + stop for _, stop in tokens.offset_mapping)

        read(before)
        if len(ids) > room - 2:
            raise StyleEngineError(
                f"The prompt “{prompt}” is too long: of {room} tokens, {len(ids)} come before the {PLACEHOLDER}. "
                "Shorten the text before it."
            )
        end = len(before)
        for piece in others:
            end += len(PLACEHOLDER)
            ids.append(tokenizer.bos_token_id)
            places.append(True)
            ends.append(end)
            read(piece)
            end += len(piece)
        text = prompt if len(ids) < room else prompt[: ends[room - 2]]
        ids, places = [*ids[: room - 1], tokenizer.eos_token_id], [*places[: room - 1], False]
        padding = room - len(ids)
        return ids + [tokenizer.pad_token_id] * padding, places + [False] * padding, text

    def predict_noise_with_gradient(
        self, latents: torch.Tensor, timestep: int | torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        expanded = condition.expand(len(latents), -1, -1)
        output = self.unet(latents.to(self.dtype), timestep, encoder_hidden_states=expanded).sample.float()
        return self.noise_of(output, latents, timestep)


def with_text_encoder(backbone: Backbone) -> LatentBackbone:
    """The backbone; StyleEngineError if it has no text encoder."""
    if not isinstance(backbone, LatentBackbone):
        raise StyleEngineError(
            f"The model “{backbone.title}” has no text encoder, which this method needs. Choose a latent model."
        )
    return backbone


def cut_note(text: str, read: str, limit: int) -> str:
    """A sentence if a text encoder of `limit` tokens reads only the part `read` of the text, else an empty string."""
    if len(read.strip()) >= len(text.strip()):
        return ""
    return (
        f"Of the words “{text.strip()[:40].strip()}…” only those up to “…{read.strip()[-40:].strip()}” were read: "
        f"the text encoder takes {limit} tokens. Put what matters first."
    )


@contextmanager
def _replaced(embedding: nn.Embedding, places: torch.Tensor, words: torch.Tensor) -> Iterator[None]:
    """Within the context, the embedding layer returns row i of `words` for row i's tokens at `places` (tokens,)."""

    def put_in(layer: nn.Module, given: Any, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.where(places[None, :, None], words[:, None].to(embeddings.dtype), embeddings)

    handle = embedding.register_forward_hook(put_in)
    try:
        yield
    finally:
        handle.remove()
