"""The console script: its commands, its version, and that nothing is imported before it is needed."""

import errno
import os
import subprocess
import sys

import pyarrow as pa
import pytest

import cxr_ray
from cxr_ray import cli, sweep
from cxr_ray.arguments import guarded
from cxr_ray.errors import DamagedRunError, RunError


def printed(capsys, main, *argv: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    captured = capsys.readouterr()
    return stopped.value.code, captured.out + captured.err


@pytest.mark.parametrize(("main", "argv"), [(cli.main, ()), (cli.main, ("run",)), (sweep.main, ())])
def test_version_is_that_of_the_package(capsys, main, argv):
    assert printed(capsys, main, *argv, "--version") == (0, f"cxr-ray {cxr_ray.__version__}\n")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_is_its_own(capsys, command):
    code, text = printed(capsys, cli.main, command, "--help")
    assert code == 0
    assert text.startswith(f"usage: cxr-ray {command} ")


def test_an_unknown_command_lists_those_that_exist(capsys):
    code, text = printed(capsys, cli.main, "rnu")
    assert code == 2
    assert "invalid choice: 'rnu' (choose from" in text
    assert text.rstrip().endswith("; see cxr-ray --help.")
    assert all(command in text for command in cli.COMMANDS)
    assert printed(capsys, cli.main)[0] == 2


def test_a_command_gets_its_arguments_and_gives_its_exit_code(capsys, tmp_path):
    assert cli.main(["run", str(tmp_path / "nowhere.yaml")]) == 2
    assert "nowhere.yaml, which is no file" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "absent"),
    [
        ((["--help"], ["--version"]), {"torch", "ray", "pandas", "rich"}),
        (tuple([c, "--help"] for c in cli.COMMANDS), {"torch", "ray", "matplotlib", "scipy"}),
    ],
)
def test_help_imports_no_network_library(made, absent):
    script = f"""
import sys
from cxr_ray import cli
for arguments in {made}:
    try:
        cli.main(arguments)
    except SystemExit:
        pass
print(sorted({absent} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("typed", "known"),
    [("cxr-ray ver", ["verdict", "verify"]), ("cxr-ray run --dr", ["--dry-run"]), ("cxr-ray nothing --x", [])],
)
def test_a_shell_is_told_how_what_is_typed_goes_on(tmp_path, typed, known):
    pytest.importorskip("argcomplete")
    told = tmp_path / "told"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(told), "_ARGCOMPLETE_IFS": "\n"}
    asked |= {"COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    subprocess.run([sys.executable, "-m", "cxr_ray.cli"], env={**os.environ, **asked}, check=True)
    assert sorted(told.read_text().split()) == known


@pytest.mark.parametrize("command", [["report", "run"], ["compare", "run", "run"]])
def test_a_place_of_images_that_is_not_there_is_a_mistake_before_anything_is_drawn(
    command, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--data", "nowhere"]) == 2
    assert "--data: got nowhere, which is not there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RunError("got one; expected two."), 2, "cxr_ray: got one; expected two.\n"),
        (DamagedRunError("first\nsecond"), 1, "cxr_ray: first\ncxr_ray: second\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "cxr_ray: [Errno 28] No space left on device\n"),
        (pa.ArrowInvalid("no table\nmore"), 1, "cxr_ray: no table\n"),
        (KeyboardInterrupt(), 130, "cxr_ray: interrupted.\n"),
    ],
)
def test_whatever_ends_a_command_is_a_line_and_an_exit_code(error, code, told, capsys):
    def work():
        raise error

    assert guarded(work) == code
    assert capsys.readouterr().err == told


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    command = [sys.executable, "-m", "cxr_ray", "list", "controls"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1
