"""Sizes of the SE(3) network and noise processes by name, as plain values: light to import."""

from typing import Any

PRESETS = ("seed", "small", "acceptance")

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


def preset(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of network and noise process of a preset, what is not named taking its default.

    "seed": the first seed's defaults. "small": a network that learns 35 residues on a CPU within the hour, down to
    0.02 rad and 0.1 Angstrom of noise. "acceptance": the same size for a model under an exact acceptance test,
    without self-conditioning.
    """
    if name == "seed":
        return {}, {}
    if name == "small":
        return _SMALL_NETWORK, {"min_t": 0.001, "so3": {"min_sigma": 0.02}}
    embed = {**_SMALL_NETWORK["embed"], "embed_self_conditioning": False, "embed_residue_type": True}
    noise = {
        "min_t": 0.001,
        "so3": {"min_sigma": 0.02, "max_sigma": 2.5, "base": "haar"},
        "r3": {"coordinate_scaling": "auto"},
    }
    return {**_SMALL_NETWORK, "embed": embed}, noise


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping with the values of another put over it."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
