"""The command line as a whole."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import cxu
from cxu.cli import app


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_version():
    assert run("--version").stdout == f"cxu {cxu.__version__}\n"
    for arguments in (["--version", "--json"], ["--json", "--version"]):
        assert json.loads(run(*arguments).stdout) == {"version": cxu.__version__}


def test_without_a_command_the_help_is_shown():
    done = run()
    assert done.exit_code == 0
    assert done.stdout == run("--help").stdout


@pytest.mark.parametrize("command", ["quickstart", "fetch", "import", "filter", "rasterize", "ls", "info"])
def test_help_of_every_command_ends_with_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"Example:  cxu {command}" in " ".join(done.stdout.split(" ")).replace("\n", " ")


def test_numbers_below_zero_are_flush_right_too(capsys):
    from cxu.cli._output import Output, make_table

    Output().result(None, make_table("", ["name", "x"], [["a", -0.5], ["b", 10.25], ["c", None]]))
    assert capsys.readouterr().out.splitlines() == ["name      x", "a     -0.50", "b     10.25", "c         -"]


def test_an_unknown_command_is_a_usage_error():
    assert run("frobnicate").exit_code == 2


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
@pytest.mark.parametrize("where", ["cxu.cli", "typer.main", "pyarrow"])
def test_ctrl_c_while_cxu_loads_is_no_traceback(tmp_path, where):
    """The signal comes with the import of a module: before the command line is known, or within a command."""
    hook = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == {where!r}:
            os.kill(os.getpid(), signal.SIGINT)
        return None
sys.meta_path.insert(0, Interrupting())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["cxu", "filter", "--max-std", "5"]
from cxu.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", hook], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
