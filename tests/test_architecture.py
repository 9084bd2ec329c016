"""The architecture's promises: what is pure does not import Ray, and importing does nothing."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import cxr_ray

PACKAGE = Path(cxr_ray.__file__).parent
TESTS = Path(__file__).parent
STAGES = ("", "data", "models", "measure", "analysis", "report", "run", "command lines")  # data passes them in order
COMMAND_LINES = {"sweep", "cli", "verdict", "verify"}
OF_A_STAGE = dict.fromkeys(("sweepfile", "editor", "library", "modules"), "run")  # they use all stages, without Ray
MODULES = sorted(
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts)
    for p in PACKAGE.rglob("*.py")
    if p.stem not in ("__init__", "__main__")
)


def stage(module: str) -> int:
    """Where a module (dotted, inside the package) stands in STAGES; modules of no folder are the foundation."""
    if module in COMMAND_LINES or module.startswith("commands."):
        return len(STAGES) - 1
    if module in OF_A_STAGE:
        return STAGES.index(OF_A_STAGE[module])
    return STAGES.index(module.rpartition(".")[0].partition(".")[0])


# Imports modules by name in a fresh process, and tells what that changed.
PROBE = """
import importlib, json, logging, os, sys
def handlers():
    named = logging.root.manager.loggerDict.values()
    loggers = [logging.getLogger(), *(l for l in named if isinstance(l, logging.Logger))]
    return {l.name: len(l.handlers) for l in loggers if l.handlers}
third_parties, modules = json.loads(sys.argv[1])
for name in third_parties:
    importlib.import_module(name)
before = handlers()
for name in modules:
    importlib.import_module("cxr_ray." + name)
started = "ray" in sys.modules and sys.modules["ray"].is_initialized()
print(json.dumps({"ray": "ray" in sys.modules, "started": started, "before": before, "after": handlers(),
                  "files": sorted(os.listdir())}))
"""


def imported(folder: Path, modules: list[str], third_parties: Sequence[str] = ()) -> dict:
    asked = json.dumps([list(third_parties), modules])
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", PROBE, asked]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_only_the_last_stages_import_ray(folder):
    pure = [m for m in MODULES if not m.startswith("run.")]
    found = imported(folder, pure)
    assert not found["ray"]
    assert found["files"] == []


def test_a_run_is_prepared_without_ray(folder):
    """So that mistakes are reported at once."""
    assert not imported(folder, ["run.context", "run.dryrun", "run.resume", "run.terminal"])["ray"]


# Each takes a quarter of a second to two seconds to import; a sweep file is checked without them.
SLOW = ("captum", "matplotlib", "ray", "scipy", "skimage", "sklearn", "timm", "torchvision", "torch._dynamo")
FIRST_LINE = """
import sys
from cxr_ray import sweep
from cxr_ray.run import terminal
sweep.load(sweep.parser().parse_args(["quickstart"]))
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_a_sweep_file_is_read_and_checked_without_slow_imports(folder):
    """So that the first line, or the mistakes in the file, come soon."""
    command = [sys.executable, "-c", FIRST_LINE, *SLOW]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


TASKS = """
import importlib, sys
for name in ("data.sources", "run.merging", "run.pipeline"):
    importlib.import_module(f"cxr_ray.{name}")
print("torch" in sys.modules)
"""


def test_tasks_that_read_decode_write_and_merge_do_without_torch(folder):
    """Each would take seconds of processor time, and 350 MB, to import it."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", TASKS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_probe_sees_ray_where_it_is_imported(folder):
    assert imported(folder, ["run.shared_storage"])["ray"]


def test_importing_all_of_it_starts_nothing_writes_nothing_and_logs_nowhere(folder):
    found = imported(folder, MODULES, ["ray.data", "ray.tune", "torchvision", "captum.attr", "sklearn", "matplotlib"])
    assert found["ray"]
    assert not found["started"]
    assert found["files"] == []
    assert found["after"] == found["before"]


def violations(sources: Mapping[str, str]) -> list[str]:
    """Imports of a later stage, inside functions too; module name to source."""
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        for other in sorted(imports_of(source, set(sources)))
        if stage(other) > stage(module)
    ]


def test_no_module_imports_from_a_later_stage():
    assert violations({m: (PACKAGE / f"{m.replace('.', '/')}.py").read_text() for m in MODULES}) == []


@pytest.mark.parametrize(
    "line",
    ["from cxr_ray.run import tuning", "import cxr_ray.run.tuning", "def f():\n    from cxr_ray.run.tuning import x"],
)
def test_an_import_of_a_later_stage_is_found(line):
    assert violations({"measure.worker": line, "run.tuning": ""}) == ["measure.worker imports run.tuning"]


def imports_of(source: str, modules: set[str]) -> set[str]:
    """Those of the package's modules that a source imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("cxr_ray.") for name in found if name.startswith("cxr_ray.")} & modules


def imported_tests(source: str) -> list[str]:
    """Modules of tests that a source imports; what tests share stands in tests/builders."""
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            parent = f"{node.module}." if node.module else ""
            imported += [parent + alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    return [name for name in imported if any(part.startswith("test_") for part in name.split("."))]


def test_no_test_imports_another():
    sources = {p.relative_to(TESTS): p.read_text() for p in TESTS.rglob("*.py")}
    assert len(sources) > 30
    assert {path: names for path, source in sources.items() if (names := imported_tests(source))} == {}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from tests.data.test_folder import write", "tests.data.test_folder.write"),
        ("from tests.data import test_folder", "tests.data.test_folder"),
        ("import tests.data.test_folder", "tests.data.test_folder"),
        ("from . import test_folder", "test_folder"),
        ("def f():\n    from .test_folder import write", "test_folder.write"),
    ],
)
def test_an_import_of_a_test_is_found(line, name):
    assert imported_tests(line) == [name]
