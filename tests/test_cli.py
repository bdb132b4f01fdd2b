"""The command line as a whole."""

import json
import sys

import pytest
from typer.testing import CliRunner

import cxu
from cxu.__main__ import main
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


def test_an_unknown_command_is_a_usage_error():
    assert run("frobnicate").exit_code == 2


def test_ctrl_c_while_cxu_loads_is_no_traceback(monkeypatch):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "cxu.cli":
                raise KeyboardInterrupt
            return

    for name in [name for name in sys.modules if name == "cxu.cli" or name.startswith("cxu.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
