"""Denoising score matching on the torus."""

from typing import Any

import lightning
import torch
from torch import Tensor

from ..diffusion.torus_diffuser import TorusDiffuser
from ..models.torsion_network import TorsionNetwork
from .callbacks import check_loss


class TorsionModule(lightning.LightningModule):
    """Trains a `TorsionNetwork` on batches of clean torsions [B, T].

    The loss is the squared error of the score over the mean square of the kernel's own score at that noise level
    (Vincent, "A connection between score matching and denoising autoencoders", 2011, eq. 11; weights of Song et al.,
    2021, eq. 7): 1 for a network that outputs zero, at every noise level.

    Logs `train_loss` and `val_loss`; validation uses the same noise levels and the same noise every time.
    """

    _scaling: Tensor

    def __init__(self, network: TorsionNetwork, *, lr: float = 2e-3, n_steps: int = 10_000, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.diffuser = TorusDiffuser(network.config.min_sigma, network.config.max_sigma)
        self._lr, self._n_steps, self._seed = lr, n_steps, seed
        self._noise = torch.Generator().manual_seed(seed)
        grid = torch.linspace(0.0, 1.0, 1024, dtype=torch.float64)
        self.register_buffer("_scaling", self.diffuser.score_scaling(grid).float(), persistent=False)

    def training_step(self, batch: Tensor, _index: int) -> Tensor:
        """Loss of a batch at noise levels stratified over [0, 1]."""
        n = len(batch)
        t = (torch.arange(n) + torch.rand(n, generator=self._noise)) / n
        loss = self._loss(batch, t.to(batch.device), self._noise)
        check_loss(loss, self.global_step)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Loss at fixed noise levels with fixed noise."""
        noise = torch.Generator().manual_seed(self._seed + 1_000_003 * (index + 1))
        t = torch.linspace(0.0, 1.0, len(batch), device=batch.device)
        self.log("val_loss", self._loss(batch, t, noise), prog_bar=True, batch_size=len(batch))

    def configure_optimizers(self) -> Any:
        """AdamW with a short warm-up and a cosine decay over the whole training."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self._lr, weight_decay=1e-4)
        warm_up = max(1, min(500, self._n_steps // 20))
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, warm_up),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self._n_steps - warm_up), self._lr * 0.01),
            ],
            [warm_up],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the noise, so that a resumed training goes on with new noise."""
        checkpoint["noise_generator"] = self._noise.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the state of the noise back."""
        self._noise.set_state(checkpoint["noise_generator"].cpu())

    def _loss(self, tau_0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        # Noise is drawn on the CPU so that a seed means the same on every device.
        tau_t, score = self.diffuser.forward_marginal(tau_0.cpu(), t.cpu(), generator)
        tau_t, score = tau_t.to(tau_0.device), score.to(tau_0.device)
        position = t * (len(self._scaling) - 1)
        scaling = self._scaling[position.round().long()]
        error = (self.network(tau_t, self.diffuser.sigma(t)) - score) / scaling[:, None]
        return (error**2).mean()
