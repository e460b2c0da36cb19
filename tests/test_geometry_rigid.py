"""Rotations and rigid frames: logarithms at the identity and at pi, signs of quaternions, Haar measure, Jacobians."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from openmm_diffusion.geometry import rotations
from openmm_diffusion.geometry.rigid import Rigid

ANGLES = [0.0, 1e-9, 1e-7, 1e-5, 1e-3, 0.5, 2.0, 3.0, math.pi - 1e-5, math.pi - 1e-9, math.pi]
# With zero components: an axis recovered through signs of the matrix' entries loses them (bug B4).
AXES = [np.array(axis) for axis in itertools.product((-1.0, 0.0, 1.0), repeat=3) if any(axis)]
AXES += [np.array([0.3, -1.1, 0.02]), np.array([1e-6, 1.0, -1e-3])]
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def rotvecs(angle: float) -> torch.Tensor:
    return torch.from_numpy(np.stack([angle * axis / np.linalg.norm(axis) for axis in AXES]))


def exact_matrices(vectors: torch.Tensor) -> torch.Tensor:
    """Rodrigues' formula with 50 digits, rounded once."""
    matrices = []
    with mpmath.workdps(50):
        for vector in vectors.tolist():
            x, y, z = map(mpmath.mpf, vector)
            hat = mpmath.matrix([[0, -z, y], [z, 0, -x], [-y, x, 0]])
            angle = mpmath.sqrt(x * x + y * y + z * z)
            matrix = mpmath.eye(3)
            if angle:
                matrix += hat * (mpmath.sin(angle) / angle) + hat * hat * ((1 - mpmath.cos(angle)) / angle**2)
            matrices.append([[float(matrix[i, j]) for j in range(3)] for i in range(3)])
    return torch.tensor(matrices, dtype=torch.float64)


def naive_log(rots: torch.Tensor) -> torch.Tensor:
    """The published code's logarithm: arccos of the trace, divided by its sine."""
    angle = torch.arccos((rots.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2)
    skew = rots - rots.transpose(-1, -2)
    vector = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    return vector * (angle / (2 * torch.sin(angle)))[..., None]


def directional_gradients(function, rots: torch.Tensor) -> torch.Tensor:
    """Jacobians [..., 3, 3] of function(R (I + hat(e))) in e at zero, by reverse mode."""
    increments = torch.zeros((*rots.shape[:-2], 3), dtype=rots.dtype, requires_grad=True)
    values = function(rots @ (torch.eye(3, dtype=rots.dtype) + rotations.hat(increments)))
    rows = [torch.autograd.grad(values[..., k].sum(), increments, retain_graph=True)[0] for k in range(3)]
    return torch.stack(rows, -2)


def up_to_sign_at_pi(found: torch.Tensor, expected: torch.Tensor, angle: float) -> torch.Tensor:
    """At pi both axes are right."""
    flipped = (found * expected).sum(-1, keepdim=True) < 0
    return torch.where(flipped, -found, found) if math.pi - angle < 1e-6 else found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", ANGLES)
def test_B4_log_is_right_up_to_pi(angle: float, dtype: torch.dtype) -> None:
    """log equals 50-digit rotation vectors at every angle up to pi, also about axes with zero components."""
    expected = rotvecs(angle)
    found = rotations.log(exact_matrices(expected).to(dtype)).double()
    assert found.isfinite().all()
    assert (found.norm(dim=-1) <= math.pi + TOLERANCE[dtype]).all()
    if dtype is torch.float64 and angle == math.pi - 1e-9:
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])  # sign and all
    torch.testing.assert_close(up_to_sign_at_pi(found, expected, angle), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("angle", ANGLES)
def test_B4_log_gradient_is_right_up_to_pi(angle: float) -> None:
    """The gradient of log is the inverse right Jacobian of SO(3), from the identity to pi (where its sign is log's)."""
    rots = exact_matrices(rotvecs(angle))
    gradient = directional_gradients(rotations.log, rots)
    inverse = torch.linalg.inv(rotations.left_jacobian(-rotations.log(rots)))
    torch.testing.assert_close(gradient, inverse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("angle", ANGLES)
def test_B4_log_gradient_is_finite_in_float32(angle: float) -> None:
    """Values and gradients of log stay finite and bounded in float32 at every angle."""
    gradient = directional_gradients(rotations.log, exact_matrices(rotvecs(angle)).float())
    assert gradient.isfinite().all() and gradient.abs().max() < 3


def test_B4_control_arccos_fails() -> None:
    """Control: the logarithm by arccos of the trace is wrong by more than 1e-6 at pi - 1e-9, NaN at the identity."""
    near = rotvecs(math.pi - 1e-9)
    assert not torch.allclose(naive_log(exact_matrices(near)), near, rtol=0, atol=1e-6)
    assert not naive_log(torch.eye(3, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_B5_gradient_at_the_identity(dtype: torch.dtype) -> None:
    """From an identity quaternion through from_tensor_7, to_tensor_7 and log: finite gradients, right values."""
    tensor = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    rigids = Rigid.from_tensor_7(tensor)
    vectors = rotations.log(Rigid.from_tensor_7(rigids.to_tensor_7()).rots)
    rows = [torch.autograd.grad(vectors[:, k].sum(), tensor, retain_graph=True)[0] for k in range(3)]
    jacobian = torch.stack(rows, 1)
    expected = torch.zeros(2, 3, 7, dtype=dtype)
    expected[:, :, 1:4] = 2 * torch.eye(3, dtype=dtype) * torch.tensor([1.0, -1.0], dtype=dtype)[:, None, None]
    torch.testing.assert_close(jacobian, expected)
    assert (vectors == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_B5_w_below_zero_is_flipped(dtype: torch.dtype, generator: torch.Generator) -> None:
    """q and -q are one rotation: the same log, of angle <= pi, the same packed quaternion, with w >= 0."""
    quats = torch.randn(500, 4, generator=generator, dtype=dtype)
    quats = torch.cat([quats, torch.eye(4, dtype=dtype)])
    rots, twins = rotations.from_quaternion(quats), rotations.from_quaternion(-quats)
    assert torch.equal(rots, twins)
    vectors = rotations.log(rots)
    assert (vectors.norm(dim=-1) <= math.pi + 1e-6).all()
    packed = rotations.to_quaternion(rots)
    assert (packed[:, 0] >= 0).all() and (quats[:, 0] < 0).any()
    xyzw = quats.double().numpy()[:, [1, 2, 3, 0]]
    expected = torch.from_numpy(Rotation.from_quat(xyzw).as_rotvec()).to(dtype)
    torch.testing.assert_close(vectors[:-4], expected[:-4], rtol=0, atol=TOLERANCE[dtype] * 5)
    torch.testing.assert_close(rotations.from_quaternion(packed), rots)


def test_B5_control_acos_without_flip_fails() -> None:
    """Control: 2 acos(w) v / |v| of the published code has a NaN gradient at the identity and angles beyond pi."""

    def naive(quat: torch.Tensor) -> torch.Tensor:
        return 2 * torch.acos(quat[0]) * quat[1:] / quat[1:].norm()

    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(naive(identity).sum(), identity)
    assert gradient.isnan().any()
    assert naive(torch.tensor([-0.98, 0.199, 0.0, 0.0])).norm() > 5.8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", ANGLES)
def test_exp_is_right(angle: float, dtype: torch.dtype) -> None:
    """exp equals 50-digit matrices; exp(log(R)) gives R back."""
    exact = exact_matrices(rotvecs(angle))
    found = rotations.exp(rotvecs(angle).to(dtype))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol={torch.float64: 1e-12, torch.float32: 1e-6}[dtype])
    back = rotations.exp(rotations.log(exact.to(dtype)))
    torch.testing.assert_close(back, exact.to(dtype), rtol=0, atol={torch.float64: 1e-12, torch.float32: 2e-6}[dtype])


def trace_moments_sigmas(rots: torch.Tensor) -> list[float]:
    """How many standard errors the moments 1-4 of the trace are off their Haar values 0, 1, 1, 3."""
    trace = rots.diagonal(dim1=-2, dim2=-1).sum(-1)
    powers = [trace**k for k in (1, 2, 3, 4)]
    expected = [0.0, 1.0, 1.0, 3.0]
    return [float((p.mean() - e) / p.std() * len(p) ** 0.5) for p, e in zip(powers, expected, strict=True)]


def test_haar_is_uniform(generator: torch.Generator) -> None:
    """Moments 1-4 of the trace are those of Haar measure, angles follow (1 - cos a)/pi, and a turn changes neither."""
    rots = rotations.haar((100_000,), generator)
    turn = rotations.exp(torch.tensor([0.7, -1.9, 0.4], dtype=torch.float64))
    for sample in (rots, turn @ rots):
        assert max(map(abs, trace_moments_sigmas(sample))) < 4
        angles = rotations.log(sample).norm(dim=-1).numpy()
        assert stats.kstest(angles, lambda a: (a - np.sin(a)) / math.pi).pvalue > 1e-4


def test_haar_control(generator: torch.Generator) -> None:
    """Control: rotation vectors uniform in the ball of radius pi are not Haar-distributed, and the moments see it."""
    directions = torch.randn(100_000, 3, generator=generator, dtype=torch.float64)
    radii = math.pi * torch.rand(100_000, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    rots = rotations.exp(radii * directions / directions.norm(dim=-1, keepdim=True))
    assert max(map(abs, trace_moments_sigmas(rots))) > 20


def test_haar_is_reproducible() -> None:
    """The same generator state gives the same rotations; shapes and dtypes are those asked for."""
    first, second = (rotations.haar((2, 3), torch.Generator().manual_seed(1), torch.float32) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, 3, 3, 3) and first.dtype is torch.float32


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.03, 0.0316, 0.0317, 0.5, 2.0, 3.1, 4.0])
def test_left_jacobian_against_finite_differences(angle: float) -> None:
    """Exp(v + dv) = Exp(J_l(v) dv) Exp(v): central differences agree to 1e-9, on both sides of the series' limit."""
    vectors, step = rotvecs(angle), 1e-5
    columns = []
    for k in range(3):
        dv = step * torch.eye(3, dtype=torch.float64)[k]
        turn = rotations.exp(vectors + dv) @ rotations.exp(vectors - dv).transpose(-1, -2)
        columns.append(rotations.log(turn) / (2 * step))
    jacobian = rotations.left_jacobian(vectors)
    torch.testing.assert_close(jacobian, torch.stack(columns, -1), rtol=0, atol=1e-9)
    determinant = rotations.log_left_jacobian_determinant(vectors)
    torch.testing.assert_close(determinant, torch.linalg.det(jacobian).abs().log(), rtol=0, atol=1e-10)


def test_left_jacobian_at_zero_has_gradients() -> None:
    """Jacobian and log determinant are differentiable at zero: slopes hat(e)/2 and 0."""
    zero = torch.zeros(3, dtype=torch.float64)
    slope = torch.func.jacrev(rotations.left_jacobian)(zero)
    expected = rotations.hat(torch.eye(3, dtype=torch.float64)).permute(1, 2, 0) / 2
    torch.testing.assert_close(slope, expected)
    assert torch.equal(torch.func.grad(rotations.log_left_jacobian_determinant)(zero), zero)


def homogeneous(rigid: Rigid) -> np.ndarray:
    matrix = np.zeros((*rigid.shape, 4, 4))
    matrix[..., :3, :3], matrix[..., :3, 3], matrix[..., 3, 3] = rigid.rots.numpy(), rigid.trans.numpy(), 1
    return matrix


def random_rigids(shape: tuple[int, ...], generator: torch.Generator) -> Rigid:
    trans = torch.randn((*shape, 3), generator=generator, dtype=torch.float64)
    return Rigid(rotations.haar(shape, generator), 5 * trans)


def test_rigid_motions_are_a_group(generator: torch.Generator) -> None:
    """compose, inverse, apply and invert_apply are products and inverses of 4x4 matrices, with broadcast batches."""
    a, b = random_rigids((4, 1), generator), random_rigids((3,), generator)
    points = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(homogeneous(a.compose(b)), homogeneous(a) @ homogeneous(b), atol=1e-13)
    np.testing.assert_allclose(homogeneous(a.inverse()), np.linalg.inv(homogeneous(a)), atol=1e-13)
    four = np.concatenate([points.numpy(), np.ones((4, 3, 1))], -1)[..., None]
    np.testing.assert_allclose(a.apply(points), (homogeneous(a) @ four)[..., :3, 0], atol=1e-13)
    torch.testing.assert_close(a.invert_apply(a.apply(points)), points)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_7_round_trip(dtype: torch.dtype, generator: torch.Generator) -> None:
    """[quaternion, translation] and back gives the same motion; w >= 0 whatever the sign on the way in."""
    rigids = random_rigids((50, 2), generator).to(dtype)
    packed = rigids.to_tensor_7()
    assert packed.shape == (50, 2, 7) and packed.dtype is dtype and (packed[..., 0] >= 0).all()
    flipped = torch.cat([-2 * packed[..., :4], packed[..., 4:]], -1)
    for tensor in (packed, flipped):
        back = Rigid.from_tensor_7(tensor)
        torch.testing.assert_close(back.rots, rigids.rots, rtol=0, atol=TOLERANCE[dtype] * 2)
        assert torch.equal(back.trans, rigids.trans)


def test_rigid_bookkeeping(generator: torch.Generator) -> None:
    """Indexing, unsqueeze, map_trans and identity act on batch dimensions and leave the rest alone."""
    rigids = random_rigids((4, 5), generator)
    assert rigids[1].shape == (5,) and rigids[..., 2:].shape == (4, 3) and rigids[:, 0].shape == (4,)
    assert torch.equal(rigids[1, 2].rots, rigids.rots[1, 2])
    assert rigids.unsqueeze(0).shape == (1, 4, 5) and rigids.unsqueeze(-1).shape == (4, 5, 1)
    assert torch.equal(rigids.map_trans(lambda x: 2 * x).trans, 2 * rigids.trans)
    same = Rigid.identity((4, 5), torch.float64).compose(rigids)
    assert torch.equal(same.rots, rigids.rots) and torch.equal(same.trans, rigids.trans)


def test_from_3_points(generator: torch.Generator) -> None:
    """The first point lies on -x, the second is the origin, the third has y > 0, z = 0; axes are right-handed."""
    points = torch.randn(3, 20, 3, generator=generator, dtype=torch.float64)
    rigids = Rigid.from_3_points(*points)
    first, origin, third = (rigids.invert_apply(p) for p in points)
    zero = torch.zeros(20, dtype=torch.float64)
    assert (first[:, 0] < 0).all() and (third[:, 1] > 0).all()
    torch.testing.assert_close(torch.stack([first[:, 1], first[:, 2], third[:, 2]]), zero.expand(3, -1))
    torch.testing.assert_close(origin, zero[:, None].expand(-1, 3))
    torch.testing.assert_close(torch.linalg.det(rigids.rots), zero + 1)
