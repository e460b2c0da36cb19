"""Times and noise levels handed to the diffusers: numbers or tensors, of either precision."""

import torch
from torch import Tensor

from ..errors import SettingError


def as_double(t: Tensor | float) -> Tensor:
    """t as a float64 tensor."""
    return t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


def like(x: Tensor, t: Tensor | float) -> Tensor:
    """x in the floating dtype of t; a Python number counts as float64."""
    return x.to(t.dtype) if isinstance(t, Tensor) and t.is_floating_point() else x


def check_order(t_from: Tensor, t_to: Tensor) -> None:
    """Refuse a noising step that does not go up in time.

    Raises
    ------
    SettingError
        Where t_to is not above t_from.
    """
    if not bool((t_to > t_from).all()):
        raise SettingError(f"a noising step goes from t = {t_from.tolist()} to {t_to.tolist()}; expected t_to > t_from")
