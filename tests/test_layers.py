"""The architecture as a test: imports point down, heavy libraries stay where they belong, --help is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import openmm_diffusion

PACKAGE = Path(openmm_diffusion.__file__).parent
NAME = PACKAGE.name
# From the top down; every part may import those below it.
LAYERS = [
    {"cli"},
    {"workflows"},
    {"analysis"},
    {"mcmc"},
    {"proposals"},
    {"molecule"},
    {"training"},
    {"data"},
    {"sampling"},
    {"models"},
    {"diffusion"},
    {"geometry"},
    {"peptide"},
    {"units", "errors", "files"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
OPENMM_ALLOWED = {"molecule", "proposals", "mcmc", "workflows", "cli"}
NEVER_AT_THE_TOP = {"matplotlib", "pdbfixer", "parmed", "mdtraj"}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def statements(body: list[ast.stmt], inside: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """All statements but those for type checkers, each with whether it stands inside a function."""
    for node in body:
        if is_type_checking(node):
            continue
        yield node, inside
        deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for field in ("body", "orelse", "finalbody", "handlers"):
            children = getattr(node, field, [])
            for child in children:
                yield from statements(child.body if isinstance(child, ast.ExceptHandler) else [child], deeper)


def imports(module: Path) -> Iterator[tuple[str, bool]]:
    """(absolute dotted name, inside a function) of everything that a module imports."""
    package = [NAME, *module.parts[:-1]]
    for node, inside in statements(ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body, False):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", inside) for alias in node.names)


def own_imports(module: Path) -> set[str]:
    """The parts of this package that a module imports, lazily or not."""
    return {name.split(".")[1] for name, _ in imports(module) if name.split(".")[0] == NAME}


def breaches(module: Path) -> list[str]:
    """Parts that a module imports although they stand above it (or beside it)."""
    here = part_of(module)
    return sorted(p for p in own_imports(module) if p in LEVEL and p != here and LEVEL[p] <= LEVEL[here])


LAYERED = [m for m in MODULES if part_of(m) not in ("__init__", "__main__")]


def test_every_module_belongs_to_a_layer() -> None:
    """No part of the package stands outside the layers, and no layer is empty."""
    assert {part_of(m) for m in LAYERED} == set(LEVEL)


@pytest.mark.parametrize("module", LAYERED, ids=str)
def test_imports_point_down(module: Path) -> None:
    """A module imports only parts below its own, inside functions too."""
    assert breaches(module) == [], f"{module} imports upwards"


def test_an_import_upwards_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the same check finds an upward import, relative, absolute or hidden in a function."""
    for text in (
        "from ..mcmc import DiffusionMove",
        "from .. import workflows",
        "import openmm_diffusion.cli.main",
        "def f():\n    try:\n        pass\n    except OSError:\n        from ..analysis import plots",
    ):
        monkeypatch.setattr(Path, "read_text", lambda self, encoding=None, text=text: text)
        assert breaches(Path("sampling/flow.py")) != []
    monkeypatch.setattr(Path, "read_text", lambda self, encoding=None: "from ..units import wrap")
    assert breaches(Path("sampling/flow.py")) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_openmm_stays_where_it_belongs(module: Path) -> None:
    """OpenMM and openmmtools are imported in molecule, proposals, mcmc, workflows and cli only."""
    roots = {name.split(".")[0] for name, _ in imports(module)}
    if part_of(module) not in OPENMM_ALLOWED:
        assert not roots & {"openmm", "openmmtools", "simtk"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_heavy_libraries_are_imported_where_used(module: Path) -> None:
    """Lightning only in training; matplotlib, pdbfixer, parmed and mdtraj never at the top of a module."""
    found = list(imports(module))
    if part_of(module) != "training":
        assert not [name for name, _ in found if name.split(".")[0] in ("lightning", "pytorch_lightning")]
    assert not [name for name, inside in found if name.split(".")[0] in NEVER_AT_THE_TOP and not inside]


@pytest.mark.parametrize("module", LAYERED, ids=str)
def test_acceptance_knows_floats_only(module: Path) -> None:
    """acceptance.py imports the standard library only; training never sees moves or proposals."""
    roots = {name.split(".")[0] for name, _ in imports(module)}
    if module == Path("mcmc/acceptance.py"):
        assert roots <= set(sys.stdlib_module_names)
    if part_of(module) == "training":
        assert not own_imports(module) & {"mcmc", "proposals", "molecule"}


def loaded_after(code: str) -> set[str]:
    """The top-level modules loaded after running code in a fresh interpreter."""
    report = "\nimport sys; print('\\n'.join({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


HEAVY = {"torch", "openmm", "openmmtools", "lightning", "matplotlib", "mdtraj", "scipy"}


def test_importing_the_package_is_light() -> None:
    """`import openmm_diffusion` loads neither torch nor OpenMM; the control: using a move loads both."""
    assert not loaded_after("import openmm_diffusion; dir(openmm_diffusion); openmm_diffusion.__version__") & HEAVY
    assert {"torch", "openmm"} <= loaded_after("import openmm_diffusion; openmm_diffusion.DiffusionMove")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "torsion", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    """`openmm-diffusion --help`, and that of its commands, loads neither torch nor OpenMM."""
    code = (
        "from openmm_diffusion.cli import main\nimport sys\n"
        f"sys.argv = ['openmm-diffusion', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert not loaded_after(code) & HEAVY


def test_public_names_exist() -> None:
    """Every name in __all__ can be had, dir() lists them, and an unknown one is an AttributeError."""
    for name in openmm_diffusion.__all__:
        assert getattr(openmm_diffusion, name) is not None
    assert set(openmm_diffusion.__all__) <= set(dir(openmm_diffusion))
    with pytest.raises(AttributeError, match="no_such_name"):
        openmm_diffusion.no_such_name
