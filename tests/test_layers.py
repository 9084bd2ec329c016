"""The architecture's promises: what is pure does not import Ray, and importing does nothing."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import cxr_ray

PACKAGE = Path(cxr_ray.__file__).parent
RAY = {"tuning", "pipeline"}  # sweep imports them only when it has something to start
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")

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


def test_every_module_is_listed():
    named = {
        "classification", "config", "data", "donors", "explainers", "faithfulness", "images", "impute", "models",
        "perturb", "phantoms", "randomness", "regions", "report", "results", "schemas", "stats", "summary", "sweep",
        "tables", "training", "worker",
    }  # fmt: skip
    assert named | RAY <= set(MODULES)


def test_all_modules_but_two_are_imported_without_ray(folder):
    pure = [m for m in MODULES if m not in RAY]
    found = imported(folder, pure)
    assert not found["ray"]
    assert found["files"] == []


def test_the_probe_sees_ray_where_it_is_imported(folder):
    assert imported(folder, ["tuning"])["ray"]


def test_importing_all_of_it_starts_nothing_writes_nothing_and_logs_nowhere(folder):
    found = imported(folder, MODULES, ["ray.data", "ray.tune", "torchvision", "captum.attr", "sklearn", "matplotlib"])
    assert found["ray"]
    assert not found["started"]
    assert found["files"] == []
    assert found["after"] == found["before"]


def test_imports_run_one_way():
    """No module imports one of a later layer, inside functions neither."""
    order = [
        {"schemas", "randomness", "quiet", "impute", "faithfulness", "images", "phantoms", "stats", "agreement"},
        {"config", "results", "classification", "summary", "page"},
        {"tables", "data", "models", "perturb", "hypotheses"},
        {"regions", "explainers", "donors", "forms", "training", "galleries"},
        {"sanity", "findings"},
        {"worker", "figures"},
        {"tuning", "pipeline", "loaded"},
        {"comparisons", "study"},
        {"report"},
        {"sweep"},
    ]
    assert sorted(m for modules in order for m in modules) == MODULES, "every module has its layer, and one alone"
    layer = {module: i for i, modules in enumerate(order) for module in modules}
    for module in MODULES:
        for other in sorted(ours(module)):
            assert layer[other] <= layer[module], f"{module} imports {other}"


def ours(module: str) -> set[str]:
    """The modules of the package that a module's source imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cxr_ray":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cxr_ray."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("cxr_ray.")}
    return found & set(MODULES)
