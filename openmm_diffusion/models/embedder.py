"""First node and edge embeddings: residue index, noise level, self-conditioning, and, on request, relative frames."""

import math

import torch
from torch import Tensor, nn

from ..geometry.rigid import Rigid
from .ipa import Linear
from .se3_config import ScoreNetworkConfig

_NOISE_SIZE = 16  # features of the logarithm of one noise level
_RESIDUE_TYPES = 21
_CENTRES = 16  # radial functions of a CA-CA distance
_LONGEST = 20.0  # Angstrom
_NEIGHBOURS = (-2, -1, 1, 2)
# N, CA, C of a residue in its own frame, Angstrom: mean crystal geometry (Engh & Huber 1991).
_TRIAD = ((-0.525, 1.363, 0.0), (0.0, 0.0, 0.0), (1.526, 0.0, 0.0))
# From finer than a bond's vibration to the longest distance of second neighbours, Angstrom.
_WAVELENGTHS = tuple(0.25 * 2.0**k for k in range(7))


def index_embedding(index: Tensor, size: int) -> Tensor:
    """Sinusoids [..., size] of residue indices or their differences [...], wavelengths 2 to 4112 residues."""
    exponents = torch.arange(size // 2, dtype=index.dtype, device=index.device) * (2 / size)
    angles = index[..., None] * math.pi / 2056.0**exponents
    return torch.cat([torch.sin(angles), torch.cos(angles)], -1)


def time_embedding(t: Tensor, size: int) -> Tensor:
    """Sinusoids [..., size] of times in [0, 1], wavelengths 2 pi 1e-4 to 2 pi (Vaswani et al. 2017, on 10^4 t)."""
    exponents = torch.arange(size // 2, dtype=t.dtype, device=t.device) / max(size // 2 - 1, 1)
    angles = 1e4 * t[..., None] / 1e4**exponents
    return torch.cat([torch.sin(angles), torch.cos(angles)], -1)


def noise_embedding(sigma: Tensor) -> Tensor:
    """Sinusoids [..., 16] of log sigma: equally fine at every noise level."""
    frequencies = 0.5 * math.sqrt(2.0) ** torch.arange(_NOISE_SIZE // 2, dtype=sigma.dtype, device=sigma.device)
    angles = torch.log(sigma)[..., None] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], -1)


def pair_features(rigids: Rigid, angstrom: float) -> Tensor:
    """What frame i sees of frame j: [B, N, N, 28], invariant to a global motion and smooth.

    Direction of j's origin (3), radial functions of the distance (16), and the relative rotation's matrix (9).
    `angstrom` is one Angstrom in the units of the translations.
    """
    offsets = (rigids.trans[..., None, :, :] - rigids.trans[..., :, None, :]) @ rigids.rots / angstrom
    distance = torch.sqrt((offsets**2).sum(-1, keepdim=True) + 1e-2)
    spacing = _LONGEST / (_CENTRES - 1)
    centres = spacing * torch.arange(_CENTRES, dtype=distance.dtype, device=distance.device)
    radial = torch.exp(-0.5 * ((distance - centres) / spacing) ** 2)
    rotation = rigids.rots.transpose(-1, -2)[..., :, None, :, :] @ rigids.rots[..., None, :, :, :]
    return torch.cat([offsets / distance, radial, rotation.flatten(-2)], -1)


def neighbour_features(rigids: Rigid, follows: dict[int, Tensor], alpha: Tensor, noise: Tensor) -> Tensor:
    """Fine features of the neighbours along the chain: [B, N, 4 * 138].

    At low noise the score is that of stiff links: bonds, angles and their impropers, each a function of two or three
    distances between the atoms N, CA, C of neighbouring frames. So those distances enter as sinusoids with wavelengths
    down to 0.25 A, which resolve hundredths of an Angstrom whatever the ideal value is. A wavelength that the noise
    covers is damped by its own mean over that noise (Barron et al. 2021, mip-NeRF, eq. 13); then the coarse relative
    frame remains.

    Parameters
    ----------
    rigids
        Frames [B, N], noised, Angstrom.
    follows
        For each offset, [B, N]: 1 where the residue at that offset is the neighbour it should be.
    alpha
        [B] share of the clean positions in the noised ones; lengths are read from translations over it.
    noise
        [B] standard deviation of an atom of the noised, rescaled frames, Angstrom.
    """
    triad = torch.tensor(_TRIAD, dtype=rigids.trans.dtype, device=rigids.trans.device)
    waves = 2 * math.pi / torch.tensor(_WAVELENGTHS, dtype=triad.dtype, device=triad.device)
    # Two atoms, each with its noise.
    damping = torch.exp(-((waves * noise[:, None]) ** 2))[:, None, None, :]
    features = []
    for offset, valid in follows.items():
        other = Rigid(rigids.rots.roll(-offset, -3), rigids.trans.roll(-offset, -2))
        relative = rigids.inverse().compose(other)
        atoms = triad @ relative.rots.transpose(-1, -2) + (relative.trans / alpha[:, None, None])[..., None, :]
        gaps = atoms[..., None, :, :] - triad[:, None, :]
        distances = torch.sqrt((gaps**2).sum(-1) + 1e-4).flatten(-2)
        angles = distances[..., None] * waves
        fine = torch.cat([torch.sin(angles) * damping, torch.cos(angles) * damping], -1).flatten(-2)
        coarse = torch.cat([relative.trans / 4.0, relative.rots.flatten(-2)], -1)
        features.append(torch.cat([fine, coarse], -1) * valid[..., None])
    return torch.cat(features, -1)


class Embedder(nn.Module):
    """Node embeddings [B, N, node_embed_size] and edge embeddings [B, N, N, edge_embed_size].

    The first layer of the edges is applied to the nodes of a pair before they meet, and to distogram bins by lookup,
    which is the same function as a layer on concatenated features without making them.
    """

    def __init__(self, config: ScoreNetworkConfig) -> None:
        super().__init__()
        self.config, embed = config, config.embed
        c_s, c_z, size = config.node_embed_size, config.edge_embed_size, embed.index_embed_size
        single = size + (2 * _NOISE_SIZE if config.precondition else 0) + 1
        if embed.embed_residue_type:
            self.residue_type = nn.Embedding(_RESIDUE_TYPES, size)
            single += size
        fine = len(_NEIGHBOURS) * (9 * 2 * len(_WAVELENGTHS) + 12) if embed.relative_frames else 0
        self.node = nn.Sequential(Linear(single + size + fine, c_s), *_hidden_layers(c_s))
        self.query, self.key = Linear(single, c_z), Linear(single, c_z, bias=False)
        self.relative_index = Linear(size, c_z, bias=False)
        if embed.embed_self_conditioning:
            self.distogram = nn.Embedding(embed.num_bins + 1, c_z, padding_idx=embed.num_bins)
        if embed.relative_frames:
            self.relative_frame = Linear(3 + _CENTRES + 9, c_z, bias=False)
        self.edge = nn.Sequential(*_hidden_layers(c_z))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the tables; linear layers are drawn by the network."""
        with torch.no_grad():
            for name in ("residue_type", "distogram"):
                if hasattr(self, name):
                    table: nn.Embedding = getattr(self, name)
                    table.weight.normal_(0.0, 0.1, generator=generator)
            if self.config.embed.embed_self_conditioning:
                self.distogram.weight[-1].zero_()

    def forward(
        self,
        seq_idx: Tensor,
        t: Tensor,
        sigma: tuple[Tensor, Tensor],
        fixed: Tensor,
        sc_ca: Tensor | None = None,
        aatype: Tensor | None = None,
        frames: tuple[Rigid, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of nodes and edges.

        Parameters
        ----------
        seq_idx
            [B, N] residue numbers, floating point.
        t, sigma
            [B] times and their two noise levels (rad; Angstrom over alpha).
        fixed
            [B, N] 1 for residues that are not noised.
        sc_ca
            [B, N, 3] self-conditioning CA positions, Angstrom; zeros give no feature.
        aatype
            [B, N] residue types, read with `embed_residue_type` only.
        frames
            With `relative_frames`: noised frames in Angstrom, alpha [B], and presence [B, N].
        """
        n, embed = seq_idx.shape[-1], self.config.embed
        level = [time_embedding(t, embed.index_embed_size)]
        if self.config.precondition:
            level += [noise_embedding(value) for value in sigma]
        singles = [torch.cat(level, -1)[:, None].expand(-1, n, -1), fixed[..., None]]
        if aatype is not None:
            singles.append(self.residue_type(aatype).to(t.dtype))
        single = torch.cat(singles, -1)
        node = [single, index_embedding(seq_idx, embed.index_embed_size)]
        between = index_embedding(seq_idx[:, :, None] - seq_idx[:, None, :], embed.index_embed_size)
        edge = self.relative_index(between) + self.query(single)[:, :, None] + self.key(single)[:, None]
        if sc_ca is not None:
            edge = edge + self.distogram(self._bins(sc_ca))
        if frames is not None:
            rigids, alpha, present = frames
            noise = torch.sqrt(sigma[0] ** 2 + sigma[1] ** 2)  # a rotation's lever is about one Angstrom
            node.append(neighbour_features(rigids, _follows(seq_idx, present), alpha, noise))
            # Radial functions cover the range of the noised positions, not of the rescaled ones.
            edge = edge + self.relative_frame(pair_features(rigids, 1.0))
        return self.node(torch.cat(node, -1)), self.edge(edge)

    def _bins(self, ca: Tensor) -> Tensor:
        """Distogram bins [B, N, N] of positions [B, N, 3]; the last index, a zero row, below the first edge."""
        with torch.no_grad():
            distance = torch.sqrt(((ca[:, :, None] - ca[:, None]) ** 2).sum(-1))
            embed = self.config.embed
            edges = torch.linspace(embed.min_bin, embed.max_bin, embed.num_bins, dtype=ca.dtype, device=ca.device)
            index = torch.bucketize(distance, edges) - 1
            return torch.where(index < 0, embed.num_bins, index)


def _follows(seq_idx: Tensor, present: Tensor) -> dict[int, Tensor]:
    """For each offset along the chain, [B, N]: 1 where both residues are there and their numbers differ by it."""
    return {
        offset: present * present.roll(-offset, -1) * (seq_idx.roll(-offset, -1) - seq_idx == offset)
        for offset in _NEIGHBOURS
    }


def _hidden_layers(width: int) -> list[nn.Module]:
    """What follows the first linear layer of an embedding."""
    gain = math.sqrt(2.0)
    return [
        nn.SiLU(),
        Linear(width, width, gain=gain),
        nn.SiLU(),
        Linear(width, width, gain=gain),
        nn.LayerNorm(width),
    ]
