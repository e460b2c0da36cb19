"""prepare se3: coordinates as in the trajectory, rows in the tables, and nothing written where the input is bad."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dipeptide_data import prepared_dipeptide
from peptides import ALANINE
from villin_data import SEQUENCE, prepared, shaken, structure, write

from openmm_diffusion.data.md_arrays import ArrayWriter
from openmm_diffusion.errors import InputFileError, OpenMMDiffusionError, OutputError, SettingError, TrajectoryError
from openmm_diffusion.geometry import residue_constants as rc
from openmm_diffusion.geometry.dihedral import dihedral
from openmm_diffusion.molecule.peptide import peptide
from openmm_diffusion.workflows import prepare_se3 as module
from openmm_diffusion.workflows.prepare_se3 import PrepareSE3Settings, prepare_se3
from openmm_diffusion.workflows.protein_atoms import select_protein
from openmm_diffusion.workflows.weighted_frames import dealt_order


def stored(folder: Path, name: str = "villin_R1.npy") -> np.ndarray:
    return np.load(folder / "data" / name)


def placed(frames: Any) -> np.ndarray:
    """Slow twin: atom14 in Angstrom by a loop over residues and names."""
    result = np.zeros((frames.n_frames, 35, 14, 3))
    residues = [r for r in frames.top.residues if r.name in rc.RESTYPES_3]
    for k, residue in enumerate(residues):
        for atom in residue.atoms:
            if atom.name in rc.ATOM14[residue.name]:
                result[:, k, rc.ATOM14[residue.name].index(atom.name)] = 10 * frames.xyz[:, atom.index]
    return result


def distances(atom14: np.ndarray) -> np.ndarray:
    atoms = atom14.astype(np.float64).reshape(len(atom14), -1, 3)
    return np.linalg.norm(atoms[:, :, None] - atoms[:, None], axis=-1)


@pytest.mark.parametrize(("suffix", "precision"), [("dcd", 1e-4), ("xtc", 0.02)])
def test_coordinates_are_those_of_the_trajectory(tmp_path: Path, suffix: str, precision: float) -> None:
    """All distances between heavy atoms are kept (XTC rounds to 0.01 A), solvent or not; the control: of another
    frame."""
    frames = shaken(6, solvent=True)
    trajectory, topology = write(tmp_path, frames, f"trajectory.{suffix}")
    data = prepared(tmp_path, frames=frames, trajectory=[trajectory], topology=topology, dtype="float32")
    assert (data.sequence, list(data.files.values())) == (SEQUENCE, [6])
    array, twin = stored(tmp_path), placed(frames)
    assert array.dtype == np.float32 and ((array != 0).any(-1) == (twin != 0).any(-1)).all()
    present = (twin[0] != 0).any(-1).ravel()
    error = np.abs(distances(array) - distances(twin))[:, present][:, :, present]
    assert error.max() < precision
    assert np.abs(distances(array[::-1]) - distances(twin))[:, present][:, :, present].max() > 0.05


def test_every_frame_lies_on_the_first(tmp_path: Path) -> None:
    """Turned and moved frames come back superposed: the spread is the noise of 0.02 A, and the first is at the
    origin."""
    prepared(tmp_path, 8, dtype="float32")
    array = stored(tmp_path)
    mask = array[0].any(-1)
    assert array[:, mask].std(0).mean() < 0.03
    assert np.abs(array[0, mask].mean(0)).max() < 1e-4
    assert placed(shaken(8))[:, mask].std(0).mean() > 1


def test_float16_is_the_rounded_float32(tmp_path: Path) -> None:
    """float16 files differ by the rounding at this distance from the origin, below 0.008 A."""
    prepared(tmp_path, 5, dtype="float32")
    prepared(tmp_path, 5, name="half")
    half = stored(tmp_path, "half_R1.npy")
    assert half.dtype == np.float16 and np.abs(half - stored(tmp_path)).max() < 0.008


@pytest.mark.parametrize(("chunk", "stride"), [(1, 1), (7, 3), (4, 5), (100, 2)])
def test_chunks_do_not_matter(tmp_path: Path, chunk: int, stride: int) -> None:
    """Any chunk with any stride stores the frames 0, stride, 2 stride, ... of the whole."""
    prepared(tmp_path, 20, name="whole")
    data = prepared(tmp_path, 20, chunk=chunk, stride=stride)
    assert np.array_equal(stored(tmp_path), stored(tmp_path, "whole_R1.npy")[::stride])
    assert f"villin_R1,,{int(0.6 * -(-20 // stride))}," in data.train_split.read_text()


def test_replicas_and_tables(tmp_path: Path) -> None:
    """Each file is a replica with a row of splits; a second call appends rows; repeats need overwrite."""
    trajectory, _ = write(tmp_path, shaken(10))
    data = prepared(tmp_path, 10, trajectory=[trajectory, trajectory], suffix="_i5", gap_frames=1)
    assert [path.name for path in data.files] == ["villin_R1_i5.npy", "villin_R2_i5.npy"]
    assert data.atlas_csv.read_text() == f"name,seqres\nvillin,{SEQUENCE}\n"
    more = prepared(tmp_path, 20, replica=3, suffix="_i5")
    assert more.train_split.read_text().splitlines() == [
        "name,train_start,train_end,total_frames,train_early_end,val_end,val_start,test_start",
        "villin_R1,,6,10,0,8,7,9",
        "villin_R2,,6,10,0,8,7,9",
        "villin_R3,,12,20,0,16,,",
    ]
    with pytest.raises(OutputError, match="exists already"):
        prepared(tmp_path, 10, suffix="_i5")
    with pytest.raises(OutputError, match="has rows villin_R1 already"):
        prepared(tmp_path, 10, suffix="_other")
    assert "villin_R1_i5.yaml" in {path.name for path in (tmp_path / "data").iterdir()}


def test_overwriting_replaces_one_row(tmp_path: Path) -> None:
    """With overwrite the file, its row and its sequence are new, and other rows stay."""
    prepared(tmp_path, 10, name="other")
    prepared(tmp_path, 10)
    trajectory, topology = write(tmp_path, shaken(30))
    values = {"trajectory": [trajectory], "topology": topology, "output": tmp_path / "data", "name": "villin"}
    data = prepare_se3(PrepareSE3Settings.build(values), overwrite=True, progress=False)
    rows = data.train_split.read_text().splitlines()[1:]
    assert [row.split(",")[3] for row in rows] == ["10", "30"] and len(stored(tmp_path)) == 30


def test_nested_folders(tmp_path: Path) -> None:
    """With `nested` the file lies in a folder of the protein's name."""
    data = prepared(tmp_path, 10, nested=True)
    assert list(data.files) == [tmp_path / "data" / "villin" / "villin_R1.npy"]


def renamed(frames: Any, names: dict[int, str]) -> Any:
    for index, name in names.items():
        frames.top.residue(index).name = name
    return frames


@pytest.mark.parametrize("name", ["HID", "HIE", "HIP", "HSD", "HISH", "CHIS"])
def test_protonation_states_are_their_residue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Histidine under any of its names is H in the sequence."""
    # PDB readers rename them; other formats of topologies keep the names.
    frames = renamed(shaken(6), {26: name})
    monkeypatch.setattr(module, "read_topology", lambda path: frames.top)
    assert prepared(tmp_path, frames=frames).sequence == SEQUENCE


def test_caps_are_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ACE and NME have no frame: the first and last residue made caps leave 33 residues and a warning."""
    frames = renamed(shaken(6), {0: "ACE", 34: "NME"})
    caps = [frames.top.residue(i) for i in (0, 34)]
    names = [
        {a.index for a in caps[0].atoms if a.name in ("C", "O", "CA")},
        {a.index for a in caps[1].atoms if a.name in "N"},
    ]
    inner = {a.index for a in frames.top.atoms if a.residue not in caps}
    with caplog.at_level(logging.WARNING):
        data = prepared(tmp_path, frames=frames.atom_slice(sorted(inner | names[0] | names[1])))
    assert data.sequence == SEQUENCE[1:-1]
    assert "the caps ACE, NME are left out" in caplog.text


def test_caps_are_residues_where_asked_for(tmp_path: Path) -> None:
    """ACE stands as (O, CH3, C) and NME as (N, CH3, H) in slots 0 to 2, nothing else, at the trajectory's distances; X
    in the sequence, and a column of residues."""
    import mdtraj

    data = prepared_dipeptide(tmp_path)
    array = np.load(next(iter(data.files)))
    assert data.sequence == "XAX"
    assert data.atlas_csv.read_text() == "name,seqres,residues\nala,XAX,ACE-ALA-NME\n"
    assert [int(n) for n in array.any((0, 3)).sum(1)] == [3, 5, 3] and array[:, 0, :3].any(-1).all()
    frames = mdtraj.load(str(tmp_path / "md" / "trajectory.dcd"), top=str(tmp_path / "md" / "topology.pdb"))
    order = np.load(next(iter(data.files)).with_name("ala_R1_weights.npy"))
    assert (order == 1).all()
    roles = [("ACE", "O"), ("ACE", "CH3"), ("ACE", "C"), ("NME", "N"), ("NME", "C"), ("NME", "H"), ("ALA", "CA")]
    atoms = [a.index for name, atom in roles for a in frames.top.atoms if (a.residue.name, a.name) == (name, atom)]
    twin = 10 * frames.xyz[0, atoms]
    placed = np.concatenate([array[0, 0, :3], array[0, 2, :3], array[0, 1, 1:2]])
    pairs = np.triu_indices(7, 1)
    lengths = [np.linalg.norm(x[pairs[0]] - x[pairs[1]], axis=-1) for x in (placed, twin)]
    assert np.abs(lengths[0] - lengths[1]).max() < 1e-3
    # Without caps, the same file gives one residue, and another sequence under the same name is refused.
    with pytest.raises(OutputError, match="with another sequence"):
        prepared_dipeptide(tmp_path, caps=False, replica=2)
    assert prepared_dipeptide(tmp_path, caps=False, weights=None, name="bare").sequence == "A"


def test_an_amide_cap_has_its_hydrogens(tmp_path: Path) -> None:
    """NH2 stands as (N, H1, H2)."""
    import mdtraj

    molecule = peptide("ACE-GLY-NH2")
    topology = mdtraj.Topology.from_openmm(molecule.topology)
    protein = select_protein(topology, None, tmp_path, caps=True)
    assert (protein.sequence, protein.residues) == ("XGX", ("ACE", "GLY", "NH2"))
    names = {int(slot): topology.atom(int(atom)).name for atom, slot in zip(protein.atoms, protein.slots, strict=True)}
    assert [names[slot] for slot in (0, 1, 2)] == ["O", "CH3", "C"]
    assert names[28] == "N" and {names[29], names[30]} <= {"H1", "H2", "HN1", "HN2"} and 31 not in names


def dipeptide_topology() -> Any:
    import mdtraj

    return mdtraj.load(str(ALANINE)).top


def capped(names: dict[int, str] | None = None, lost: tuple[int, str] | None = None) -> Any:
    """The dipeptide's topology with other names, or without an atom."""
    topology = dipeptide_topology()
    for index, name in (names or {}).items():
        topology.residue(index).name = name
    return topology.subset([a.index for a in topology.atoms if (a.residue.index, a.name) != lost])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: capped(lost=(2, "H")), "the cap NME3 lacks H; expected N, CH3, H"),
        (lambda: capped(lost=(0, "CH3")), "the cap ACE1 lacks CH3; expected O, CH3, C"),
        (lambda: capped({0: "FOR"}), "FOR1 is a cap of an unknown kind; expected ACE, NME, NH2"),
        (lambda: capped({2: "XYZ"}), "XYZ3 is a cap of an unknown kind"),
        (lambda: capped({0: "NME", 2: "NME"}), "the cap NME1 is residue 1 of 3; expected ACE to begin"),
        (lambda: structure().top, "has none of the caps ACE, NME, NH2 at its chain"),
    ],
)
def test_caps_that_cannot_be_are_one_sentence(make: Callable[[], Any], sentence: str) -> None:
    """A missing role atom, unknown caps, a cap at the wrong end, none at all."""
    with pytest.raises(TrajectoryError, match=sentence) as caught:
        select_protein(make(), None, Path("top.pdb"), caps=True)
    assert "\n" not in str(caught.value)


def test_weights_go_with_their_frames(tmp_path: Path) -> None:
    """Each stored frame has the weight of its frame of the trajectory, with stride and blocks; the control: in the
    order of the trajectory they do not."""
    tau = np.stack([np.linspace(-3, 3, 100), np.zeros(100)], -1)
    data = prepared_dipeptide(tmp_path, tau=tau, frame_weights=tau[:, 0] + 4, stride=2)
    path = next(iter(data.files))
    array, weights = np.load(path), np.load(path.with_name("ala_R1_weights.npy"))
    c, n, ca, c2 = array[:, 0, 2], array[:, 1, 0], array[:, 1, 1], array[:, 1, 2]
    phi = dihedral(*(torch.as_tensor(x) for x in (c, n, ca, c2))).numpy()
    assert weights.dtype == np.float64 and len(weights) == 50
    assert np.abs(phi + 4 - weights).max() < 1e-3 < np.abs(np.sort(phi) - phi).max()
    # Again without weights: those of before would be wrong.
    values = {"trajectory": [tmp_path / "md" / "trajectory.dcd"], "topology": tmp_path / "md" / "topology.pdb"}
    again = PrepareSE3Settings.build(values | {"output": tmp_path / "data", "name": "ala", "caps": True})
    prepare_se3(again, overwrite=True, progress=False)
    assert not path.with_name("ala_R1_weights.npy").exists() and len(np.load(path)) == 100


@pytest.mark.parametrize(("n_frames", "blocks"), [(100, 10), (57, 5), (1000, 100), (12_000, 100)])
def test_every_split_has_its_share_of_every_block(n_frames: int, blocks: int) -> None:
    """Frames sorted by temperature: contiguous splits of the dealt order hold each temperature in their shares; the
    control: of the trajectory's own order the last split has the hottest alone."""
    values = {"trajectory": ["a.dcd"], "topology": "a.pdb", "output": "data", "name": "a", "weights": ["w.npz"]}
    order = dealt_order(n_frames, PrepareSE3Settings.build(values))
    assert order is not None and sorted(order.tolist()) == list(range(n_frames))
    block = np.arange(n_frames) * blocks // n_frames
    for first, stop, share in ((0, 0.6, 0.6), (0.6, 0.8, 0.2), (0.8, 1, 0.2)):
        rows = slice(int(first * n_frames), int(stop * n_frames))
        counts = np.bincount(block[order[rows]], minlength=blocks)
        assert np.abs(counts - share * np.bincount(block)).max() <= 1.5
        assert np.abs(np.bincount(block[rows], minlength=blocks) - share * np.bincount(block)).max() > 1.5
    assert dealt_order(n_frames, PrepareSE3Settings.build(values | {"weights": None})) is None
    assert dealt_order(n_frames, PrepareSE3Settings.build(values | {"blocks": 1})) is None


@pytest.mark.parametrize(
    ("more", "kind", "sentence"),
    [
        ({"frame_weights": np.ones(99)}, TrajectoryError, "has 99 weights, but .*trajectory.dcd has about 100 frames"),
        ({"frame_weights": -np.ones(100)}, TrajectoryError, "negative, not finite, or all zero"),
        ({"frame_weights": np.full(100, np.nan)}, TrajectoryError, "negative, not finite, or all zero"),
        ({"weights": [Path("a.npz"), Path("b.npz")]}, SettingError, "2 files of weights for 1 trajectories"),
        ({"weights": [Path("none.npz")]}, InputFileError, "holds no weights"),
        ({"early_frames": 5}, SettingError, "early_frames is 5 with weights or blocks"),
    ],
)
def test_wrong_weights_are_one_sentence(tmp_path: Path, more: Any, kind: type[Exception], sentence: str) -> None:
    """Too few, impossible, for other files, unreadable: nothing is written."""
    with pytest.raises(kind, match=sentence):
        prepared_dipeptide(tmp_path, **more)
    assert not list((tmp_path / "data").glob("*"))


def without(*lost: tuple[int, str]) -> Any:
    frames = shaken(6)
    return frames.atom_slice([a.index for a in frames.top.atoms if (a.residue.index, a.name) not in lost])


def jumped(frame: int, residue: int) -> Any:
    """Frames where everything from a residue on lies one box away, as in a wrapped trajectory."""
    frames = shaken(20)
    atoms = [a.index for a in frames.top.atoms if a.residue.index >= residue]
    frames.xyz[frame, atoms] += 4.0
    return frames


def not_a_number() -> Any:
    frames = shaken(20)
    frames.xyz[13, 0] = np.nan
    return frames


def two_chains() -> Any:
    frames = shaken(6)
    return frames.stack(shaken(6, seed=1))


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unknown residue": (
        lambda: renamed(shaken(6), {3: "XYZ"}),
        TrajectoryError,
        "XYZ 4 is an amino acid of an unknown",
    ),
    "no backbone": (lambda: without((5, "C"), (5, "O")), TrajectoryError, "residue PHE6 lacks C, O"),
    "gap": (lambda: jumped(0, 20), TrajectoryError, "in frame 0 the chain is broken between LEU 20 and PRO 21"),
    "later wrap": (
        lambda: jumped(17, 10),
        TrajectoryError,
        "in frame 17 the chain is broken between PHE 10 and GLY 11",
    ),
    "two chains": (two_chains, TrajectoryError, r"has 2 protein chains \(chainid 0, 1\)"),
    "NaN": (not_a_number, TrajectoryError, "frame 13 has NaN"),
    "few frames": (lambda: shaken(2), TrajectoryError, "leaves none for val"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    """What cannot be prepared says what, where and the remedy, and leaves neither file nor row."""
    make, kind, sentence = BAD[case]
    with pytest.raises(kind, match=sentence) as caught:
        prepared(tmp_path, frames=make(), chunk=4)
    assert isinstance(caught.value, OpenMMDiffusionError) and "\n" not in str(caught.value)
    assert not list((tmp_path / "data").iterdir())


def test_the_second_trajectory_spoils_the_first(tmp_path: Path) -> None:
    """Where the second of two trajectories is bad, nothing of the first is left either."""
    good, topology = write(tmp_path, shaken(10), "good.dcd")
    bad, _ = write(tmp_path, jumped(3, 10), "bad.dcd")
    with pytest.raises(TrajectoryError, match=r"bad\.dcd: in frame 3"):
        prepared(tmp_path, 10, trajectory=[good, bad], topology=topology)
    assert not list((tmp_path / "data").iterdir())


def test_a_chain_is_selected(tmp_path: Path) -> None:
    """One of two chains is taken by an mdtraj selection; a selection that says nothing or nonsense is an error."""
    frames = two_chains()
    assert prepared(tmp_path, frames=frames, selection="chainid 1").sequence == SEQUENCE
    with pytest.raises(TrajectoryError, match="no amino acid in the selection 'resname HOH'"):
        prepared(tmp_path, frames=frames, selection="resname HOH", name="x")
    with pytest.raises(SettingError, match="the selection 'chain chain' is not understood"):
        prepared(tmp_path, frames=frames, selection="chain chain", name="x")
    prepared(tmp_path, frames=shaken(6), name="one", dtype="float32")
    prepared(tmp_path, frames=frames, selection="chainid 0", name="first", dtype="float32")
    assert np.allclose(stored(tmp_path, "first_R1.npy"), stored(tmp_path, "one_R1.npy"), atol=1e-4)


def test_a_trajectory_of_another_molecule_is_refused(tmp_path: Path) -> None:
    """A number of atoms that differs from the topology's is an error although only some atoms are read."""
    trajectory, _ = write(tmp_path, without((34, "O")), "other.dcd")
    with pytest.raises(TrajectoryError, match="expected frames of 582 atoms"):
        prepared(tmp_path, 6, trajectory=[trajectory])
    with pytest.raises(InputFileError, match="there is no trajectory"):
        prepared(tmp_path, 6, trajectory=[tmp_path / "none.dcd"])
    with pytest.raises(InputFileError, match="there is no topology"):
        prepared(tmp_path, 6, topology=tmp_path / "none.pdb")
    with pytest.raises(InputFileError, match="cannot be read as a topology"):
        prepared(tmp_path, 6, topology=trajectory)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "villin_i5", "suffix": "_i5"}, "applied twice"),
        ({"train_share": 0.8, "val_share": 0.2}, "expected less than 1"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    """Settings that cannot be are refused before anything is read."""
    with pytest.raises(SettingError, match=sentence):
        prepared(tmp_path, 6, **settings)


def test_another_sequence_under_the_same_name_is_refused(tmp_path: Path) -> None:
    """A protein of the same name and another sequence is an error: the table would be wrong for the old files."""
    prepared(tmp_path, 10)
    with pytest.raises(OutputError, match="with another sequence"):
        prepared(tmp_path, frames=renamed(shaken(6), {7: "GLY"}), replica=2)


def test_a_missing_side_chain_is_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A side-chain atom that the file lacks is three zeros and a warning."""
    prepared(tmp_path, frames=without((5, "CZ")))
    assert not stored(tmp_path)[:, 5, rc.ATOM14["PHE"].index("CZ")].any()
    assert "lacks 1 side-chain atoms (PHE6-CZ" in caplog.text


PEAK = """
import re, sys
from pathlib import Path
from openmm_diffusion.workflows.prepare_se3 import PrepareSE3Settings, prepare_se3
from openmm_diffusion.workflows.protein_atoms import select_protein
from openmm_diffusion.workflows.weighted_frames import dealt_order
folder, n, chunk = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
prepare_se3(PrepareSE3Settings(trajectory=[folder / f"{n}.xtc"], topology=folder / "topology.pdb",
    output=folder / f"{n}_{chunk}", name="villin", chunk=chunk), progress=False)
print(int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def peak_mib(folder: Path, n_frames: int, chunk: int) -> float:
    """Peak memory of a process that prepares a trajectory of n_frames (ru_maxrss would begin at the parent's)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PEAK, str(folder), str(n_frames), str(chunk)]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_trajectory(tmp_path: Path) -> None:
    """At 10 times the length the peak is the same to 10 % and to a fifth of the coordinates; in one chunk not."""
    import mdtraj

    start = structure()
    write(tmp_path, start)
    for n in (800, 8000):
        with mdtraj.formats.XTCTrajectoryFile(str(tmp_path / f"{n}.xtc"), "w") as file:
            for _ in range(n // 200):
                file.write(np.repeat(start.xyz, 200, 0))
    coordinates = 8000 * start.n_atoms * 12 / 2**20
    short, long, control = (peak_mib(tmp_path, n, chunk) for n, chunk in ((800, 20), (8000, 20), (8000, 8000)))
    assert abs(long / short - 1) < 0.1 and long - short < 0.2 * coordinates, (short, long)
    print(short, long, control)
    assert control - short > 0.2 * coordinates, (short, control)
    assert len(np.load(tmp_path / "8000_20" / "villin_R1.npy", mmap_mode="r")) == 8000


def test_an_interrupted_writer_leaves_no_rows(tmp_path: Path) -> None:
    """A file whose writing broke off says that it holds no rows: the count is written last."""
    with pytest.raises(KeyboardInterrupt), ArrayWriter(tmp_path / "x.npy", (3,), "float32") as writer:
        writer.append(np.ones((5, 3)))
        raise KeyboardInterrupt
    assert np.load(tmp_path / "x.npy").shape == (0, 3)
