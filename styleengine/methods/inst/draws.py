"""Random generators for learning, each from the seed and a draw number."""

import torch

# Independent draws of one run, by number. The steps count on from STEP_DRAW.
VIEWS_DRAW, WEIGHTS_DRAW, VALIDATION_DRAW, STEP_DRAW = 1, 2, 3, 1 << 20
APART = 0x9E3779B1  # odd: 2³² divided by the golden ratio, so that the numbers of neighbouring seeds lie far apart


def generator_of(seed: int, draw: int) -> torch.Generator:
    """The generator of a draw.

    Both numbers go into 32 bits: of a CPU generator's seed torch uses no more. For seed 0 it is the draw's number.
    """
    return torch.Generator().manual_seed((seed * APART + draw) % (1 << 32))
