"""a(s), the density of auxiliary stiff links: normalised, drawn as it is scored, and what makes an acceptance exact."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from two_frames import TwoFrames

from openmm_diffusion.diffusion.stiff_links import StiffLinks, link_labels, soft_by_nature
from openmm_diffusion.errors import MoleculeError, SettingError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.links import LINK
from openmm_diffusion.geometry.rigid import Rigid

NAMES = ("ACE", "GLY", "PRO", "ALA", "NH2")
PSI, THETA1, R, OMEGA, THETA2, PHI = range(6)
TORSIONS = (PSI, OMEGA, PHI)
WIDTHS = [0.05, 0.15, 0.5]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def all_stiff(width: float, names: tuple[str, ...] = NAMES) -> StiffLinks:
    """Every entry stiff; psi of ALA4 by statistics, psi and phi of the rest uniform."""
    soft = torch.zeros(len(names) - 1, 6, dtype=torch.bool)
    return StiffLinks.of(names, soft, width, {"psi:ALA4": (2.5, width)} if "ALA" in names else None)


def factors_along(stiff: StiffLinks, column: int, x: torch.Tensor) -> torch.Tensor:
    """log a [points, N-1] of one column's entries at the values x."""
    links = stiff.centres.repeat(len(x), 1, 1)
    links[..., column] = x[:, None]
    return stiff.log_factors(links)[..., column]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("column", range(6))
def test_every_factor_integrates_to_one(width: float, column: int) -> None:
    """Quadrature of each factor over its own range is 1 to 1e-9, truncation and wrapping included."""
    stiff = all_stiff(width)
    if column in TORSIONS:
        x = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1]
        weights = torch.full_like(x, 2 * math.pi / 2000)
    else:
        end = 1.35 + 12 * width if column == R else math.pi
        nodes, weights = (torch.from_numpy(y) for y in np.polynomial.legendre.leggauss(600))
        x, weights = 0.5 * end * (nodes + 1), 0.5 * end * weights
    total = (weights[:, None] * factors_along(stiff, column, x).exp()).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


def test_normalisation_sees_what_is_left_out() -> None:
    """Control: at width 0.5 a normal that is neither truncated nor wrapped integrates to 1 in no column."""
    stiff = all_stiff(0.5)
    for column, end in ((THETA1, math.pi), (R, 6.0), (THETA2, math.pi)):
        x = torch.linspace(1e-9, end - 1e-9, 20001, dtype=torch.float64)
        plain = torch.exp(-0.5 * ((x - stiff.centres[0, column]) / 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi))
        assert abs(torch.trapezoid(plain, x) - 1) > 1e-3


def cumulative(stiff: StiffLinks, link: int, column: int, scale: float) -> Callable:
    """The distribution function of one entry, written with scipy; `scale` spoils the width for controls."""
    centre, width = float(stiff.centres[link, column]), scale * float(stiff.widths[link, column])
    if math.isinf(width):
        # Nothing to spoil but the range.
        return scipy.stats.uniform(-math.pi, 2 * math.pi * scale).cdf
    if column in TORSIONS:
        turns = centre + 2 * np.pi * np.arange(-4, 5)

        def wrapped(x: np.ndarray) -> np.ndarray:
            low = scipy.stats.norm.cdf((-np.pi - turns) / width)
            return (scipy.stats.norm.cdf((np.asarray(x)[..., None] - turns) / width) - low).sum(-1)

        return wrapped
    upper = math.inf if column == R else math.pi
    return scipy.stats.truncnorm(-centre / width, (upper - centre) / width, centre, width).cdf


@pytest.mark.parametrize("width", WIDTHS)
def test_draws_have_the_density(width: float, generator: torch.Generator) -> None:
    """Kolmogorov-Smirnov of each drawn entry, p > 1e-4 in all 24; a width that is 10 % wrong fails in every one."""
    stiff = all_stiff(width)
    drawn = stiff.draw(torch.zeros(20000, 4, 6), generator).numpy()
    right, wrong = (
        np.array(
            [
                scipy.stats.kstest(drawn[:, link, k], cumulative(stiff, link, k, scale)).pvalue
                for link in range(4)
                for k in range(6)
            ]
        )
        for scale in (1.0, 1.1)
    )
    assert right.min() > 1e-4
    assert wrong.max() < 1e-6


@pytest.mark.parametrize("width", WIDTHS)
def test_density_is_that_of_the_distribution_function(width: float) -> None:
    """log_factors is the derivative of the distribution functions of the draws, written with scipy."""
    stiff, step = all_stiff(width), 1e-5
    for column in range(6):
        x = np.array([0.3, 1.0, 2.0, 2.9]) if column != R else np.array([1.0, 1.2, 1.4, 1.6])
        density = factors_along(stiff, column, torch.from_numpy(x)).exp().numpy()
        for link in range(4):
            cdf = cumulative(stiff, link, column, 1.0)
            slope = (cdf(x + step) - cdf(x - step)) / (2 * step)
            np.testing.assert_allclose(density[:, link], slope, rtol=1e-5, atol=1e-9)


def test_draws_are_independent(generator: torch.Generator) -> None:
    """No two drawn entries correlate, and a batch's rows are not copies."""
    stiff = all_stiff(0.15)
    drawn = stiff.draw(torch.zeros(20000, 4, 6), generator) - stiff.centres
    drawn[..., list(TORSIONS)] = drawn[..., list(TORSIONS)].sin()
    correlation = np.corrcoef(drawn.reshape(len(drawn), -1).numpy(), rowvar=False)
    assert np.abs(correlation - np.eye(24)).max() < 5 / math.sqrt(20000)


def test_soft_entries_are_kept_and_not_scored(generator: torch.Generator) -> None:
    """draw leaves soft entries alone, bit for bit, and log_density does not depend on them; stiff ones it changes."""
    stiff = StiffLinks.of(NAMES)
    links = 6 * torch.rand(7, 4, 6, generator=generator, dtype=torch.float64) - 3
    drawn = stiff.draw(links, generator)
    assert (drawn[:, stiff.soft] == links[:, stiff.soft]).all()
    assert (drawn[:, ~stiff.soft] != links[:, ~stiff.soft]).all()
    turned = torch.where(stiff.soft, drawn + 1.0, drawn)
    assert (stiff.log_density(turned) == stiff.log_density(drawn)).all()
    assert (stiff.log_density(torch.where(stiff.soft, drawn, drawn + 0.01)) != stiff.log_density(drawn)).all()


def test_torsions_are_periodic_angles_are_not(generator: torch.Generator) -> None:
    """A full turn of a torsion changes nothing; one of an angle leaves the chart."""
    stiff = all_stiff(0.5)
    drawn = stiff.draw(torch.zeros(5, 4, 6), generator)
    assert drawn[..., list(TORSIONS)].abs().max() <= math.pi
    turned = drawn.clone()
    turned[..., list(TORSIONS)] += 2 * math.pi
    torch.testing.assert_close(stiff.log_density(turned), stiff.log_density(drawn), rtol=0, atol=1e-11)
    turned[..., THETA1] += 2 * math.pi
    assert (stiff.log_density(turned) == -math.inf).all()


def test_outside_the_chart_the_density_is_zero() -> None:
    """r <= 0, angles outside (0, pi), NaN and infinities, in soft entries too, are -inf in their row alone."""
    stiff = StiffLinks.of(("ACE", "ALA", "NME"), width=0.5)
    outside = [(THETA1, 0.0), (THETA1, -0.1), (THETA1, math.pi), (R, 0.0), (R, -1.0), (THETA2, 3.2)]
    outside += [(column, math.nan) for column in range(6)] + [(PHI, math.inf), (R, math.inf)]
    links = stiff.centres.repeat(len(outside) + 1, 1, 1)
    for row, (column, value) in enumerate(outside):
        links[row, 0, column] = value
    assert stiff.log_density(links).isfinite().tolist() == [False] * len(outside) + [True]
    assert (stiff.log_density(links)[:-1] == -math.inf).all()


@pytest.mark.parametrize("names", [NAMES, ("ACE", "NME"), ("LEU", "SER", "TRP", "PRO", "PRO", "GLY")])
def test_links_to_frames_and_back(names: tuple[str, ...], generator: torch.Generator) -> None:
    """frames(links) are centred, of unit quaternions, and links(frames) gives the links back to 1e-9."""
    stiff = StiffLinks.of(names, width=0.5)
    links = stiff.draw(6 * torch.rand(3, 50, len(names) - 1, 6, generator=generator) - 3, generator)
    rigids = stiff.frames(links, generator)
    assert rigids.shape == (3, 50, len(names), 7) and rigids.dtype is torch.float64
    assert rigids[..., 4:].mean(-2).abs().max() < 1e-12
    difference = stiff.links(rigids) - links
    difference[..., list(TORSIONS)] = torch.remainder(difference[..., list(TORSIONS)] + math.pi, 2 * math.pi) - math.pi
    assert difference.abs().max() < 1e-9


def haar_p_values(rots: torch.Tensor) -> np.ndarray:
    """KS of what is known of Haar rotations: each element uniform in [-1, 1], the angle of density (1 - cos) / pi."""
    elements = [scipy.stats.kstest(rots[:, i, j], scipy.stats.uniform(-1, 2).cdf) for i in range(3) for j in range(3)]
    angle = rotations.log(rots).norm(dim=-1)
    return np.array([x.pvalue for x in (*elements, scipy.stats.kstest(angle, lambda a: (a - np.sin(a)) / np.pi))])


def test_global_rotation_is_uniform(generator: torch.Generator) -> None:
    """The rotation of the first frame, and of the last, is Haar-distributed; normal rotation vectors are not."""
    stiff = StiffLinks.of(("ACE", "ALA", "NME"))
    rigids = stiff.frames(stiff.centres.expand(20000, 2, 6), generator)
    for place in (0, -1):
        assert haar_p_values(Rigid.from_tensor_7(rigids[:, place]).rots).min() > 1e-4
    spoiled = rotations.exp(1.5 * torch.randn(20000, 3, generator=generator, dtype=torch.float64))
    assert haar_p_values(spoiled).min() < 1e-8


def test_what_is_soft_by_nature() -> None:
    """phi and psi, but not the impropers of caps nor the phi of proline; labels are those of BackboneTorsions."""
    labels = np.array(link_labels(NAMES))
    free = {str(label) for label in labels[soft_by_nature(NAMES).numpy()]}
    assert free == {"phi:GLY2", "psi:GLY2", "psi:PRO3", "phi:ALA4", "psi:ALA4"}
    assert labels[1].tolist() == ["psi:GLY2", "theta1:GLY2", "r:GLY2", "omega:GLY2", "theta2:GLY2", "phi:PRO3"]


def test_centres_and_widths_by_residue() -> None:
    """Caps' impropers and omegas stand at pi, proline's phi at -65 degrees; its bond and angles are its own."""
    stiff = StiffLinks.of(NAMES, width=0.1)
    degrees = torch.rad2deg(stiff.centres)
    assert degrees[0, PSI] == degrees[3, PHI] == 180.0 and (degrees[:, OMEGA] == 180.0).all()
    assert degrees[1, PHI] == pytest.approx(-65.0)
    assert degrees[:, THETA1].tolist() == pytest.approx([116.2, 118.2, 116.2, 116.2])
    assert degrees[:, THETA2].tolist() == pytest.approx([120.6, 122.6, 121.7, 120.0])
    assert stiff.centres[:, R].tolist() == [1.329, 1.341, 1.329, 1.329]
    assert (stiff.widths[~stiff.soft] == 0.1).all() and stiff.widths[stiff.soft].isinf().all()


def test_statistics_serve_torsions_that_are_kept() -> None:
    """A freely turning torsion that is stiff has the centre and width given, or is uniform; a soft one has neither."""
    soft = soft_by_nature(("ACE", "ALA", "ALA", "NME"))
    soft[0, PHI] = soft[1] = False
    given = {"phi:ALA2": (-1.2, 0.4), "psi:ALA2": (2.0, 1.7), "psi:ALA3": (0.5, 0.2), "omega:ALA2": (0.0, 0.3)}
    stiff = StiffLinks.of(("ACE", "ALA", "ALA", "NME"), soft, 0.15, given)
    assert (float(stiff.centres[0, PHI]), float(stiff.widths[0, PHI])) == pytest.approx((-1.2, 0.4))
    assert (float(stiff.centres[1, OMEGA]), float(stiff.widths[1, OMEGA])) == (0.0, 0.3)
    assert stiff.widths[1, PSI].isinf() and stiff.widths[1, PHI].isinf() and stiff.widths[2, PSI].isinf()
    uniform = stiff.log_factors(stiff.centres)
    assert uniform[1, PSI] == uniform[1, PHI] == pytest.approx(-math.log(2 * math.pi)) and uniform[2, PSI] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": ("ALA",)}, MoleculeError, "chain ALA has no link"),
        ({"names": ("ACE", "MSE", "NME")}, MoleculeError, "'MSE'"),
        ({"width": 0.0}, SettingError, "width of stiff links is 0.0; expected 0 < width"),
        ({"width": 1.5}, SettingError, "width of stiff links is 1.5"),
        ({"soft": torch.zeros(3, 6)}, SettingError, r"soft has the shape \(3, 6\); expected \(2, 6\)"),
        ({"soft": torch.ones(2, 6)}, SettingError, "soft marks an angle or a bond"),
        ({"statistics": {"phi:GLY2": (0.0, 1.0)}}, SettingError, "Statistics are given for 'phi:GLY2'"),
        ({"statistics": {"r:ALA2": (1.3, 0.1)}}, SettingError, "Statistics are given for 'r:ALA2'"),
        ({"statistics": {"phi:ALA2": (math.nan, 1.0)}}, SettingError, r"Statistics of phi:ALA2 are \(nan"),
    ],
)
def test_bad_input_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    """One sentence names the value and what was expected."""
    with pytest.raises(error, match=message):
        StiffLinks.of(**{"names": ("ACE", "ALA", "NME"), **arguments})


def test_acceptance_with_stiff_links_is_exact() -> None:
    """log w = log p + log a(s) - log q_T - log volume leaves p(tau) as it was, whatever the model's stiff links are."""
    p_value, _ = TwoFrames(3).chi_square(None)
    assert p_value > 1e-3


@pytest.mark.parametrize("term", ["volume", "a", "q"])
def test_acceptance_needs_every_term(term: str) -> None:
    """Control: without the volume element, without a(s), or without q_T, p(tau) is missed by more than 5 sigma."""
    _, sigmas = TwoFrames(3).chi_square(term)
    assert sigmas > 5


def test_labels_follow_the_links() -> None:
    """The columns of the labels are those of LINK."""
    assert [label.split(":")[0] for label in link_labels(("ALA", "GLY"))[0]] == list(LINK)
