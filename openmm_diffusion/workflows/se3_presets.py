"""Sizes of the SE(3) network and noise processes by name, and what a preset says of training: plain values."""

from typing import Any

PRESETS = ("seed", "small", "acceptance")
# Levels of noise that a model for exact acceptance is used with, unless a move asks for others.
ACCEPTANCE_STEPS = 48

_SMALL_NETWORK: dict[str, Any] = {
    "node_embed_size": 96,
    "edge_embed_size": 24,
    "embed": {"index_embed_size": 32, "relative_frames": True},
    "ipa": {
        "num_blocks": 3,
        "no_heads": 4,
        "c_hidden": 16,
        "no_qk_points": 4,
        "no_v_points": 8,
        "c_skip": 32,
        "seq_tfmr_num_heads": 4,
        "seq_tfmr_num_layers": 1,
    },
    "precondition": True,
}
_SMALL_NOISE: dict[str, Any] = {"min_t": 0.001, "so3": {"min_sigma": 0.02}}

_ACCEPTANCE_NETWORK: dict[str, Any] = {
    "node_embed_size": 64,
    "edge_embed_size": 16,
    "embed": {
        "index_embed_size": 16,
        "relative_frames": True,
        "embed_self_conditioning": False,
        "embed_residue_type": True,
    },
    "ipa": {
        "num_blocks": 2,
        "no_heads": 4,
        "c_hidden": 8,
        "no_qk_points": 4,
        "no_v_points": 4,
        "c_skip": 16,
        "seq_tfmr_num_heads": 4,
        "seq_tfmr_num_layers": 1,
    },
}
# The floors are about as wide as the auxiliary links (auxiliary_width, rad and Angstrom).
_ACCEPTANCE_NOISE: dict[str, Any] = {
    "min_t": 0.005,
    "so3": {"min_sigma": 0.04, "max_sigma": 2.5, "base": "haar"},
    "r3": {"coordinate_scaling": "auto"},
}
_ACCEPTANCE_TRAINING: dict[str, Any] = {
    "auxiliary_width": 0.15,
    "time_grid": "noise",
    "max_t": 0.4,
    "flatten": 0.4,
    "psi_loss_weight": 0.0,
    "self_conditioning": 0.0,
    "batch_size": 256,
    "lr": 2e-3,
    "cosine_decay": True,
    "warmup_steps": 200,
    "ema_decay": 0.999,
    "epochs": 100_000,  # time ends the training
    "max_minutes": 30.0,
}


def preset(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of network and noise process of a preset, what is not named taking its default.

    "seed": the first seed's defaults. "small": a network that learns 35 residues on a CPU within the hour, down to
    0.02 rad and 0.1 Angstrom of noise. "acceptance": a smaller one for peptides under an exact acceptance test, without
    self-conditioning, with noise down to about the width of the auxiliary stiff links.
    """
    if name == "seed":
        return {}, {}
    if name == "small":
        return _SMALL_NETWORK, _SMALL_NOISE
    return _ACCEPTANCE_NETWORK, _ACCEPTANCE_NOISE


def training_preset(name: str) -> dict[str, Any]:
    """Settings of `train se3` that a preset implies where they are not given."""
    return dict(_ACCEPTANCE_TRAINING) if name == "acceptance" else {}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping with the values of another put over it."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
