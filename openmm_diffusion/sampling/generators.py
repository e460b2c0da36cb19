"""Generators of torch that differ wherever their seeds do."""

import numpy as np
import torch

_WORDS, _OFFSET = 624, 24  # of the Mersenne twister within the state of a generator on the CPU


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose whole state comes from the seed.

    On the CPU `manual_seed` reads 32 bits of it only, so that one pair among some 100 000 streams would be equal.
    """
    generator = torch.Generator(device).manual_seed(seed)
    if generator.device.type != "cpu":
        return generator  # counter-based, with a key of 64 bits
    state = generator.get_state()
    words = np.random.SeedSequence(seed).generate_state(_WORDS).astype(np.uint64)
    state.numpy()[_OFFSET : _OFFSET + 8 * _WORDS] = words.view(np.uint8)
    return generator.set_state(state)
