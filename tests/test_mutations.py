"""A thousand damaged input files: each is read as what it says, or refused in one sentence; no traceback, no hang."""

import contextlib
import csv
import math
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from openmm_diffusion.data.frame_splits import FrameSplit, read_frame_splits
from openmm_diffusion.errors import OpenMMDiffusionError
from openmm_diffusion.molecule import load, write_pdb
from openmm_diffusion.workflows.sample_settings import SampleSettings
from openmm_diffusion.workflows.systems import alanine_dipeptide

SECONDS = 20  # for one file, on a busy machine
ODD = (
    "nan",
    "inf",
    "-1",
    "1e999",
    "",
    "999999999999999999999",
    "0",
    "1.5",
    "null",
    "[]",
    "{}",
    "'",
    '"',
    "\t",
    "é",
    "~",
)

CONFIG = """\
# a chain of alanine dipeptide
system: alanine-dipeptide-obc
model: alanine-dipeptide-torsion
n_iterations: 2000
n_candidates: 8
torsions: [phi, psi]
t_star: null
md_steps: 250
timestep: 4.0
temperature: 300.0
walkers: 2
format: dcd
force_field:
  - amber99sbildn.xml
  - amber99_obc.xml
seed: 7
"""
SPLITS = """\
name,train_start,train_end,total_frames,train_early_end,val_end
villin_R1,0,600,1000,100,800
villin_R2,,500,1000,,750
1ubq_R1,0,600.0,1000.0,,800.0
"""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fail where the body takes longer: a hang."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated(text: bytes, rng: np.random.Generator) -> bytes:
    """The text with one to three random damages."""
    for _ in range(int(rng.integers(1, 4))):
        text = MUTATORS[int(rng.integers(len(MUTATORS)))](text, rng)
    return text


def _truncated(text: bytes, rng: np.random.Generator) -> bytes:
    return text[: int(rng.integers(len(text) + 1))]


def _byte(text: bytes, rng: np.random.Generator) -> bytes:
    i = int(rng.integers(len(text) + 1))
    return text[:i] + bytes([int(rng.integers(256))]) + text[i + 1 :]


def _inserted(text: bytes, rng: np.random.Generator) -> bytes:
    i = int(rng.integers(len(text) + 1))
    return text[:i] + rng.bytes(int(rng.integers(1, 6))) + text[i:]


def _deleted(text: bytes, rng: np.random.Generator) -> bytes:
    i = int(rng.integers(len(text) + 1))
    return text[:i] + text[i + int(rng.integers(1, 40)) :]


def _line_changed(text: bytes, rng: np.random.Generator) -> bytes:
    """A line is dropped, doubled, or swapped with another."""
    lines = text.split(b"\n")
    i, j = (int(k) for k in rng.integers(len(lines), size=2))
    how = int(rng.integers(3))
    if how == 0:
        del lines[i]
    elif how == 1:
        lines.insert(j, lines[i])
    else:
        lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


def _odd_value(text: bytes, rng: np.random.Generator) -> bytes:
    """A word or number becomes an odd one."""
    words = list(re.finditer(rb"[^\s,:\[\]]+", text))
    if not words:
        return text
    word = words[int(rng.integers(len(words)))]
    return text[: word.start()] + ODD[int(rng.integers(len(ODD)))].encode() + text[word.end() :]


MUTATORS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    _truncated,
    _byte,
    _inserted,
    _deleted,
    _line_changed,
    _odd_value,
)


def read_config(path: Path) -> None:
    """Settings hold every value of the file, whose keys are unlike."""
    settings = SampleSettings.build({"output": path.parent}, path)
    text = path.read_text(encoding="utf-8")
    keys = [key.value for key, _ in yaml.compose(text, yaml.SafeLoader).value]
    assert len(set(keys)) == len(keys), f"a key twice went unnoticed: {keys}"
    for key, value in yaml.safe_load(text).items():
        taken = settings.model_dump(mode="json")[key]
        if value is not None:
            # Numbers may be written as text: "300" is 300.
            assert taken == value or str(taken) == str(value) or float(taken) == float(value), (key, value, taken)


def read_splits(path: Path) -> None:
    """Every row of the file is there, with its numbers."""
    rows, _ = read_frame_splits(path, ["train", "val", "test"])
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [row.name for row in rows] == [line["name"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        for column, cell in line.items():
            if column != "name" and column in FrameSplit.__dataclass_fields__:
                taken = getattr(row, column)
                empty = not cell.strip() or math.isnan(float(cell))
                assert taken is None if empty else taken == float(cell), (column, cell, taken)


def read_pdb(path: Path) -> None:
    """The atoms of the first model are all there, where the file says."""
    molecule = load(path, fix=False)
    text = path.read_bytes().decode("utf-8", "replace")
    first = re.split(r"^(?:ENDMDL|END)", text, maxsplit=1, flags=re.MULTILINE)[0]
    records, seen = [], set()
    for line in first.splitlines():
        if line.startswith(("ATOM  ", "HETATM")):
            name = line[12:16] + line[17:27]
            # Column 17 makes it an alternate location of an atom that is there.
            if line[16:17] == " " or name not in seen:
                records.append(line)
            seen.add(name)
    assert molecule.topology.getNumAtoms() == len(records) > 0
    written = np.array([[float(line[k : k + 8]) for k in (30, 38, 46)] for line in records])
    np.testing.assert_allclose(molecule.positions, written / 10, atol=1e-9)


def outcomes(reader: Callable[[Path], None], text: bytes, path: Path, n: int, seed: int) -> tuple[int, int]:
    """How many of n damaged files were read and refused; each as it should be."""
    rng = np.random.default_rng(seed)
    read = refused = 0
    for k in range(n):
        damaged = mutated(text, rng)
        path.write_bytes(damaged)
        try:
            with time_limit(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(path)
            read += 1
        except OpenMMDiffusionError as error:
            sentence = str(error)
            assert sentence and "\n" not in sentence and "Traceback" not in sentence, (k, sentence)
            refused += 1
        except Exception as error:
            raise AssertionError(f"file {k}: {damaged[:3000]!r}") from error
    return read, refused


@pytest.mark.parametrize(
    ("name", "reader", "n"), [("sample.yaml", read_config, 450), ("frame_splits.csv", read_splits, 350)]
)
def test_damaged_tables_and_configurations(name: str, reader: Callable[[Path], None], n: int, tmp_path: Path) -> None:
    """What is read is what the file says, all else is one sentence; both happen."""
    text = CONFIG if name.endswith(".yaml") else SPLITS
    read, refused = outcomes(reader, text.encode(), tmp_path / name, n, seed=1)
    print(f"\n{name}: {read} read as they are, {refused} refused")
    assert min(read, refused) > n / 20


def test_damaged_pdb_files(tmp_path: Path) -> None:
    """The same for 200 PDB files."""
    molecule = alanine_dipeptide("vacuum")
    text = write_pdb(tmp_path / "whole.pdb", molecule.topology, molecule.positions[None]).read_bytes()
    started = time.perf_counter()
    read, refused = outcomes(read_pdb, text, tmp_path / "damaged.pdb", 200, seed=2)
    print(f"\nPDB: {read} read as they are, {refused} refused in {time.perf_counter() - started:.0f} s")
    assert min(read, refused) > 10


def test_the_check_sees_what_is_read_wrongly(tmp_path: Path) -> None:
    """Control: a reader that ignores what it cannot read, or leaks an error of a library, is caught."""

    def forgiving(path: Path) -> None:
        with contextlib.suppress(OpenMMDiffusionError):
            SampleSettings.build({"output": path.parent}, path)
        assert set(yaml.safe_load(path.read_text())) >= {"system", "seed"}

    for reader in (forgiving, lambda path: yaml.safe_load(path.read_text())["seed"] + 1):
        with pytest.raises(AssertionError, match="file"):
            outcomes(reader, CONFIG.encode(), tmp_path / "sample.yaml", 100, seed=3)
