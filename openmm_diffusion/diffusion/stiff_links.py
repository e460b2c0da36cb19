"""Auxiliary stiff links: the fixed density a(s) that stands in for bonds, angles and impropers in a frame model.

A frame model has noise far wider than a bond vibration, so its stiff links never go into the structure. They are drawn
from a(s) instead, for the present state as for the training data, and the target is extended to pi(x) a(s) (DESIGN
2.4). Each stiff entry of the links [N-1, 6] = (psi, theta1, r, omega, theta2, phi') is independent of the others:

    torsions    wrapped normal, or uniform on the circle where the width is infinite
    angles      normal, truncated to (0, pi)
    bonds       normal, truncated to r > 0

normalised with respect to dl (rad, Angstrom): exactly, for any width.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MoleculeError, SettingError
from ..geometry import rotations
from ..geometry.links import CAPS, LINK, LinkGeometry, frames_from_links, links_from_frames
from ..geometry.rigid import Rigid
from ..units import TWO_PI, wrap
from .torus_diffuser import TorusDiffuser

TORSION_COLUMNS = tuple(LINK.index(name) for name in ("psi", "omega", "phi"))
CHART_COLUMNS = tuple(LINK.index(name) for name in ("theta1", "r", "theta2"))
WIDEST = 1.0  # rad; beyond it a wrapped normal tells too little of a torsion to be worth its two numbers

# Angstrom and degrees: Engh & Huber, Acta Cryst. A47, 392 (1991), table 3.
_CN, _CN_PROLINE = 1.329, 1.341
_CA_C_N, _CA_C_N_GLYCINE = 116.2, 116.4
_CA_C_N_PROLINE, _CA_C_N_GLYCINE_PROLINE = 116.9, 118.2
_C_N_CA, _C_N_CA_GLYCINE, _C_N_CA_PROLINE = 121.7, 120.6, 122.6
_C_N_H = 120.0  # NH2: Amber's parm99 (Wang, Cieplak & Kollman, J. Comput. Chem. 21, 1049 (2000))
_PHI_PROLINE = -65.0  # the ring's mean: MacArthur & Thornton, J. Mol. Biol. 218, 397 (1991)
# Draws stay this far inside the chart; the mass that is left out is below the resolution of a uniform number.
_EDGE = 1e-12


def link_labels(names: Sequence[str]) -> list[list[str]]:
    """Labels [N-1][6] of the link entries of these residues, such as "psi:ALA2" or "theta1:ALA2".

    Residue numbers run from 1; all entries of a link but phi carry the residue before it, as in peptide/torsions.py.
    """
    return [
        [f"{kind}:{names[k + 1]}{k + 2}" if kind == "phi" else f"{kind}:{names[k]}{k + 1}" for kind in LINK]
        for k in range(len(names) - 1)
    ]


def soft_by_nature(names: Sequence[str]) -> Tensor:
    """Bool [N-1, 6]: the phi and psi that turn freely, neither those of caps nor the phi of proline."""
    soft = torch.zeros(max(len(names) - 1, 0), 6, dtype=torch.bool)
    for k, (name, after) in enumerate(itertools.pairwise(names)):
        soft[k, LINK.index("psi")] = name not in CAPS
        soft[k, LINK.index("phi")] = after not in CAPS and after != "PRO"
    return soft


def literature_centres(names: Sequence[str]) -> Tensor:
    """Where the links [N-1, 6] of these residues stand (rad, Angstrom, float64); zero for freely turning torsions."""
    rows = []
    for name, after in itertools.pairwise(names):
        if after == "PRO":
            theta1 = _CA_C_N_GLYCINE_PROLINE if name == "GLY" else _CA_C_N_PROLINE
            r, theta2, phi = _CN_PROLINE, _C_N_CA_PROLINE, math.radians(_PHI_PROLINE)
        else:
            theta1, r = _CA_C_N_GLYCINE if name == "GLY" else _CA_C_N, _CN
            theta2 = {"GLY": _C_N_CA_GLYCINE, "NH2": _C_N_H}.get(after, _C_N_CA)
            phi = math.pi if after in CAPS else 0.0
        psi = math.pi if name in CAPS else 0.0
        rows.append([psi, math.radians(theta1), r, math.pi, math.radians(theta2), phi])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)


@dataclass(frozen=True)
class StiffLinks:
    """The density a(s) of the stiff links of one chain, float64 on the CPU; methods follow their input's device.

    Attributes
    ----------
    names
        Canonical residue names, caps included.
    geometry
        Ideal frames of these residues, Angstrom.
    soft
        Bool [N-1, 6], the torsions that a move sets: no part of a(s).
    centres
        [N-1, 6] in rad / Angstrom; of no meaning where the width is infinite.
    widths
        [N-1, 6] standard deviations before wrapping or truncation; inf = uniform on the circle, and soft entries.
    """

    names: tuple[str, ...]
    geometry: LinkGeometry
    soft: Tensor
    centres: Tensor
    widths: Tensor

    def __post_init__(self) -> None:
        expected = (len(self.names) - 1, 6)
        for name, value in (("soft", self.soft), ("centres", self.centres), ("widths", self.widths)):
            if tuple(value.shape) != expected:
                raise SettingError(
                    f"{name} has the shape {tuple(value.shape)}; expected {expected}, one row a link of the "
                    f"{len(self.names)} residues."
                )
        chart = list(CHART_COLUMNS)
        if bool(self.soft[:, chart].any()):
            raise SettingError("soft marks an angle or a bond; a move sets psi, omega and phi only (columns 0, 3, 5).")
        centres, widths = self.centres[:, chart], self.widths[:, chart]
        upper = torch.tensor([math.pi, math.inf, math.pi], dtype=torch.float64)
        if not bool(((centres > 0) & (centres < upper) & widths.isfinite()).all() & (self.widths > 0).all()):
            raise SettingError(
                "Centres or widths are out of range; expected angles in (0, pi), bonds and widths above 0."
            )

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        soft: Tensor | None = None,
        width: float = 0.15,
        statistics: Mapping[str, tuple[float, float]] | None = None,
    ) -> "StiffLinks":
        """a(s) around literature values for canonical residue names such as ("ACE", "ALA", "NME").

        Parameters
        ----------
        names
            Residues, caps included.
        soft
            Bool [N-1, 6] of the torsions that a move sets; all of `soft_by_nature` if not given.
        width
            Of every stiff entry (rad, Angstrom), in (0, 1].
        statistics
            (mean, width) in rad of torsions by label ("phi:ALA2", residue numbers from 1 within the chain), used where
            they are stiff; a width above 1 means uniform. Freely turning torsions without an entry are uniform.

        Raises
        ------
        MoleculeError
            A residue that has no frame, or fewer than two.
        SettingError
            A width outside its range, a mask of another shape, statistics of a torsion that the chain has not.
        """
        names = tuple(names)
        if len(names) < 2:
            raise MoleculeError(f"The chain {'-'.join(names) or 'given'} has no link; expected two residues or more.")
        if not 0.0 < width <= WIDEST:
            raise SettingError(f"The width of stiff links is {width}; expected 0 < width <= {WIDEST} (rad, Angstrom).")
        free = soft_by_nature(names)
        soft = free if soft is None else torch.as_tensor(soft, dtype=torch.bool).cpu()
        geometry, centres = LinkGeometry.of(names), literature_centres(names)
        widths = torch.full_like(centres, width).masked_fill(free, math.inf)
        _fill_in(statistics or {}, names, centres, widths)
        if soft.shape == widths.shape:
            widths = widths.masked_fill(soft, math.inf)
        return cls(names, geometry, soft, centres, widths)

    def draw(self, links: Tensor, generator: torch.Generator) -> Tensor:
        """Links [..., N-1, 6] with every stiff entry drawn afresh from a(s), float64; soft entries are kept."""
        links = links.double()
        centres, widths, soft = (x.to(links.device) for x in (self.centres, self.widths, self.soft))
        u = torch.rand(links.shape, generator=generator, dtype=torch.float64, device=links.device)
        uniform = widths.isinf()
        sigma = torch.where(uniform, torch.ones_like(widths), widths)
        lower, upper = self._limits(links)
        low, mass = torch.special.ndtr((lower - centres) / sigma), _truncated_mass(lower, upper, centres, sigma)
        # A uniform number at the end of its range gives infinity; 8.3 is the last quantile that float64 tells from it.
        normal = torch.special.ndtri(low + u * mass).clamp(-8.3, 8.3)
        value = torch.where(uniform, TWO_PI * u - math.pi, centres + sigma * normal)
        value = torch.minimum(torch.maximum(value, lower + _EDGE), upper - _EDGE)
        torsion = torch.zeros(6, dtype=torch.bool, device=links.device)
        torsion[list(TORSION_COLUMNS)] = True
        return torch.where(soft, links, torch.where(torsion, wrap(value), value))

    def log_density(self, links: Tensor) -> Tensor:
        """log a(s) [...] of links [..., N-1, 6], float64; -inf outside the chart and where any entry is not finite."""
        return self.log_factors(links).sum((-1, -2))

    def log_factors(self, links: Tensor) -> Tensor:
        """The terms [..., N-1, 6] of `log_density`, one a link entry: zero for soft ones."""
        links = links.double()
        centres, widths, soft = (x.to(links.device) for x in (self.centres, self.widths, self.soft))
        uniform = widths.isinf()
        sigma = torch.where(uniform, torch.ones_like(widths), widths)
        finite = links.isfinite()
        offset = torch.where(finite, links, centres) - centres
        factors = torch.empty_like(links)
        torsions, chart = list(TORSION_COLUMNS), list(CHART_COLUMNS)
        factors[..., torsions] = TorusDiffuser().log_density(offset[..., torsions], sigma[:, torsions])
        lower, upper = self._limits(links)
        mass = _truncated_mass(lower, upper, centres, sigma)
        normal = -0.5 * (offset / sigma) ** 2 - torch.log(sigma * mass) - 0.5 * math.log(TWO_PI)
        inside = (links > lower) & (links < upper)
        factors[..., chart] = normal.masked_fill(~inside, -math.inf)[..., chart]
        factors = torch.where(uniform, torch.full_like(factors, -math.log(TWO_PI)), factors)
        return torch.where(soft, torch.zeros_like(factors), factors).masked_fill(~finite, -math.inf)

    def frames(self, links: Tensor, generator: torch.Generator) -> Tensor:
        """Frames [..., N, 7] (quaternion wxyz, Angstrom, float64) of links [..., N-1, 6]: centred, the first one's
        rotation from the Haar measure.
        """
        links = links.double()
        shape = tuple(links.shape[:-2])
        first = Rigid(rotations.haar(shape, generator).to(links.device), links.new_zeros(*shape, 3))
        frames = frames_from_links(links, self.geometry, first)
        return frames.map_trans(lambda x: x - x.mean(-2, keepdim=True)).to_tensor_7()

    def links(self, rigids: Tensor) -> Tensor:
        """Links [..., N-1, 6] (float64) of frames [..., N, 7]: the inverse of `frames` but for the global motion."""
        return links_from_frames(Rigid.from_tensor_7(rigids.double()), self.geometry)

    @staticmethod
    def _limits(links: Tensor) -> tuple[Tensor, Tensor]:
        """The chart's ends [6] as columns: none for torsions, which are wrapped."""
        ends = {"theta1": (0.0, math.pi), "r": (0.0, math.inf), "theta2": (0.0, math.pi)}
        table = [ends.get(name, (-math.inf, math.inf)) for name in LINK]
        lower, upper = links.new_tensor(table).unbind(-1)
        return lower, upper


def _fill_in(
    statistics: Mapping[str, tuple[float, float]], names: Sequence[str], centres: Tensor, widths: Tensor
) -> None:
    """Put (mean, width) of torsions by label into the tables."""
    places = {
        label: (k, column)
        for k, row in enumerate(link_labels(names))
        for column, label in enumerate(row)
        if column in TORSION_COLUMNS
    }
    for label, (mean, width) in statistics.items():
        if label not in places:
            raise SettingError(
                f"Statistics are given for {label!r}; expected labels of torsions of {'-'.join(names)}, such as "
                f"{next(iter(places))!r}."
            )
        if not (math.isfinite(mean) and width > 0.0):
            raise SettingError(f"Statistics of {label} are ({mean}, {width}); expected a finite mean and width > 0.")
        centres[places[label]] = wrap(mean)
        widths[places[label]] = width if width <= WIDEST else math.inf


def _truncated_mass(lower: Tensor, upper: Tensor, centres: Tensor, sigma: Tensor) -> Tensor:
    """The normal's mass between the limits; the centre is inside, so the two terms add and nothing cancels."""
    scale = math.sqrt(2.0) * sigma
    return 0.5 * (torch.special.erf((upper - centres) / scale) - torch.special.erf((lower - centres) / scale))
