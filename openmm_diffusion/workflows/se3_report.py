"""What a run of `generate se3` shows: figures, and its quality as text for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import backbone_plots, backbone_quality, plots

Array = NDArray[np.float64]
BINS = 48

FILES = {
    "samples.pdb": "the backbones (N, CA, C, O, CB), models of one file",
    "pdb": "the same, a file for each",
    "samples.dcd": "the same as a trajectory",
    "topology.pdb": "its topology: the first of them",
    "all_atom": "with side chains and hydrogens by pdbfixer, a file for each",
    "quality.json": "geometry, breaks, clashes, torsions and fluctuations, against MD where given",
    "ca_links.png": "distances of consecutive CA",
    "ramachandran.png": "phi and psi of all residues",
    "rmsf.png": "fluctuations along the chain",
    "gyration.png": "radii of gyration",
    "backbones.png": "CA traces, superposed",
    "geometry.png": "errors of bonds and angles",
    "settings.yaml": "the resolved settings",
}


def draw(generated: Array, md: Array | None, quality: Mapping[str, Any], folder: Path) -> None:
    """Write the figures of backbones [n, L, 4, 3] (Angstrom), beside those of MD where given."""
    sets = {"generated": generated} if md is None else {"generated": generated, "MD": md}
    links = {label: backbone_quality.ca_links(x) for label, x in sets.items()}
    plots.save(backbone_plots.ca_link_histogram(links), folder / "ca_links.png")
    profiles = {label: backbone_quality.rmsf(x) for label, x in sets.items()}
    plots.save(backbone_plots.rmsf_profile(profiles), folder / "rmsf.png")
    radii = {label: backbone_quality.radius_of_gyration(x) for label, x in sets.items()}
    plots.save(backbone_plots.gyration_histogram(radii), folder / "gyration.png")
    traces = {label: sets[label][:, :, 1] for label in reversed(sets)}
    plots.save(backbone_plots.backbone_traces(traces), folder / "backbones.png")
    plots.save(ramachandran_panel(sets), folder / "ramachandran.png")
    if quality["comparison"] is not None:
        plots.save(backbone_plots.geometry_bars(quality["comparison"]["geometry"]), folder / "geometry.png")


def ramachandran_panel(sets: Mapping[str, Array]) -> Any:
    """A figure of (phi, psi) of each ensemble, all residues together, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9 * len(sets), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (label, x) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        phi, psi = backbone_quality.phi_psi(x)
        plots.ramachandran(phi.ravel(), psi.ravel(), ax=ax, title=label, bins=BINS)
    return figure


def quality_text(quality: Mapping[str, Any]) -> str:
    """The quality as text, for people: generated beside MD where there is one."""
    found, md, comparison = quality["generated"], quality["md"], quality["comparison"]

    def beside(key: str, pattern: str) -> str:
        own = pattern.format(found[key])
        return own if md is None else f"{own} (MD {pattern.format(md[key])})"

    rows = [
        ("backbones", f"{found['chains']} in {quality['seconds']:.1f} s by {quality['sampler']}"),
        ("CA-CA > 4.5 A", beside("ca_links_above_4.5", "{:.2%}")),
        ("CA-CA > 3.902 A", beside("ca_links_above_3.902", "{:.2%}")),
        ("C-N > 2 A", beside("c_n_above_2.0", "{:.2%}")),
        ("broken chains", beside("chains_broken", "{:.1%}")),
        ("clashing chains", beside("chains_with_heavy_clash", "{:.1%}")),
        ("Rg of CA", f"{beside('radius_of_gyration_mean', '{:.2f}')} A"),
        ("mean RMSF", f"{beside('rmsf_mean', '{:.2f}')} A"),
    ]
    if comparison is not None:
        rows += _comparison_rows(comparison)
    if quality["with_side_chains"] is not None:
        rows.append(("side chains", f"added to {quality['with_side_chains']} backbones"))
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    notes = [*quality["notes"], *([] if comparison is None else comparison["torsion_divergence"]["notes"])]
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])


def _comparison_rows(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    torsions, correlation = comparison["torsion_divergence"], comparison["rmsf_correlation"]
    amplitudes = comparison["rmsf_ratio_per_residue"]
    rows = [
        ("RMSF correlation", "-" if correlation is None else f"{correlation:.3f}"),
        (
            "RMSF amplitude",
            f"{comparison['rmsf_ratio']:.2f} of MD (residues {min(amplitudes):.2f} to {max(amplitudes):.2f})",
        ),
    ]
    for key, label in (("per_residue", "JSD per residue"), ("pooled", "JSD pooled")):
        ratio, excess = torsions["ratio"][key], torsions["excess_ratio"][key]
        rows.append(
            (
                label,
                f"{torsions['generated_and_held_out'][key]:.4f} bit to held-out MD, "
                f"{torsions['halves_of_md'][key]:.4f} between halves of MD, "
                f"{torsions['by_chance'][key]:.4f} by chance, {torsions['samples']} frames each"
                + ("" if ratio is None else f"; ratio {ratio:.2f}")
                + ("" if excess is None else f", above chance {excess:.2f}"),
            )
        )
    geometry = comparison["geometry"]
    worst = sorted(geometry, key=lambda name: -geometry[name]["rms_error"] / max(geometry[name]["reference_rms"], 1e-6))
    parts = [
        f"{name} {geometry[name]['rms_error']:.3g} (MD {geometry[name]['reference_rms']:.3g})" for name in worst[:3]
    ]
    return [*rows, ("largest rms errors", ", ".join(parts))]
