"""The documentation is what the code is: generated pages, links, names and examples."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import cxr_ray
from cxr_ray.analysis.hypotheses.registry import TESTED
from cxr_ray.data.sources import SOURCES
from tests.builders.runs import make_run

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["tables.md", "sweep.md", "names.md"])
def test_generated_pages_are_those_that_are_committed(generate, page):
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == generate.PAGES[page](), "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page):
    files = re.findall(
        r"`((?:cxr_ray|tests|sweeps|docs|benchmarks|notebooks)/[\w./-]*)`", page.read_text(encoding="utf-8")
    )
    assert [f for f in files if not (ROOT / f).exists()] == []


def test_every_promise_about_failures_names_a_test_or_benchmark_that_there_is():
    """By itself, or in the lines above its table."""
    page = (ROOT / "docs" / "howto" / "failures.md").read_text(encoding="utf-8")
    promises, held = 0, False
    for line in page.splitlines():
        tests = re.findall(r"`(tests/[\w./-]+)`", line)
        tests += [f"benchmarks/{name}.py" for name in re.findall(r"`python -m benchmarks\.(\w+)", line)]
        assert all((ROOT / test).is_file() for test in tests), line
        if line.startswith("#"):
            held = False
        elif not line.startswith("|"):
            held = held or bool(tests)
        elif not re.match(r"\| (---|when\b|file\b)", line):
            promises += 1
            assert tests or held, line
    assert promises > 20


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES, ids=name)
def test_examples_run(page, tmp_path):
    """The python blocks of a page, one after the other, in a folder that holds a run under results/quickstart."""
    make_run(tmp_path / "results" / "quickstart", more=True)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_name_of_a_registry_stands_in_the_glossary(generate):
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    names = [name for _, registry in generate.REGISTRIES.values() for name in registry]
    assert [n for n in names if not re.search(rf"\b{n}\b", glossary)] == []


@pytest.mark.parametrize("title", ["Explainers", "Controls", "Fills", "Metrics", "Regions", "Edits"])
def test_a_new_entry_of_a_registry_stands_on_the_page_of_names(generate, monkeypatch, title):
    registry = generate.REGISTRIES[title][1]
    entry = dataclasses.replace(next(iter(registry.values())), caption="A chequered board.")
    monkeypatch.setitem(registry, "chequered", entry)
    assert "| `chequered` | A chequered board." in generate.names_page()


def test_a_new_hypothesis_and_a_new_data_source_stand_on_the_page_of_names(generate, monkeypatch):
    monkeypatch.setitem(TESTED, "H9", dataclasses.replace(TESTED["H1"], question="Toy: is it there?"))
    monkeypatch.setitem(SOURCES, "toys", dataclasses.replace(SOURCES["phantom"], usage="'toys'"))
    page = generate.names_page()
    assert "| `H9` | Toy: is it there? |" in page
    assert "| `toys` | `--data` takes 'toys'. |" in page


def test_technical_names_stand_on_the_page_of_names_with_what_they_are(generate):
    page = generate.names_page()
    names = [name for _, registry in generate.TECHNICAL.values() for name in registry]
    assert [n for n in names if not re.search(rf"^\| `{n}` \| \w.*\. \|$", page, re.MULTILINE)] == []


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == cxr_ray.__version__
    assert f"## [{cxr_ray.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_says_that_it_is_typed():
    assert (Path(cxr_ray.__file__).parent / "py.typed").is_file()


def test_the_site_is_strict_and_asks_nothing_of_the_network(tmp_path):
    pytest.importorskip("material")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert re.findall(r"""<(?:script|img|iframe)[^>]+src=["']?(?:https?:)?//""", html) == []
        assert re.findall(r"""<link[^>]+rel=["']?(?:stylesheet|preconnect|icon)[^>]+href=["']?https?:""", html) == []


def test_pictures_are_small():
    pictures = sorted((ROOT / "docs" / "images").glob("*"))
    assert [p.name for p in pictures if p.stat().st_size > 300_000] == []
