"""Files of coordinates and tables of splits: names, shapes, borders, and one sentence for each way to be wrong."""

from pathlib import Path

import numpy as np
import pytest

from openmm_diffusion.data.frame_splits import FrameSplit, merged_table, read_frame_splits, read_sequences, read_table
from openmm_diffusion.data.md_arrays import (
    ArrayWriter,
    check_frames,
    find_array,
    list_arrays,
    open_array,
    sequence_name,
    strip_suffix,
)
from openmm_diffusion.errors import InputFileError, TrajectoryError

HEADER = "name,train_start,train_end,total_frames,train_early_end,val_end"
MDGEN_ROW = "1a62_A_R1,,6200,10001,500.0,8100.0"


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text + "\n", encoding="utf-8")
    return path


def array(path: Path, shape: tuple[int, ...] = (3, 2, 14, 3), dtype: str = "float16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ones(shape, dtype))
    return path


def test_the_protein_is_what_stands_before_the_last_R() -> None:
    """A name that holds _R itself keeps it; splitting at the first _R, as published code does, would not."""
    assert sequence_name("2_R_A_R1") == "2_R_A" != "2_R_A_R1".partition("_R")[0]
    assert sequence_name("1a62_A_R12") == "1a62_A"


def test_both_layouts_are_found(tmp_path: Path) -> None:
    """Flat and nested files are found by the same name, with and without a suffix, and listed."""
    flat = array(tmp_path / "one_R1_i10.npy")
    nested = array(tmp_path / "two" / "two_R3_i10.npy")
    assert find_array(tmp_path, "one_R1", "_i10") == flat
    assert find_array(tmp_path, "two_R3", "_i10") == nested
    assert find_array(tmp_path, "one_R1") is None
    assert list_arrays(tmp_path, "_i10") == ["one_R1", "two_R3"]
    with pytest.raises(InputFileError, match="does not exist"):
        list_arrays(tmp_path / "nowhere")


def test_a_suffix_is_applied_once(tmp_path: Path) -> None:
    """A suffix that a table has baked into its names is stripped; a file that carries it twice is refused."""
    assert strip_suffix("one_R1_latent_latent", "_latent") == "one_R1"
    file = array(tmp_path / "one_R1_latent.npy")
    assert find_array(tmp_path, "one_R1_latent", "_latent") == file
    file.rename(tmp_path / "one_R1_latent_latent.npy")
    with pytest.raises(InputFileError, match="twice"):
        find_array(tmp_path, "one_R1", "_latent")


@pytest.mark.parametrize(
    ("shape", "dtype", "sentence"),
    [
        ((3, 2, 37, 3), "float32", r"\(3, 2, 37, 3\); expected \[frames"),
        ((3, 2, 14, 3), "int16", "of type int16"),
        ((0, 2, 14, 3), "float32", "at least one frame"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, shape: tuple[int, ...], dtype: str, sentence: str) -> None:
    """Another shape, another type and an empty array are refused with what was found."""
    with pytest.raises(TrajectoryError, match=sentence):
        open_array(array(tmp_path / "x_R1.npy", shape, dtype))


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    """A missing file, and a file of something else, are one sentence; a good one is a read-only memory map."""
    with pytest.raises(InputFileError, match="there is no"):
        open_array(tmp_path / "x_R1.npy")
    with pytest.raises(InputFileError, match="cannot be read"):
        open_array(table(tmp_path, "text"))
    good = open_array(array(tmp_path / "y_R1.npy"))
    assert isinstance(good, np.memmap) and not good.flags.writeable


def test_writing_in_pieces_is_writing_at_once(tmp_path: Path) -> None:
    """Chunks of any number make the same file as np.save, byte for byte."""
    rows = np.random.default_rng(0).normal(size=(13, 2, 14, 3)).astype(np.float16)
    with ArrayWriter(tmp_path / "pieces.npy", (2, 14, 3), "float16") as writer:
        for chunk in (rows[:1], rows[1:1], rows[1:9], rows[9:]):
            writer.append(chunk.astype(np.float64))
    np.save(tmp_path / "once.npy", rows)
    assert writer.n_rows == 13
    assert (tmp_path / "pieces.npy").read_bytes() == (tmp_path / "once.npy").read_bytes()


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    """A coordinate that float16 would store as infinity is an error."""
    with ArrayWriter(tmp_path / "x.npy", (1,), "float16") as writer:
        writer.append(np.array([[6e4]]))
        with pytest.raises(TrajectoryError, match="too large"):
            writer.append(np.array([[7e4]]))


def test_bad_coordinates_name_file_and_frame() -> None:
    """NaN and absent backbone atoms are found in any frame and named; absent side-chain atoms are normal."""
    good = chain(3, 2).astype(np.float16)
    check_frames(good, "f.npy", [10, 11, 12])
    nan, absent = good.copy(), good.copy()
    nan[1, 0, 9, 2] = np.nan
    absent[2, 1, 2] = 0
    with pytest.raises(TrajectoryError, match=r"f\.npy: frame 11 has NaN"):
        check_frames(nan, "f.npy", [10, 11, 12])
    with pytest.raises(TrajectoryError, match=r"f\.npy: frame 12 has no C in residue 2"):
        check_frames(absent, "f.npy", [10, 11, 12])


def chain(n_frames: int, n_residues: int) -> np.ndarray:
    """A straight backbone: N, CA, C, O and CB of every residue, C-N 1.3 Angstrom, the rest absent."""
    residue = [[0.2, 0.1, 1.0], [1.0, 1.2, 1.0], [2.2, 0.1, 1.0], [2.2, -1.2, 1.0], [1.0, 2.0, 2.0]]
    atoms = np.zeros((n_frames, n_residues, 14, 3))
    atoms[:, :, :5] = residue + np.array([3.3, 0.0, 0.0]) * np.arange(n_residues)[:, None, None]
    return atoms


def broken(atoms: np.ndarray, kind: str) -> np.ndarray:
    """The frames with a fault in the middle of the last one."""
    residue = atoms[-1, atoms.shape[1] // 2 :]
    if kind == "shifted":
        residue[:, :5] += np.array([20.0, 0.0, 0.0])
    elif kind == "coinciding":
        residue[0, [0, 2]] = residue[0, 1]
    elif kind == "straight":
        residue[0, 2] = 2 * residue[0, 1] - residue[0, 0]
    else:
        atoms[-1] *= 0.1
    return atoms


@pytest.mark.parametrize("n_frames", [1, 600])
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("shifted", r"frame {} the chain is broken between residues 3 and 4 \(C-N 21\.\d Angstrom"),
        ("coinciding", r"frame {} N, CA and C of residue 4 lie on a line or on one point"),
        ("straight", r"frame {} N, CA and C of residue 4 lie on a line"),
        ("nanometres", r"frame {} N, CA and C of residue .* coordinates in Angstrom"),
    ],
)
def test_chains_without_frames_or_with_gaps_are_refused(n_frames: int, kind: str, sentence: str) -> None:
    """Residues moved by 20 Angstrom, N, CA and C on one point or line, and nm in place of Angstrom name the frame, in
    float16 and in chunks; the control, the same chain without the fault, passes."""
    numbers = np.arange(n_frames) * 7
    good = chain(n_frames, 6).astype(np.float16)
    check_frames(good, "f.npy", numbers)
    with pytest.raises(TrajectoryError, match=r"f\.npy: in " + sentence.format(numbers[-1])):
        check_frames(broken(good, kind), "f.npy", numbers)


def test_borders_of_a_published_table(tmp_path: Path) -> None:
    """A row of MDGen's table, with an empty cell and floats, gives its modes; frame_interval divides the borders."""
    (split,), known = read_frame_splits(table(tmp_path, f"{HEADER}\n{MDGEN_ROW}"), ["train", "val"])
    assert known
    modes = {mode: split.bounds(mode, 10001) for mode in ("train_early", "train", "val", "test", "all")}
    assert modes == {
        "train_early": (0, 6200),
        "train": (500, 6200),
        "val": (6200, 8100),
        "test": (8100, 10001),
        "all": (0, 10001),
    }
    assert [split.bounds(mode, 251, 40) for mode in ("train", "val", "test")] == [(12, 155), (155, 202), (202, 250)]


def test_a_table_for_another_file_is_refused(tmp_path: Path) -> None:
    """Borders beyond the file, or a count of frames that is not the file's, are an error with the remedy."""
    (split,), _ = read_frame_splits(table(tmp_path, f"{HEADER}\n{MDGEN_ROW}"), ["train"])
    for n_frames, interval in ((1001, 1), (10001, 40)):
        with pytest.raises(TrajectoryError, match="correct the table or frame_interval"):
            split.bounds("train", n_frames, interval)
    with pytest.raises(TrajectoryError, match="the split val of x_R1 is empty"):
        FrameSplit("x_R1", train_end=60, val_end=60).bounds("val", 100)


def test_new_splits_are_cut_as_published_ones() -> None:
    """60/20/20 after 500 early frames gives MDGen's numbers; a gap parts the splits; too few frames are refused."""
    split = FrameSplit.of("1a62_A_R1", 10001, (0.6, 0.2), early=500)
    assert list(split.to_row().values()) == ["1a62_A_R1", "", "6200", "10001", "500", "8100"]
    gapped = FrameSplit.of("x_R1", 100, (0.6, 0.2), gap=5)
    row = FrameSplit.from_row(gapped.to_row(), Path("x"))
    assert [row.bounds(m, 100) for m in ("train", "val", "test")] == [(0, 60), (65, 80), (85, 100)]
    with pytest.raises(TrajectoryError, match="leaves none for val"):
        FrameSplit.of("x_R1", 2, (0.6, 0.2))


def test_missing_columns_give_all_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table of names only serves, with a warning; the control: with the columns there is none."""
    splits, known = read_frame_splits(table(tmp_path, "name\nx_R1"), ["val"])
    assert [s.name for s in splits] == ["x_R1"] and not known
    assert "no column train_end, val_end: val takes all frames" in caplog.text
    caplog.clear()
    read_frame_splits(table(tmp_path, f"{HEADER}\n{MDGEN_ROW}"), ["val", "train"])
    assert not caplog.text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2", "expected name, seqres"),
        ("name,seqres", "no rows"),
        ("name,seqres\nx,AA\nx,AG", "'x' twice"),
        ("name,seqres\nx", "line 2: expected 2 cells"),
        ("name,seqres\n,AA", "line 2: expected 2 cells and a name"),
    ],
)
def test_wrong_tables_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    """Wrong columns, no rows, a name twice and broken lines are errors, not silently other data."""
    with pytest.raises(TrajectoryError, match=sentence):
        read_sequences(table(tmp_path, text))


def test_wrong_cells_are_one_sentence(tmp_path: Path) -> None:
    """A border that is no number of frames names column and row; pandas' nan is an empty cell."""
    with pytest.raises(TrajectoryError, match="train_end of x_R1 is 'soon'"):
        read_frame_splits(table(tmp_path, "name,train_end\nx_R1,soon"), ["train"])
    (split,), _ = read_frame_splits(table(tmp_path, "name,train_end,val_end\nx_R1,6,nan"), ["train"])
    assert (split.train_end, split.val_end) == (6, None)
    with pytest.raises(InputFileError, match="cannot read the table"):
        read_table(tmp_path / "none.csv", ["name"])


def test_rows_are_appended_to_tables_of_other_columns(tmp_path: Path) -> None:
    """New rows keep the columns of old ones, replace a row of the same name, and need not have all columns."""
    old = read_table(table(tmp_path, "name,seqres,year\na,AA,1999\nb,GG,2001"), ["name"])
    merged = merged_table(old, [{"name": "b", "seqres": "SS"}, {"name": "c", "seqres": "TT"}])
    assert merged == "name,seqres,year\na,AA,1999\nb,SS,\nc,TT,\n"
