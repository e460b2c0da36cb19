"""Training of the SE(3) score network: losses, self-conditioning, learning rate, the first seed's metrics."""

from typing import Any

import lightning
import torch
from torch import Tensor

from ..diffusion.se3_config import SE3Config
from ..diffusion.se3_diffuser import SE3Diffuser
from ..errors import ModelFileError, SettingError, TrainingError
from ..models.score_network import ScoreNetwork
from ..models.se3_config import ScoreNetworkConfig
from .callbacks import check_loss
from .se3_checks import diffused_units, first_difference
from .se3_loss import LossWeights, TransWeighting, se3_losses

Batch = dict[str, Any]
_LAST_T = 1.0 - 1e-6
_TERMS = ("rot", "trans", "psi")


class SE3Module(lightning.LightningModule):
    """Trains a `ScoreNetwork` on the batches of an `MDGenDataset`.

    Logs `train_loss`, `train_rot_loss`, `train_trans_loss`, `train_psi_loss` and the same with `val_`. Samples at
    t = 1, where nothing can be predicted, are logged apart as `val_t1_loss`, ...; the three terms are always the first
    seed's, unclipped, and `val_loss` is their weighted sum; `train_loss` is what is minimised.

    `coord_scale`, the length unit of the data, is taken from the first batch, and `coordinate_scaling`, the diffused
    units per Angstrom, from the training set where the configuration says "auto"; both are kept in buffers, and data
    with others are refused.

    Parameters
    ----------
    model_conf, se3_conf
        Configurations of network and noise process: mappings (OmegaConf's included) or the package's own classes.
    lr
        Learning rate of Adam, reached after `warmup_steps`.
    rot_loss_weight, trans_loss_weight, psi_loss_weight
        Weights of the three losses.
    self_conditioning
        Share of the steps that show the network its own prediction of the clean CA positions; 0 for models under an
        exact acceptance test, whose score must be a fixed function of (x_t, t).
    seed
        Seed of the weights and of the choice of steps with self-conditioning.
    cosine_decay
        Let the learning rate fall to 1 % along a cosine over the whole training.
    trans_weighting, loss_clip, atom_loss_weight, distance_loss_weight
        See `LossWeights`.
    """

    coord_scale: Tensor
    coordinate_scaling: Tensor
    # Equal in all processes without being sent around, which would fail where these have unequally many batches.
    _ddp_params_and_buffers_to_ignore = ("coord_scale", "coordinate_scaling")

    def __init__(
        self,
        model_conf: Any,
        se3_conf: Any,
        lr: float = 1e-4,
        *,
        rot_loss_weight: float = 1.0,
        trans_loss_weight: float = 1.0,
        psi_loss_weight: float = 1.0,
        self_conditioning: float = 0.5,
        seed: int = 0,
        warmup_steps: int = 0,
        cosine_decay: bool = False,
        trans_weighting: TransWeighting = "score",
        loss_clip: float | None = None,
        atom_loss_weight: float = 0.0,
        distance_loss_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not lr > 0.0:
            raise SettingError(f"lr is {lr}; expected a number > 0")
        if not 0.0 <= self_conditioning <= 1.0:
            raise SettingError(f"self_conditioning is {self_conditioning}; expected a share in [0, 1]")
        self.model_conf, self.se3_conf = ScoreNetworkConfig.of(model_conf), SE3Config.of(se3_conf)
        self.network = ScoreNetwork(self.model_conf, SE3Diffuser(self.se3_conf), seed=seed)
        self.weights = LossWeights(
            rot_loss_weight,
            trans_loss_weight,
            psi_loss_weight,
            atom_loss_weight,
            distance_loss_weight,
            trans_weighting,
            loss_clip,
        )
        self.time_share = 0.0
        self._lr, self._warmup_steps, self._cosine_decay = lr, warmup_steps, cosine_decay
        embeds = self.model_conf.embed.embed_self_conditioning
        self.self_conditioning = self_conditioning if embeds else 0.0
        self._noise = torch.Generator().manual_seed(seed)
        self._scale = 0.0
        self._validation: Tensor | None = None
        for name in ("coord_scale", "coordinate_scaling"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self._scaling = 0.0
        if self.se3_conf.r3.coordinate_scaling != "auto":
            self.set_coordinate_scaling(self.se3_conf.r3.coordinate_scaling)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The network's output dictionary of a batch."""
        return dict(self.network(batch))

    def on_fit_start(self) -> None:
        """Take the diffused units from the training set of a data module, or refuse them."""
        self._take_scaling(getattr(getattr(self.trainer, "datamodule", None), "train", None))

    def on_train_start(self) -> None:
        """The same for a training set that came in a loader."""
        self._take_scaling(self.trainer.train_dataloader)

    def on_validation_start(self) -> None:
        """The same for validation sets."""
        self._take_scaling(self.trainer.val_dataloaders)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Loss of a batch, averaged over the residues of a sample and then over the samples."""
        self._take_scale(batch)
        # One draw a step, used or not, so that the choice does not depend on other options.
        if float(torch.rand((), generator=self._noise)) < self.self_conditioning:
            batch = self._self_conditioned(batch)
        losses = se3_losses(batch, self.network(batch), self.weights)
        loss = losses.total.mean()
        check_loss(loss, self.global_step)
        n = len(losses.total)
        self.log("train_loss", loss, prog_bar=True, batch_size=n)
        self.log_dict({f"train_{name}_loss": getattr(losses, name).mean() for name in _TERMS}, batch_size=n)
        return loss

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Losses of a batch with the noise levels and the noise that it carries; t = 1 apart.

        Self-conditioned where the training is, as sampling is.
        """
        self._take_scale(batch)
        if self.self_conditioning:
            batch = self._self_conditioned(batch)
        losses = se3_losses(batch, self.network(batch), self.weights)
        values = torch.stack([torch.ones_like(losses.rot), *(getattr(losses, name) for name in _TERMS)], -1).double()
        last = (batch["t"] > _LAST_T)[:, None]
        sums = torch.stack([torch.where(chosen, values, 0.0).sum(0) for chosen in (~last, last)])
        self._validation = sums if self._validation is None else self._validation + sums

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the validation before."""
        self._validation = None

    def on_validation_epoch_end(self) -> None:
        """Log the means over the samples of all batches and processes."""
        own = self._validation
        if own is None:  # a process without samples takes part too, or the others would wait for ever
            own = torch.zeros(2, 1 + len(_TERMS), dtype=torch.float64, device=self.device)
        # Summed here and not by the logger: where one process has no sample at t = 1, its logger would wait for ever.
        gathered: Any = self.all_gather(own)
        sums = gathered.reshape(-1, *own.shape).sum(0)
        for prefix, (n, *terms) in zip(("val", "val_t1"), sums.tolist(), strict=True):
            if n:
                means = {name: term / n for name, term in zip(_TERMS, terms, strict=True)}
                total = sum(getattr(self.weights, name) * mean for name, mean in means.items())
                self.log(f"{prefix}_loss", total, prog_bar=prefix == "val")
                self.log_dict({f"{prefix}_{name}_loss": mean for name, mean in means.items()})

    def configure_optimizers(self) -> Any:
        """Adam; a linear warm-up and a cosine decay where asked for."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self._lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def set_coord_scale(self, value: float) -> None:
        """Set the length units per Angstrom of the tensors that the network sees; 0 leaves it open."""
        if value > 0.0:
            self.coord_scale.fill_(value)
            self.network.diffuser.coord_scale = value
            self._scale = value

    def set_coordinate_scaling(self, value: float) -> None:
        """Set the diffused units per Angstrom; a TrainingError where they are known and others."""
        if self._scaling and abs(value - self._scaling) > 1e-4 * self._scaling:
            raise TrainingError(
                f"a data set has the coordinate_scaling {value:.6g} per A, expected {self._scaling:.6g} as in the "
                "configuration, the checkpoint or the training set; give every data set that of the training set"
            )
        if not self._scaling:
            self.coordinate_scaling.fill_(value)
            self.network.diffuser.coordinate_scaling = value
            self._scaling = value

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration, and the state of the generator so that a resumed training goes on with it."""
        checkpoint["se3"] = {"model_conf": self.model_conf.model_dump(), "se3_conf": self.se3_conf.model_dump()}
        checkpoint["noise_generator"] = self._noise.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another configuration; take back the scale and the generator's state."""
        stored = checkpoint.get("se3")
        if stored is None:
            raise ModelFileError("the checkpoint is not of an SE(3) training; give the folder of one, or start anew")
        for name, own in (("model_conf", self.model_conf), ("se3_conf", self.se3_conf)):
            if difference := first_difference(stored[name], own.model_dump()):
                key, before, now = difference
                raise ModelFileError(
                    f"the checkpoint was made with {name}.{key} = {before}, expected {now}; give the configuration of "
                    "the checkpoint, or train anew with --overwrite"
                )
        self._noise.set_state(checkpoint["noise_generator"].cpu())
        scale = float(checkpoint["state_dict"]["coord_scale"])
        self.set_coord_scale(scale)
        for name in ("state_dict", "current_model_state"):
            # Before this buffer existed, "auto" meant one over a spread of 1 / coord_scale.
            if name in checkpoint and "coordinate_scaling" not in checkpoint[name]:
                checkpoint[name]["coordinate_scaling"] = torch.tensor(self._scaling or scale, dtype=torch.float64)
        if stored_scaling := float(checkpoint["state_dict"]["coordinate_scaling"]):
            self.set_coordinate_scaling(stored_scaling)

    def _take_scale(self, batch: Batch) -> None:
        scales = torch.as_tensor(batch["coord_scale"], dtype=torch.float64).reshape(-1)
        known = self._scale or float(scales[0])
        deviation = (scales - known).abs()
        if bool((deviation > 1e-4 * known).any()):
            raise TrainingError(
                f"a batch has coord_scale {float(scales[deviation.argmax()]):.6g}, expected {known:.6g} as in the "
                "batches before; give every data set the coord_scale of the training data"
            )
        if not self._scale:
            self.set_coord_scale(known)

    def _take_scaling(self, data: Any) -> None:
        for value in diffused_units(data):
            self.set_coordinate_scaling(value)

    def _self_conditioned(self, batch: Batch) -> Batch:
        with torch.no_grad():
            ca = self.network(batch)["rigids"][..., 4:]
        return {**batch, "sc_ca_t": (ca * batch["res_mask"][..., None]).to(batch["sc_ca_t"].dtype)}

    def _lr_factor(self, step: int) -> float:
        warm = min(1.0, (step + 1) / (self._warmup_steps + 1))
        if not self._cosine_decay:
            return warm
        share = min(1.0, max(step / max(1, int(self.trainer.estimated_stepping_batches)), self.time_share))
        return warm * (0.505 + 0.495 * float(torch.cos(torch.tensor(torch.pi * share))))
