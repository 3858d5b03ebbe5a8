"""Random generators for learning, each from the seed and a draw number."""

import torch

# Independent draws of one run use the seed seed·2³² + one of these + a count.
VIEWS_DRAW, WEIGHTS_DRAW, JUDGED_DRAW, STEP_DRAW = 1, 2, 3, 1 << 20


def generator_of(seed: int, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 32) + draw)
