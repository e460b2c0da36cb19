"""The probe of a training for exact acceptance: how well the path of a network knows held-out frames."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .se3_presets import ACCEPTANCE_STEPS
from .train_se3_settings import TrainSE3Settings

if TYPE_CHECKING:
    from ..data.mdgen_dataset import MDGenDataset

PROBE_FRAMES, PROBE_SEED = 256, 0


def acceptance_probe(
    settings: TrainSE3Settings, validation: "MDGenDataset"
) -> Callable[[Any], dict[str, float]] | None:
    """A function of the network: mean and standard deviation over held-out frames of the path's log density.

    The mean is minus the divergence of the path up to a constant, the higher the better. The frames are always the
    same, and so is the noise. None where the model is not one of p(tau) a(s), or its chains are of several kinds.
    """
    residues = {trajectory.residues for trajectory in validation.trajectories}
    if settings.auxiliary_width is None or len(residues) > 1:
        return None
    import torch

    from ..diffusion.stiff_links import StiffLinks
    from ..sampling.path import SE3Path

    stiff = StiffLinks.of(residues.pop(), width=settings.auxiliary_width)
    batch = validation.__getitems__(range(min(PROBE_FRAMES, len(validation)))).batch
    rigids, types = batch["rigids_0"].double(), batch["aatype"][0]
    rigids[..., 4:] /= validation.coord_scale

    def probe(network: Any) -> dict[str, float]:
        device = next(network.parameters()).device
        path = SE3Path(network, stiff, n_steps=ACCEPTANCE_STEPS, max_t=settings.max_t, aatype=types)
        log_q = path.score(rigids.to(device), torch.Generator(device).manual_seed(PROBE_SEED))
        return {"log_q": float(log_q.mean()), "log_q_std": float(log_q.std())}

    return probe
