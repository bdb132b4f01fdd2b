"""The documentation says what the code does: tables, options, links and examples are compared and run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files as package_files
from pathlib import Path

import pyarrow as pa
import pytest
import typer.main
import yaml
from typer.testing import CliRunner

import cxu
from cxu import table
from cxu.anatomy import ORGANS
from cxu.catalog import SOURCES
from cxu.cli import app
from cxu.rasterize import INDEX_SCHEMA
from cxu.selection import excluded_path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
# pages whose fenced blocks run, in a folder that holds what `cxu quickstart` leaves, or in an empty one
RUN_IN_SAMPLE = (
    "quickstart.md",
    "format.md",
    "commands/import.md",
    "commands/quickstart.md",
    "commands/rasterize.md",
)
RUN_IN_EMPTY = ("library.md",)
# of these only the shell blocks run: their Python is for files that the sample lacks
SHELL_IN_SAMPLE = (
    "commands/export.md",
    "commands/filter.md",
    "commands/info.md",
    "commands/ls.md",
    "commands/measure.md",
    "commands/report.md",
)
# these run in the sample with a picture for each row, drawn by the first of them
QUESTIONS = ["questions/index.md", *sorted(f"questions/{path.name}" for path in DOCS.glob("questions/[!i]*.md"))]
SAMPLE = "sample_synthetic.csv"


def all_commands(group, prefix=""):
    """Return the commands of a group and of its groups, by the words that call them."""
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{prefix}{name}": command} if inner is None else all_commands(command, f"{prefix}{name} ")
    return found


ROOT_COMMAND = typer.main.get_command(app)
COMMANDS = all_commands(ROOT_COMMAND)
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def read(page):
    return (DOCS / page).read_text("utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def table_rows(text, first_column):
    """Return the cells of the Markdown tables whose first column has that title, without their code marks."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if not cells:
            inside = False
        elif cells[0] == first_column:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    return rows


def blocks_of(text, *languages):
    """Return (language, code) of the fenced blocks in those languages, in order."""
    fenced = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in fenced if language in languages]


def command_lines(text):
    """Return the command lines of cxu in a page: in fenced shell blocks and in indented ones."""
    lines = [line for _, code in blocks_of(text, "sh", "console", "bash", "shell") for line in code.splitlines()]
    without_fences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [line[4:] for line in without_fences.splitlines() if line.startswith("    ")]
    parts = (part.strip() for line in lines for part in line.removeprefix("$ ").split("&&"))
    return [part for part in parts if re.match(r"cxu( |$)", part)]


# --- the table -------------------------------------------------------------------------------------------------------


def type_name(kind):
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"{type_name(kind.value_type)}[{kind.list_size if pa.types.is_fixed_size_list(kind) else ''}]"
    return {"float": "float32"}.get(str(kind), str(kind))


def test_format_page_describes_every_column():
    documented = [(*row[:3], row[3] == "never") for row in table_rows(read("format.md"), "column") if row[4:]]
    fields = [*table.SCHEMA, *table.OPTIONAL]
    expected = [(f.name, type_name(f.type), f.metadata[b"unit"].decode(), not f.nullable) for f in fields]
    assert documented == expected


def test_format_page_says_when_a_column_is_null():
    assert all(row[3] and row[4] for row in table_rows(read("format.md"), "column") if row[4:])


def test_format_page_describes_organs():
    rows = table_rows(read("format.md"), "organ")
    assert [row[:3] for row in rows] == [
        [organ.name, f"{organ.first}–{organ.stop - 1}", str(organ.label)] for organ in ORGANS
    ]


def test_format_page_names_every_index_column():
    section = read("format.md").split("`index.parquet` has a row")[1].split("\n## ")[0]
    assert {name for name in INDEX_SCHEMA.names if f"`{name}`" not in section} == set()


def test_format_page_names_the_facts_of_a_selection(first_masks):
    section = read("format.md").split("## File metadata")[1].split("\n## ")[0]
    facts = cxu.open_home(first_masks / "cxu-data").open().facts
    nested = {"thresholds": facts["thresholds"], "limits_px": facts["limits_px"][0]}
    names = {*facts, *(name for content in nested.values() for name in content)}
    assert {name for name in names if f"`{name}`" not in section} == set()


def test_format_page_names_the_files_of_a_home(first_masks):
    page, home = read("format.md"), first_masks / "cxu-data"
    for path in ("source.json", "part-", "sources/", "selections/", "runs/", ".excluded.parquet"):
        assert path in page
        assert any(path in f"{found.relative_to(home).as_posix()}" for found in home.rglob("*"))
    assert excluded_path(home / "selections/latest.parquet").is_file()


def test_datasets_page_lists_the_catalogue():
    text = read("datasets.md")
    facts, frames = (table_rows(text, "name")[start : start + len(SOURCES)] for start in (0, len(SOURCES)))
    framings = {"crop_pad": "cropped", "pad": "padded", "native": "as it is"}
    frames.sort(key=lambda row: [*SOURCES].index(row[0]))
    for source, row, frame in zip(SOURCES.values(), facts, frames, strict=True):
        assert row[:2] == [source.name, source.title]
        others = {alias for alias in source.aliases if alias.lower() != source.title.lower()}
        assert {alias.strip() for alias in row[2].split(",")} - {""} == others
        assert row[3].startswith(f"{source.id_column}`")
        assert row[4] == f"{source.rows_expected:,}"
        assert frame[0] == source.name
        assert frame[1].startswith(framings[source.framing])
        assert frame[2] == source.reference_frame
        assert re.search(rf"^@\w+{{{source.citation},$", read("citation.md"), re.MULTILINE)


# --- architecture ----------------------------------------------------------------------------------------------------


def test_architecture_lists_the_floors_of_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"][0]
    layers = [set(layer.replace("cxu.", "").split(" : ")) for layer in contract["layers"]]
    floors = [set(re.findall(r"\w+", row[1])) for row in table_rows(read("architecture.md"), "floor")]
    assert floors == layers


def test_architecture_has_a_line_for_every_module():
    package = ROOT / "src" / "cxu"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    modules = {name.removeprefix("cli/") for name in modules} | {"cli/", "data/"}
    lines = re.findall(r"^- (.*(?:\n  .*)*)", read("architecture.md").split("## Modules")[1], re.MULTILINE)
    named = {name for line in lines for name in re.findall(r"`([\w/]+(?:\.py|/))`", line)}
    assert modules - named == set()


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_a_page_with_every_option(name):
    page = DOCS / "commands" / f"{name.replace(' ', '-')}.md"
    assert page.is_file(), f"{page} is missing"
    text = page.read_text("utf-8")
    assert text.startswith(f"# cxu {name}\n")
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("--")}
    assert {option for option in options - {"--help"} if not re.search(rf"{option}(?![\w-])", text)} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_listed(name):
    assert f"[`cxu {name}`]({name.replace(' ', '-')}.md)" in read("commands/index.md")


def check_command_line(line):
    """Fail where a command line names no command or an option that the command does not have."""
    words = shlex.split(re.sub(r"\s+#.*", "", line))
    known = {option for parameter in ROOT_COMMAND.params for option in parameter.opts} | {"--help"}
    named = [word for word in words[1:] if not word.startswith("-")]
    command = " ".join(named[: 2 if named[:1] and named[0] in GROUPS else 1]) or None
    if command and command != "COMMAND":
        assert command in COMMANDS, line
        params = COMMANDS[command].params
        known = {name for one in params for name in (*one.opts, *one.secondary_opts, "--help")}
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    assert options <= known, f"{line}: {sorted(options - known)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_are_spelled_right(page):
    for line in command_lines(page.read_text("utf-8")):
        check_command_line(line)


def commands_in_sentences(text):
    """Return the commands of cxu that stand in sentences and tables, as code; not those that are cut short."""
    without_fences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [" ".join(code.split()).replace(r"\|", "|") for code in re.findall(r"`(cxu\s[^`]*)`", without_fences)]
    return [code for code in found if "…" not in code and code.removeprefix("cxu ") not in GROUPS]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_are_spelled_right(page):
    for command in commands_in_sentences(page.read_text("utf-8")):
        check_command_line(command)


def test_commands_in_sentences_are_found():
    text = "`cxu fetch`, `cxu\nfilter --max-std p80`, `cxu evaluate`, `cxu evaluate …`, `--out`"
    assert commands_in_sentences(text) == ["cxu fetch", "cxu filter --max-std p80"]


def test_misspelled_command_lines_are_noticed():
    for line in ("cxu filtre", "cxu filter --max-stdev 5", "cxu --verison"):
        with pytest.raises(AssertionError):
            check_command_line(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_is_spelled_right(name):
    example = re.search(r"Example:\s+(cxu .*)", COMMANDS[name].epilog or "")
    assert example
    check_command_line(example[1])


def test_readme_shows_the_quickstart_and_the_main_job():
    lines = command_lines((ROOT / "README.md").read_text("utf-8"))
    assert "cxu quickstart" in lines
    assert [line.split()[1] for line in lines if line.startswith("cxu ")][:4] == [
        "quickstart",
        "fetch",
        "filter",
        "rasterize",
    ]


# --- names and links -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cxu.__all__)
def test_library_page_mentions(name):
    assert f"`{name}`" in read("library.md")


def headings(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), f"{target} does not exist"
        assert not anchor or anchor in headings(found), f"{target}: no such heading"


def test_site_builds_without_warnings(tmp_path):
    pytest.importorskip("material", reason="needs mkdocs-material: pip install 'cxu[docs]'")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert "format/index.html" in built
    text = (tmp_path / "site" / "reference" / "index.html").read_text("utf-8")
    assert "<code>--frame model|image</code>" in text


def nav_pages(entries):
    """Return the pages of a navigation, in order."""
    values = [value for entry in entries for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [page for value in values for page in (nav_pages(value) if isinstance(value, list) else [value])]


def test_every_page_is_in_the_navigation_once():
    nav = nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(nav) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", QUESTIONS[1:])
def test_question_is_listed_and_answered_first(page):
    title, answer, *_ = read(page).split("\n\n")
    assert re.fullmatch(r"# .*\?", title)
    assert re.match(r"[\w`]", answer), "the answer comes first, before tables and commands"
    assert f"]({Path(page).name})" in read("questions/index.md")


def test_picture_of_the_quickstart_is_small_enough_to_ship():
    from PIL import Image

    path = DOCS / "images" / "quickstart.png"
    assert path.stat().st_size < 900_000
    with Image.open(path) as picture:
        assert 1000 <= picture.width <= 1600


# --- examples --------------------------------------------------------------------------------------------------------


def run_cxu(line):
    """Run a command line and return what it prints on stdout."""
    result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, f"{line}: {result.output}"
    return result.stdout


@pytest.fixture(scope="module")
def first_masks(tmp_path_factory):
    """A folder as ``cxu quickstart`` leaves it, less the pictures."""
    folder = tmp_path_factory.mktemp("first-masks")
    (folder / SAMPLE).write_bytes(package_files("cxu").joinpath(f"data/{SAMPLE}").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_cxu(f"cxu import {SAMPLE} --source synthetic --frame model")
        run_cxu("cxu filter --max-std 5")
    return folder


def with_checks(code):
    """Return code in which ``expression  # → value`` is an assertion."""
    claims = r"^(\S[^\n]*?) +# → ([^\n]*)$"
    return re.sub(claims, lambda found: f"_claim(({found[1]}), {found[2]!r})", code, flags=re.MULTILINE)


def claim(value, expected):
    assert repr(value) == expected


def as_shown(text):
    """Return output on one line, without what differs between runs: gaps, ages, and sizes, which are zlib's."""
    text = re.sub(r"[\d.,]+ (?:[kMG]B|seconds ago)\b", "#", text)
    return " ".join(text.split())


def is_output(shown, printed):
    """Tell whether a page shows what was printed; … stands for anything."""
    pattern = ".*".join(re.escape(part.strip()) for part in as_shown(shown).split("…"))
    return re.fullmatch(pattern, as_shown(printed)) is not None


def run_page(page, languages=("python", "sh")):
    """Run the blocks of a page; text right behind a shell block is its output."""
    names = {"_claim": claim, "__name__": "__main__"}
    printed = None
    for language, code in blocks_of(read(page), "text", *languages):
        if language == "text":
            assert printed is None or is_output(code, printed), (
                f"{page} shows\n{code}\nand this was printed:\n{printed}"
            )
        elif language == "python":
            exec(compile(with_checks(code), page, "exec"), names)
        for line in code.splitlines() if language == "sh" else ():
            assert line.startswith("cxu "), f"{page}: {line!r} would not be run"
        printed = "".join(map(run_cxu, code.splitlines())) if language == "sh" else None


@pytest.mark.parametrize("page", RUN_IN_SAMPLE)
def test_examples_run_after_the_quickstart(page, first_masks, tmp_path, monkeypatch):
    shutil.copytree(first_masks, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_page(page)


@pytest.mark.parametrize("page", SHELL_IN_SAMPLE)
def test_shell_examples_run_after_the_quickstart(page, first_masks, tmp_path, monkeypatch):
    shutil.copytree(first_masks, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_page(page, ("sh",))


@pytest.fixture(scope="module")
def first_images(first_masks, tmp_path_factory):
    """The same folder with the pictures that the first page of the questions draws."""
    folder = tmp_path_factory.mktemp("first-images")
    shutil.copytree(first_masks, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page(QUESTIONS[0])
    return folder


@pytest.mark.parametrize("page", QUESTIONS[1:])
def test_questions_run_after_the_quickstart(page, first_images, tmp_path, monkeypatch):
    shutil.copytree(first_images, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_wrong_output_of_examples_is_noticed():
    assert is_output("rows  24\n…\n3 files, 1.5 kB\n", "rows 24\nanything\n3 files, 2 MB\n")
    assert not is_output("rows  24\n", "rows 25\n")
    assert not is_output("rows 24\n", "rows 24\nand more\n")


@pytest.mark.parametrize("page", RUN_IN_EMPTY)
def test_examples_run_in_an_empty_folder(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_claims_of_examples_are_checked():
    with pytest.raises(AssertionError):
        exec(with_checks("1 + 1    # → 3"), {"_claim": claim})
    exec(with_checks("x = {'a': 1}\nx['a'], 'b'    # → (1, 'b')"), {"_claim": claim})


def test_readme_names_in_python_exist():
    for _, code in blocks_of((ROOT / "README.md").read_text("utf-8"), "python"):
        compile(code, "README.md", "exec")
        assert set(re.findall(r"\bcxu\.(\w+)", code)) <= set(cxu.__all__)


def test_environment_variables_are_listed():
    listed = {row[0].split("=")[0] for row in table_rows(read("commands/index.md"), "variable")}
    assert {"CXU_HOME", "CXU_DEBUG", "NO_COLOR", "HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE"} <= listed


def test_exit_codes_are_listed():
    assert [row[0] for row in table_rows(read("commands/index.md"), "code")] == ["0", "1", "2", "3", "130"]
