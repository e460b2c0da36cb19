"""The SE(3) samplers: against analytic scores (marginals, orders of convergence, exact maps), and with a network."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from openmm_diffusion.diffusion import igso3
from openmm_diffusion.diffusion.se3_config import R3Config, SE3Config, SO3Config
from openmm_diffusion.diffusion.se3_diffuser import SE3Diffuser
from openmm_diffusion.errors import ModelError, SettingError
from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.rigid import Rigid
from openmm_diffusion.models.score_network import ScoreNetwork
from openmm_diffusion.sampling.se3_backbones import NetworkDenoiser, sample_backbones
from openmm_diffusion.sampling.se3_sampler import (
    SAMPLERS,
    Prediction,
    exponential_integrator,
    probability_flow,
    reverse_sde,
    time_grid,
)

N = 2
COORD_SCALE = 0.5
FLOWS = [probability_flow, exponential_integrator]


def diffuser() -> SE3Diffuser:
    """Uniform rotations as the base, so that the marginal at t = 1 is known for any data."""
    conf = SE3Config(so3=SO3Config(min_sigma=0.1, max_sigma=2.5, base="haar"), r3=R3Config(coordinate_scaling=0.2))
    return SE3Diffuser(conf, COORD_SCALE)


@dataclass
class Mixture:
    """Frames spread by IGSO(3) (rot_width, rad) and a normal (trans_width, batch units) about some centres.

    With residues coupled through the centre. All its noised marginals are mixtures of the same kind. `drift` multiplies
    the scores, for negative controls.
    """

    centres: Rigid
    weights: Tensor
    rot_width: float
    trans_width: float
    process: SE3Diffuser
    drift: float = 1.0

    def __call__(self, rigids_t: Rigid, t: Tensor, previous: Prediction | None) -> Prediction:
        alpha, (rot_sigma, trans_sigma) = self.process.alpha(t[0]), self.process.sigma(t[0])
        rot_width = (self.rot_width**2 + rot_sigma**2).sqrt()
        variance = alpha**2 * (self.trans_width**2 + trans_sigma**2)
        away = rotations.log(self.centres.rots.transpose(-1, -2) @ rigids_t.rots[:, None])
        offset = rigids_t.trans[:, None] - alpha * self.centres.trans
        log_f, slope = igso3.log_density_and_slope((away**2).sum(-1), rot_width)
        log_p = self.weights.log() + log_f.sum(-1) - (offset**2).sum((-1, -2)) / (2 * variance)
        share = torch.softmax(log_p, -1)[..., None, None]
        rot_score = (share * slope[..., None] * away).sum(1)
        trans_score = -(share * offset).sum(1) / variance / self.process.r3.scale  # of diffused coordinates
        clean = (share * (self.centres.trans + alpha * self.trans_width**2 / variance * offset)).sum(1)
        rots = rigids_t.rots @ rotations.exp(rot_sigma**2 * rot_score)
        psi = torch.zeros((*rigids_t.shape, 2), dtype=rots.dtype)
        return Prediction(self.drift * rot_score, self.drift * trans_score, Rigid(rots, clean), psi)

    def draw(self, n: int, t: Tensor, generator: torch.Generator) -> Rigid:
        """Exact draws of the marginal at time t."""
        alpha, (rot_sigma, trans_sigma) = self.process.alpha(t), self.process.sigma(t)
        chosen = self.centres[torch.multinomial(self.weights, n, True, generator=generator)]
        width = (self.rot_width**2 + rot_sigma**2).sqrt().expand(chosen.shape)
        noise = torch.randn(chosen.trans.shape, generator=generator, dtype=torch.float64)
        noise = (self.trans_width**2 + trans_sigma**2).sqrt() * (noise - noise.mean(-2, keepdim=True))
        rots = chosen.rots @ rotations.exp(igso3.sample(width, generator))
        return Rigid(rots, alpha * (chosen.trans + noise))


def mixture(n_centres: int = 2, rot_width: float = 0.3, trans_width: float = 0.4, drift: float = 1.0) -> Mixture:
    generator = torch.Generator().manual_seed(3)
    rots = rotations.haar((n_centres, N), generator)
    trans = 1.5 * torch.randn((n_centres, N, 3), generator=generator, dtype=torch.float64)
    weights = torch.linspace(1.0, 2.0, n_centres).double()
    centres = Rigid(rots, trans - trans.mean(-2, keepdim=True))
    return Mixture(centres, weights / weights.sum(), rot_width, trans_width, diffuser(), drift)


def observables(found: Rigid, model: Mixture) -> dict[str, np.ndarray]:
    """One number a sample: the angle of a rotation to a centre's, the coupling of the residues, two coordinates."""
    relative = found.rots[:, 0].transpose(-1, -2) @ found.rots[:, 1]
    return {
        "angle": rotations.log(model.centres.rots[0, 0].T @ found.rots[:, 0]).norm(dim=-1).numpy(),
        "relative": relative[:, 0, 0].numpy(),
        "x": found.trans[:, 0, 0].numpy(),
        "z": found.trans[:, 0, 2].numpy(),
    }


def p_values(sample: Rigid, model: Mixture, t: Tensor) -> dict[str, float]:
    exact = observables(model.draw(20_000, t, torch.Generator().manual_seed(11)), model)
    drawn = observables(sample, model)
    return {name: float(stats.ks_2samp(drawn[name], exact[name]).pvalue) for name in exact}


def starts(n: int) -> Rigid:
    return Rigid.from_tensor_7(diffuser().sample_ref((n,), N, torch.Generator().manual_seed(5), dtype=torch.float64))


class TestReverseSDE:
    def test_noise_scale_one_samples_the_mixture(self) -> None:
        """The walk's end has the mixture's marginal at min_t (Kolmogorov-Smirnov on four observables); controls fail:
        half the drift (g^2 taken once too little), the drift's sign changed, and the custom noise scale of 0.1."""
        times = time_grid(120, 0.01)

        def lowest(drift: float = 1.0, noise_scale: float = 1.0) -> float:
            model, generator = mixture(drift=drift), torch.Generator().manual_seed(7)
            options = {"noise_scale": noise_scale, "denoise": False}
            found = reverse_sde(model, model.process, times, (2000, N), generator, **options)
            return min(p_values(found.rigids, model, times[-1]).values())

        p = {"exact": lowest(), "half": lowest(drift=0.5), "sign": lowest(drift=-1.0), "0.1": lowest(noise_scale=0.1)}
        print(p)
        assert p["exact"] > 1e-3
        assert max(p["half"], p["sign"], p["0.1"]) < 1e-6

    def test_few_steps_are_exact_for_data_at_one_point(self) -> None:
        """With data at one point the step is the noising process pinned at it: 4 steps give the normal marginal at
        min_t; the control, the noise of an unpinned step, does not."""
        model, times = mixture(1, 0.0, 0.0), time_grid(4, 0.01)
        generator = torch.Generator().manual_seed(8)
        found = reverse_sde(model, model.process, times, (4000, N), generator, noise_scale=1.0, denoise=False)
        width = float(model.process.alpha(times[-1]) * model.process.sigma(times[-1])[1]) / math.sqrt(2)
        mean = float(model.process.alpha(times[-1]) * model.centres.trans[0, 0, 0])
        scores = (found.rigids.trans[:, 0, 0].numpy() - mean) / width
        assert stats.kstest(scores, "norm").pvalue > 1e-3
        a, b = (float(model.process.sigma(t)[1]) for t in times[-2:])
        assert stats.kstest(scores * a / b, "norm").pvalue < 1e-6

    def test_a_hundred_steps_have_the_width_of_the_data(self) -> None:
        """Normal data of sd 0.433 and IGSO(3) of 0.3 rad come back with their width (to 2 %) in 100 steps, by
        default; the control, noise_scale 0.1, is narrower by 5 in translations and 2 in rotations."""
        times = time_grid(100, 0.01)

        def widths(**options: float) -> tuple[float, float]:
            model, generator = mixture(1, 0.3, 0.433), torch.Generator().manual_seed(1)
            found = reverse_sde(model, model.process, times, (4000, N), generator, denoise=False, **options).rigids
            turn = rotations.log(model.centres.rots[0].transpose(-1, -2) @ found.rots)
            offset = found.trans / model.process.alpha(times[-1]) - model.centres.trans[0]
            return float(turn.square().mean().sqrt()), float((offset.square().mean() * N / (N - 1)).sqrt())

        exact = [math.hypot(w, float(s)) for w, s in zip((0.3, 0.433), diffuser().sigma(times[-1]), strict=True)]
        found, collapsed = widths(), widths(noise_scale=0.1)
        print(exact, found, collapsed)
        assert found == pytest.approx(exact, rel=0.02)
        assert collapsed[0] < exact[0] / 2 and collapsed[1] < exact[1] / 5

    def test_negative_noise_is_refused(self) -> None:
        """noise_scale < 0 is a SettingError that names the value."""
        model = mixture()
        with pytest.raises(SettingError, match="noise_scale is -1"):
            reverse_sde(model, model.process, time_grid(2, 0.01), (1, N), torch.Generator(), noise_scale=-1.0)


class TestFlows:
    @pytest.mark.parametrize("sampler", FLOWS)
    def test_converges_with_second_order(self, sampler: object) -> None:
        """Twice the steps, a quarter of the error, for rotations and translations of a mixture (ratio above 3); the
        control, the walk without noise, which solves another equation, stays away."""
        model, start = mixture(rot_width=0.5, trans_width=1.0), starts(16)

        def end(method: object, n: int) -> Rigid:
            generator = torch.Generator()
            options = {"start": start, "denoise": False, **({"noise_scale": 0.0} if method is reverse_sde else {})}
            return method(model, model.process, time_grid(n, 0.01), (16, N), generator, **options).rigids

        def errors(found: Rigid, exact: Rigid) -> tuple[float, float]:
            angle = rotations.log(exact.rots.transpose(-1, -2) @ found.rots).norm(dim=-1)
            return float(angle.median()), float((found.trans - exact.trans).norm(dim=-1).median())

        exact = end(probability_flow, 1000)
        coarse, fine = errors(end(sampler, 50), exact), errors(end(sampler, 100), exact)
        other = errors(end(reverse_sde, 100), exact)
        print(coarse, fine, other)
        assert all(a / b > 3.0 for a, b in zip(coarse, fine, strict=True))
        assert max(fine) < 0.02
        assert min(other) > 0.1

    @pytest.mark.parametrize("sampler", FLOWS)
    def test_reaches_the_exact_map(self, sampler: object) -> None:
        """About one centre the flow keeps the quantile of a rotation's angle and scales a normal's coordinates."""
        model, start, times = mixture(1, 0.4, 0.8), starts(64), time_grid(300, 0.01)
        found, first, last, alpha = _ends(sampler, model, times, start)
        factor = ((model.trans_width**2 + last**2) / (model.trans_width**2 + first**2)).sqrt()
        exact = alpha[1] * (model.centres.trans + factor * (start.trans / alpha[0] - model.centres.trans))
        torch.testing.assert_close(found.trans, exact, atol=2e-3, rtol=0)
        quantiles = [
            _angle_quantile(rotations.log(model.centres.rots.transpose(-1, -2) @ x.rots).norm(dim=-1), model, t)
            for x, t in ((start, times[0]), (found, times[-1]))
        ]
        np.testing.assert_allclose(quantiles[0], quantiles[1], atol=5e-3)
        before, after = (rotations.log(model.centres.rots.transpose(-1, -2) @ x.rots) for x in (start, found))
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1)
        assert float(cosine.min()) > 1 - 1e-6

    @pytest.mark.parametrize("sampler", FLOWS)
    def test_few_steps_are_exact_for_translations_at_one_point(self, sampler: object) -> None:
        """The linear part is integrated exactly: 3 steps scale the distance from the point to 1e-9."""
        model, start, times = mixture(1, 0.0, 0.0), starts(8), time_grid(3, 0.01)
        found, first, last, alpha = _ends(sampler, model, times, start)
        exact = alpha[1] * (model.centres.trans + last / first * (start.trans / alpha[0] - model.centres.trans))
        torch.testing.assert_close(found.trans, exact, atol=1e-9, rtol=0)

    def test_flows_agree_with_each_other_on_the_marginal(self) -> None:
        """Starts from the base end in the mixture's marginal; the control, the flow stopped half way, does not."""
        model, generator = mixture(), torch.Generator().manual_seed(9)
        times = time_grid(100, 0.01)
        found = exponential_integrator(model, model.process, times, (3000, N), generator, denoise=False)
        p = p_values(found.rigids, model, times[-1])
        print(p)
        assert min(p.values()) > 1e-3
        half = exponential_integrator(model, model.process, times[:50], (3000, N), generator, denoise=False)
        assert min(p_values(half.rigids, model, times[-1]).values()) < 1e-6


def _ends(sampler: Any, model: Any, times: Tensor, start: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Where a sampler without noise takes the starts, sigma of translations at both ends, and alpha [2]."""
    shape = (len(start.trans), N)
    found = sampler(model, model.process, times, shape, torch.Generator(), start=start, denoise=False).rigids
    first, last = (model.process.sigma(t)[1] for t in times[[0, -1]])
    return found, first, last, model.process.alpha(times[[0, -1]])


def _angle_quantile(angles: Tensor, model: Mixture, t: Tensor) -> np.ndarray:
    x = torch.linspace(0.0, math.pi, 4001, dtype=torch.float64)
    width = (model.rot_width**2 + model.process.sigma(t)[0] ** 2).sqrt()
    density = (igso3.log_density(x, width).exp() * (1 - torch.cos(x))).numpy()
    total = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return np.interp(angles.numpy(), x.numpy(), total / total[-1])


class TestAll:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_data_at_one_point_come_back(self, name: str) -> None:
        """From any start every sampler returns the one point of the data: translations to 1e-9, rotations to 0.01."""
        model, generator = mixture(1, 0.0, 0.0), torch.Generator().manual_seed(4)
        found = SAMPLERS[name](model, model.process, time_grid(40, 0.01), (50, N), generator).rigids
        torch.testing.assert_close(found.trans, model.centres.trans.expand(50, N, 3), atol=1e-9, rtol=0)
        angle = rotations.log(model.centres.rots.transpose(-1, -2) @ found.rots).norm(dim=-1)
        assert float(angle.max()) < 0.01

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_rejects_times_that_do_not_descend(self, name: str) -> None:
        """One time, ascending times, and a last time of zero are refused."""
        model = mixture()
        for times in (torch.tensor([0.5]), torch.tensor([0.1, 0.2]), torch.tensor([1.0, 0.0])):
            with pytest.raises(SettingError, match="descending"):
                SAMPLERS[name](model, model.process, times, (1, N), torch.Generator())


@dataclass
class _Mistimed:
    """A noise process that takes each time for another: steps that are not those of the grid."""

    process: SE3Diffuser
    times: dict[float, float]

    def _other(self, t: Tensor) -> Tensor:
        return torch.tensor(self.times[float(t)], dtype=torch.float64)

    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.sigma(self._other(t))

    def alpha(self, t: Tensor) -> Tensor:
        return self.process.alpha(self._other(t))


class TestTimes:
    def test_steps_follow_the_grid(self) -> None:
        """The grid runs from 1 to min_t in n_steps steps that add up to 1 - min_t, whatever the spacing, and a flow
        over an uneven grid ends where a fine one does; the control, the same number of even steps in place of the
        grid's, does not. (Test B9, of the single step, is in test_r3_diffuser.)"""
        for rho in (1.0, 2.0, 5.0):
            times = time_grid(50, 0.01, rho=rho)
            assert (float(times[0]), len(times)) == (1.0, 51)
            assert float(times[-1]) == pytest.approx(0.01, abs=1e-12)
            assert float((times[:-1] - times[1:]).sum()) == pytest.approx(0.99)
        model, start = mixture(1, 0.0, 0.8), starts(4)
        uneven = time_grid(200, 0.01)[torch.cat([torch.arange(0, 100, 2), torch.arange(100, 201)])]
        exact, found = (
            probability_flow(model, model.process, times, (4, N), torch.Generator(), start=start, denoise=False).rigids
            for times in (time_grid(400, 0.01), uneven)
        )
        torch.testing.assert_close(found.trans, exact.trans, atol=5e-3, rtol=0)
        wrong = 1.0 - torch.arange(len(uneven)) / (len(uneven) - 1) * 0.99
        process = _Mistimed(model.process, dict(zip(uneven.tolist(), wrong.tolist(), strict=True)))
        other = probability_flow(model, process, uneven, (4, N), torch.Generator(), start=start, denoise=False).rigids
        assert float((other.trans - exact.trans).abs().max()) > 0.05

    @pytest.mark.parametrize(("n", "low", "rho"), [(0, 0.01, 2.0), (5, 0.0, 2.0), (5, 1.0, 2.0), (5, 0.01, 0.5)])
    def test_refuses_numbers_out_of_range(self, n: int, low: float, rho: float) -> None:
        """No step, a lowest time outside (0, 1) and rho below 1 are SettingErrors."""
        with pytest.raises(SettingError):
            time_grid(n, low, rho=rho)


def network(coord_scale: float = 0.15, seed: int = 1, **embed: bool) -> ScoreNetwork:
    conf = {
        "node_embed_size": 16,
        "edge_embed_size": 8,
        "embed": embed,
        "ipa": {"num_blocks": 1, "no_heads": 2, "c_hidden": 4, "c_skip": 4, "seq_tfmr_num_heads": 2},
    }
    return ScoreNetwork(conf, SE3Diffuser({}, coord_scale), seed, zero_init=False).eval()


AATYPE = torch.tensor([0, 7, 3, 14])  # A G D P


class TestNetwork:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_samples_backbones(self, name: str) -> None:
        """Frames, psi and atoms of the shapes promised: centred, finite, chains of the batch sizes asked for, no CB in
        glycine, equal for equal seeds and different for others."""
        found = [
            sample_backbones(
                network(), AATYPE, 5, torch.Generator().manual_seed(seed), sampler=name, n_steps=4, batch_size=2
            )
            for seed in (1, 1, 2)
        ]
        assert (found[0].rigids.shape, found[0].psi.shape, len(found[0])) == ((5, 4), (5, 4, 2), 5)
        assert found[0].atom37.shape == (5, 4, 37, 3)
        assert torch.isfinite(found[0].atom37).all()
        assert found[0].atom37_mask[:, :, :5].sum() == 5 * 19
        assert float(found[0].rigids.trans.mean(1).abs().max()) < 1e-5
        assert torch.equal(found[0].atom37, found[1].atom37)
        assert not torch.allclose(found[0].atom37, found[2].atom37)

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_lengths_are_angstrom_whatever_the_scale(self, name: str) -> None:
        """The same weights with coord_scale 1 and 0.15 give the same backbones in Angstrom (bug: scaled twice or not
        at all)."""
        one, other = (
            sample_backbones(network(scale), AATYPE, 3, torch.Generator().manual_seed(1), sampler=name, n_steps=5)
            for scale in (1.0, 0.15)
        )
        torch.testing.assert_close(one.atom37, other.atom37, atol=2e-3, rtol=1e-3)
        distance = (one.atom37[:, :, 1] - one.atom37[:, :, 2]).norm(dim=-1)
        torch.testing.assert_close(distance, torch.full_like(distance, 1.526), atol=0.02, rtol=0)

    def test_turned_start_turned_samples(self) -> None:
        """Where the start is turned as a whole, the samples are, to single precision."""
        net = network()
        denoiser, times = NetworkDenoiser(net, AATYPE), time_grid(5, 0.01)
        start = Rigid.from_tensor_7(net.diffuser.sample_ref((3,), 4, torch.Generator().manual_seed(2)).double())
        turn = rotations.haar((), torch.Generator().manual_seed(3))
        turned = Rigid(turn @ start.rots, start.trans @ turn.T)
        ends = [
            exponential_integrator(denoiser, net.diffuser, times, (3, 4), torch.Generator(), start=x).rigids
            for x in (start, turned)
        ]
        torch.testing.assert_close(ends[1].trans, ends[0].trans @ turn.T, atol=1e-3, rtol=0)
        torch.testing.assert_close(ends[1].rots, turn @ ends[0].rots, atol=1e-3, rtol=0)

    def test_residues_count_from_one_and_history_is_seen_on_request(self) -> None:
        """The network is given seq_idx 1..N, all residues visible and free; sc_ca_t is zero without self-conditioning,
        and the CA of the previous prediction with it."""
        net, seen = network(), []
        original = net.predict
        net.predict = lambda batch: seen.append(batch) or original(batch)  # type: ignore[method-assign]
        for conditioned in (False, True):
            options = {"n_steps": 2, "self_conditioning": conditioned}
            sample_backbones(net, AATYPE, 2, torch.Generator().manual_seed(1), **options)
        assert len(seen) == 6
        for batch in seen:
            assert batch["seq_idx"].tolist() == [[1, 2, 3, 4]] * 2
            assert bool((batch["res_mask"] == 1).all() and (batch["fixed_mask"] == 0).all())
        assert [bool(batch["sc_ca_t"].any()) for batch in seen] == [False, False, False, False, True, True]
        with torch.no_grad():
            torch.testing.assert_close(seen[4]["sc_ca_t"], original(seen[3])["rigids"][..., 4:])

    def test_bad_requests(self) -> None:
        """Unknown samplers, no samples, models that diffuse only rotations, and NaN weights are one sentence each."""
        generator = torch.Generator()
        with pytest.raises(SettingError, match="'heun'; expected one of reverse_sde"):
            sample_backbones(network(), AATYPE, 1, generator, sampler="heun")
        with pytest.raises(SettingError, match="n_samples"):
            sample_backbones(network(), AATYPE, 0, generator)
        half = network()
        half.diffuser.conf.diffuse_trans = False
        with pytest.raises(ModelError, match="diffuses only"):
            sample_backbones(half, AATYPE, 1, generator)
        broken = network()
        with torch.no_grad():
            next(p for n, p in broken.named_parameters() if "torsion" not in n).fill_(torch.nan)
        with pytest.raises(ModelError, match="NaN"):
            sample_backbones(broken, AATYPE, 1, generator, n_steps=1)
