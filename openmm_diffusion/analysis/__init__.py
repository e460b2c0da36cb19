"""What chains, weights and energies say: mixing, free energies, importance weights, limits of a proposal, figures.

Everything here takes plain arrays (float64) and knows neither OpenMM nor torch; matplotlib is loaded by the functions
that draw. Angles are in radians, energies in kT.
"""

from .free_energy import Estimate, basin_free_energy, free_energy_surface, md_rate_bound
from .importance import kish_ess, pareto_k, resample
from .marginal import acceptance_limits, conditionals, kish_limit, leave_one_out, marginal, marginal_eta, oracle_eta
from .metrics import read_metrics
from .mixing import (
    BASIN_R,
    autocorrelation,
    change_efficiency,
    count_changes,
    effective_sample_size,
    in_basin_r,
    r_hat,
)
from .plots import (
    autocorrelation_plot,
    energy_histograms,
    log_alpha_terms,
    loss_curve,
    ramachandran,
    save,
    trace,
)

__all__ = [
    "BASIN_R",
    "Estimate",
    "acceptance_limits",
    "autocorrelation",
    "autocorrelation_plot",
    "basin_free_energy",
    "change_efficiency",
    "conditionals",
    "count_changes",
    "effective_sample_size",
    "energy_histograms",
    "free_energy_surface",
    "in_basin_r",
    "kish_ess",
    "kish_limit",
    "leave_one_out",
    "log_alpha_terms",
    "loss_curve",
    "marginal",
    "marginal_eta",
    "md_rate_bound",
    "oracle_eta",
    "pareto_k",
    "r_hat",
    "ramachandran",
    "read_metrics",
    "resample",
    "save",
    "trace",
]
