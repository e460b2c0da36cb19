"""Path space: every kernel is the normal that is drawn, and path log-ratios average to the model's own density."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_network import TINY
from torch import Tensor, nn

from openmm_diffusion.diffusion.se3_config import SE3Config
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.diffusion.stiff_links import StiffLinks
from openmm_diffusion.errors import SettingError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.links import log_volume
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.sampling.path import SE3Path

PER_ANGSTROM = 0.7
READING = {"index_embed_size": 8, "embed_self_conditioning": False, "embed_residue_type": True, "relative_frames": True}
PAIR = ("ALA", "ALA")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(min_t: float = 0.02) -> SE3Config:
    se3 = SE3Config.acceptance(PER_ANGSTROM)
    return SE3Config(min_t=min_t, so3={**se3.so3.model_dump(), "min_sigma": 0.1}, r3=se3.r3)


def network(seed: int = 0, **embed: Any) -> ScoreNetwork:
    """Random weights."""
    return ScoreNetwork({**TINY, "embed": {**READING, **embed}}, SE3Diffuser(noise()), seed, zero_init=False)


class Stand(nn.Module):
    """What a path asks of a network, from functions of the frames (R, y = x / alpha) written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.diffuser = SE3Diffuser(noise())
        self.config = SimpleNamespace(embed=SimpleNamespace(embed_self_conditioning=False))
        self.dtype_of = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def scores(self, frames: Rigid, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of rotations (per rad) and of y (per Angstrom)."""
        return torch.zeros_like(frames.trans), torch.zeros_like(frames.trans)

    def clean(self, frames: Rigid) -> Rigid:
        return frames

    @property
    def dtype(self) -> torch.dtype:
        return self.dtype_of.dtype

    def denoise(self, noised: Rigid, batch: dict[str, Tensor]) -> Any:
        t = batch["t"]
        alpha = self.diffuser.alpha(t)[:, None, None]
        frames = noised.map_trans(lambda x: x / alpha)
        rot, trans = self.scores(frames, t)
        trans = trans / (alpha * self.diffuser.r3.scale)
        return SimpleNamespace(rot_score=rot, trans_score=trans, clean=self.clean(frames))

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = self.denoise(Rigid.from_tensor_7(batch["rigids_t"]), batch)
        return {
            "rot_score": found.rot_score,
            "trans_score": found.trans_score,
            "rigids": found.clean.to_tensor_7(),
        }


class Normal(Stand):
    """The exact score of uniform rotations and of normal translations of variance `spread` about a shared centroid.

    The clean frames that the covariance is made at are always the same, so that the whole model is linear and normal.
    """

    def __init__(self, stiff: StiffLinks, spread: float) -> None:
        super().__init__()
        self.spread = spread
        links = torch.where(stiff.soft, torch.ones_like(stiff.centres), stiff.centres)
        self.fixed = Rigid.from_tensor_7(stiff.frames(links, generator(3)))

    def scores(self, frames: Rigid, t: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.spread + self.diffuser.sigma(t)[1][:, None, None] ** 2
        return torch.zeros_like(frames.trans), -frames.trans / variance

    def clean(self, frames: Rigid) -> Rigid:
        return Rigid(self.fixed.rots.expand_as(frames.rots), self.fixed.trans.expand_as(frames.trans))


def random_frames(n: int, n_residues: int, seed: int = 0, width: float = 3.0) -> Rigid:
    trans = width * torch.randn(n, n_residues, 3, generator=generator(seed), dtype=torch.float64)
    return Rigid(rotations.haar((n, n_residues), generator(seed)), trans - trans.mean(1, keepdim=True))


def repeated(frames: Rigid, n: int) -> Rigid:
    return Rigid(frames.rots.expand(n, -1, -1, -1), frames.trans.expand(n, -1, -1))


def increments(path: SE3Path, above: Rigid, below: Rigid) -> np.ndarray:
    """v [n, 6N-3] from frames to frames, for turns below pi."""
    turn = rotations.log(above.rots.mT @ below.rots)
    shift = path._moving.basis.T @ (below.trans - above.trans)
    return torch.cat([turn.flatten(1), shift.flatten(1)], -1).numpy()


def test_a_denoising_kernel_is_the_normal_that_is_drawn() -> None:
    """Draws have the kernel's mean and covariance; log p - log f is scipy's, both ways; a plain covariance is seen."""
    stiff = StiffLinks.of(("ACE", "ALA", "NME"), width=0.3)
    path = SE3Path(network().double(), stiff, n_steps=4, max_t=0.2)
    one = Rigid.from_tensor_7(stiff.frames(stiff.draw(torch.ones(1, 2, 6), generator(1)), generator(2)))
    n = 4000
    below, total = path.descend(repeated(one, n), 1, generator(4))
    v = increments(path, one, below)
    mean, root = (x[0].numpy() for x in path._kernel(one, torch.tensor([0])))
    covariance, plain = root @ root.T, np.diag(path._scales[0].numpy() ** 2)
    expected = stats.multivariate_normal(mean, covariance).logpdf(v) - stats.multivariate_normal(cov=plain).logpdf(v)
    assert np.abs(total.numpy() - expected).max() < 1e-6

    white = np.linalg.solve(root, (v - mean).T)
    assert np.abs(white.mean(1)).max() < 5 / math.sqrt(n)
    products = (white @ white.T / n - np.eye(len(mean))) * math.sqrt(n)
    assert np.abs(products).max() < 5 * math.sqrt(2)
    wrong = np.linalg.solve(np.sqrt(plain), (v - mean).T)
    assert np.abs((wrong @ wrong.T / n - np.eye(len(mean))) * math.sqrt(n)).max() > 20, "the control"


def test_a_walk_up_is_scored_by_the_kernels_it_would_come_down() -> None:
    """log p - log f of a walk is the sum over levels of scipy's normal densities of its increments."""
    stiff = StiffLinks.of(("ACE", "ALA", "NME"), width=0.3)
    path = SE3Path(network().double(), stiff, n_steps=3, max_t=0.05)
    frames = Rigid.from_tensor_7(stiff.frames(stiff.draw(torch.ones(5, 2, 6), generator(1)), generator(2)))
    walk, steps = path.walk(frames, 3, generator(5))
    total = path.log_ratio(walk, steps).numpy()
    expected = np.zeros(5)
    for k in range(3):
        above, below = (Rigid(walk.rots[i], walk.trans[i]) for i in (k + 1, k))
        v = increments(path, above, below)
        mean, root = (x.numpy() for x in path._kernel(above, torch.full((5,), k)))
        noise_k = stats.multivariate_normal(cov=np.diag(path._scales[k].numpy() ** 2))
        for i in range(5):
            expected[i] += stats.multivariate_normal(mean[i], root[i] @ root[i].T).logpdf(v[i]) - noise_k.logpdf(v[i])
    assert np.abs(total - expected).max() < 1e-6


@pytest.mark.parametrize("n_residues", [2, 3, 7])
@pytest.mark.parametrize("width", [0.05, 0.5])
def test_covariance_is_positive_definite_at_all_levels(n_residues: int, width: float) -> None:
    """Whatever the frames are, no direction loses all its noise or gains any: 0 < C <= D at every level."""
    stiff = StiffLinks.of(("ALA",) * n_residues, width=width)
    path = SE3Path(Stand(), stiff, n_steps=6, max_t=0.9)
    frames = random_frames(64, n_residues)
    for k in range(6):
        mean, root = path._kernel(frames, torch.full((64,), k))
        white = root / path._scales[k][:, None]
        values = torch.linalg.eigvalsh(white @ white.mT)
        assert bool(torch.isfinite(mean).all())
        assert float(values.min()) > 0 and float(values.max()) < 1 + 1e-9
    assert float(values.min()) < 0.5, "no link narrows the noise, so that this says nothing"


def closed_form(path: SE3Path, model: Normal) -> np.ndarray:
    """Covariance [3N-3, 3N-3] of the reduced translations that the K steps of the model lead to."""
    n_rot = 3 * path.n_residues
    size = 3 * (path.n_residues - 1)
    sigma = float(path._base_variance) * np.eye(size)
    for k in reversed(range(path.n_steps)):
        _, root = path._kernel(repeated(model.fixed, 1), torch.tensor([k]))
        drawn = (root[0] @ root[0].T).numpy()[n_rot:, n_rot:]
        step = float(path._scales[k, -1]) ** 2
        shrink = 1 - step / (model.spread + float(path.grid.trans_variance[k]))
        sigma = shrink**2 * sigma + drawn
    return sigma


def reduced(path: SE3Path, rigids: Tensor) -> np.ndarray:
    return (path._moving.basis.T @ rigids[..., 4:]).flatten(-2).numpy()


@pytest.fixture(scope="module")
def linear() -> tuple[SE3Path, Normal]:
    stiff = StiffLinks.of(PAIR, width=1.0)
    model = Normal(stiff, 0.7)
    return SE3Path(model, stiff, n_steps=3, max_t=0.1), model


def test_path_ratios_average_to_the_steps_own_marginal(linear: tuple[SE3Path, Normal]) -> None:
    """Linear and normal: E_f[exp(path log-ratio)] is the closed form of the K steps, not that of infinitely many."""
    path, model = linear
    density = stats.multivariate_normal(cov=closed_form(path, model))
    other = stats.multivariate_normal(cov=model.spread * np.eye(3))
    sample = path.sample(4, generator(1)).rigids
    z, z_other, z_mean = [], [], []
    for seed, rigids in enumerate(sample):
        log_q = path.score(rigids.expand(6000, -1, -1), generator(seed)).numpy()
        values = np.exp(log_q - log_q.max())
        found, error = log_q.max() + math.log(values.mean()), values.std() / values.mean() / math.sqrt(len(values))
        y = reduced(path, rigids)
        z.append((found - density.logpdf(y)) / error)
        z_other.append((found - other.logpdf(y)) / error)
        z_mean.append((log_q.mean() - density.logpdf(y)) / error)
    print(z, z_other, z_mean)
    assert np.abs(z).max() < 4
    assert np.abs(z_other).max() > 6 and np.min(np.abs(z_mean)) > 6, "the controls"


def test_samples_and_scores_are_reciprocal(linear: tuple[SE3Path, Normal]) -> None:
    """E_q[pi / q] = 1 over drawn frames and E_pi[q / pi] = 1 over scored ones, and rotations are uniform."""
    path, model = linear
    density = stats.multivariate_normal(cov=closed_form(path, model))
    n = 8000
    drawn = path.sample(n, generator(5))
    y = reduced(path, drawn.rigids)
    whitened = np.linalg.solve(np.linalg.cholesky(density.cov), y.T)
    assert np.abs((whitened @ whitened.T / n - np.eye(3)) * math.sqrt(n)).max() < 4.5 * math.sqrt(2)
    quats = drawn.rigids[..., :4].numpy()
    assert np.abs((quats**2).mean(0) - 0.25).max() < 5 * math.sqrt(1 / 16 / n)
    forward = np.exp(density.logpdf(y) - drawn.log_q.numpy())
    target = random_frames(n, 2, seed=9)
    root = torch.as_tensor(np.linalg.cholesky(density.cov))
    white = torch.randn(n, 3, generator=generator(6), dtype=torch.float64)
    trans = path._moving.basis @ (white @ root.T)[:, None]
    rigids = Rigid(target.rots, trans).to_tensor_7()
    backward = np.exp(path.score(rigids, generator(7)).numpy() - density.logpdf(reduced(path, rigids)))
    for values in (forward, backward):
        assert abs(values.mean() - 1) < 4 * values.std() / math.sqrt(n)
        assert values.std() < 10, "too rough for the mean to mean anything"


class TorsionTarget:
    """p(psi, phi) a(s) of two residues, a normalised density of frames, with draws of it."""

    centres, strengths = (-2.0, 1.0), (1.0, 1.5)

    def __init__(self, width: float) -> None:
        self.stiff = StiffLinks.of(PAIR, width=width)

    def draw(self, n: int, seed: int) -> Tensor:
        rng = np.random.default_rng(seed)
        links = torch.zeros(n, 1, 6, dtype=torch.float64)
        for column, centre, strength in zip((0, 5), self.centres, self.strengths, strict=True):
            links[:, 0, column] = torch.as_tensor(rng.vonmises(centre, strength, n))
        return self.stiff.frames(self.stiff.draw(links, generator(seed)), generator(seed + 1))

    def log_density(self, rigids: Tensor, left_out: str = "") -> np.ndarray:
        """Against Haar^2 x Lebesgue of the reduced translations."""
        links = self.stiff.links(rigids)
        soft = links[:, 0, [0, 5]].numpy()
        log_p = sum(stats.vonmises.logpdf(soft[:, i], self.strengths[i], self.centres[i]) for i in range(2))
        # dT_rel = r^2 sin sin dl / 8 pi^2, and a relative translation is sqrt(2) times the reduced one.
        terms = {
            "p": torch.as_tensor(log_p) + math.log(8 * math.pi**2) + 1.5 * math.log(2),
            "volume": -log_volume(links),
            "a": self.stiff.log_density(links),
        }
        return sum(term for name, term in terms.items() if name != left_out).numpy()


def bar_z(forward: np.ndarray, backward: np.ndarray) -> tuple[float, float]:
    """Free energy difference over its error, and the error."""
    from pymbar.other_estimators import bar

    # Hopeless weights count for nothing, and must not overflow.
    result = bar(*(np.clip(np.nan_to_num(work, nan=200.0), -200, 200) for work in (forward, backward)))
    return result["Delta_f"] / result["dDelta_f"], result["dDelta_f"]


def test_free_energy_by_bar_is_the_known_one() -> None:
    """A random network, both ways: log Z of p(tau) a(s) is zero within the error of BAR; each term is needed."""
    target = TorsionTarget(1.0)
    controls = {"volume": 0.0, "a": 0.0}
    for seed in range(2):
        path = SE3Path(network(seed), target.stiff, n_steps=3, max_t=0.1)
        drawn, exact = path.sample(3000, generator(seed)), target.draw(3000, seed)
        log_q = path.score(exact, generator(seed + 10)).numpy()
        for left_out in ("", *controls):
            forward = drawn.log_q.numpy() - target.log_density(drawn.rigids, left_out)
            z, error = bar_z(forward, target.log_density(exact, left_out) - log_q)
            if left_out:
                controls[left_out] = max(controls[left_out], abs(z))
            else:
                assert abs(z) < 4 and error < 0.3
    assert min(controls.values()) > 5, controls


def test_few_levels_and_wrong_times_are_refused() -> None:
    """One level, times out of order, and a network that reads its own predictions are one sentence each."""
    stiff = StiffLinks.of(PAIR)
    with pytest.raises(SettingError, match="n_diffusion_steps is 1; expected at least 2"):
        SE3Path(network(), stiff, n_steps=1)
    for times in ({"max_t": 0.01}, {"max_t": 1.5}, {"min_t": 0.0}):
        with pytest.raises(SettingError, match="expected 0 < min_t < max_t <= 1"):
            SE3Path(network(), stiff, n_steps=4, **times)
    with pytest.raises(SettingError, match="self_conditioning"):
        SE3Path(network(embed_self_conditioning=True), stiff)


def test_one_generator_gives_one_path() -> None:
    """Equal seeds draw and score the same, bit for bit; another seed does not."""
    stiff = StiffLinks.of(PAIR)
    path = SE3Path(network(), stiff, n_steps=3)
    first, second, other = (path.sample(4, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.rigids, second.rigids) and torch.equal(first.log_q, second.log_q)
    assert not torch.equal(first.rigids, other.rigids)
    scores = [path.score(first.rigids, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])
    assert first.rigids.dtype == first.log_q.dtype == torch.float64
