"""The entries of the exactness test of SE(3) moves: which network, which density, how many chains and moves."""

from dataclasses import dataclass
from typing import Literal

Network = Literal["trained", "perturbed", "random"]


@dataclass(frozen=True)
class Entry:
    """One line of the grid.

    Attributes
    ----------
    network
        "trained", "perturbed" (every weight), or "random".
    density
        "path" and "flow" of independent candidates, "local" for moves that noise and denoise the present state.
    n_candidates
        Of a move.
    n_chains, n_moves
        Chains, and moves of each.
    n_diffusion_steps
        Levels of noise: exact for any number, so few.
    torsions
        Kinds that move.
    t_star, width
        Of local moves; of a(s), the model's own if None.
    """

    network: Network
    density: Literal["path", "local", "flow"]
    n_candidates: int
    n_chains: int
    n_moves: int
    n_diffusion_steps: int
    torsions: tuple[str, ...] = ("phi", "psi")
    t_star: float = 0.1
    width: float | None = None

    def __str__(self) -> str:
        moved = ", omega moved" if "omega" in self.torsions else ""
        return f"{self.network}, {self.density}, {self.n_candidates} candidate{'s' * (self.n_candidates > 1)}{moved}"


def grid() -> list[Entry]:
    """The whole grid: at least 20 000 path or local moves or 2 000 of flows an entry, more where few are accepted."""
    both, moved = ("phi", "psi"), ("phi", "psi", "omega")
    molecular: list[tuple[Network, tuple[str, ...]]] = [("trained", both), ("perturbed", both), ("trained", moved)]
    entries = []
    for n in (1, 8):
        for network, torsions in molecular:
            often = 12 if network == "perturbed" or torsions == moved else 8
            # The better the network, the less the control differs.
            many = 5120 if network == "trained" and torsions == both else 2560
            entries += [
                Entry(network, "path", n, 2560, often if n == 1 else 8, 10, torsions),
                Entry(network, "local", n, many, 8, 3, torsions),
            ]
        entries += [
            Entry("trained", "flow", n, 512, 21 if n == 1 else 4, 8),
            Entry("perturbed", "flow", n, 512, 19 if n == 1 else 4, 8),
            Entry("random", "path", n, 5120, 60 if n == 1 else 8, 4),
            Entry("random", "local", n, 2560, 8, 3, t_star=0.03),
            Entry("random", "flow", n, 640, 20 if n == 1 else 4, 2, width=1.0),
        ]
    return [*entries, Entry("trained", "flow", 8, 512, 5, 8, moved)]


def quick_grid() -> list[Entry]:
    """A minute's worth, of an untrained network."""
    return [
        Entry("random", "path", 8, 640, 6, 3, width=1.0),
        Entry("random", "local", 1, 640, 10, 3, t_star=0.03),
    ]
