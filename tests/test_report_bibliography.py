"""References: what is written parses strictly, and says what the page of citations says."""

import re
from pathlib import Path

import pytest
import yaml

from cxu import __version__
from cxu.catalog import SOURCES
from cxu.errors import OutputExistsError, UsageError
from cxu.report.bibliography import (
    CHEXMASK,
    CHEXMASK_U,
    CXU,
    HYBRIDGNET,
    bibtex,
    check_bibtex_path,
    citation_of,
    cited,
    entry_fields,
    write_bibtex,
)

ROOT = Path(__file__).parents[1]
ALL = [CHEXMASK_U, CHEXMASK, HYBRIDGNET, *(source.citation for source in SOURCES.values()), CXU]
REQUIRED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"author", "title"},
}


def parse_bibtex(text):
    """Return key → (type, fields) of entries whose values stand in braces; anything else is an error."""
    entries, at = {}, 0
    while match := re.compile(r"[^@]*@(\w+)\{([A-Za-z0-9]+),").match(text, at):
        at, fields = match.end(), {}
        while field := re.compile(r"\s*([a-z]+)\s*=\s*\{").match(text, at):
            depth, at = 1, field.end()
            start = at
            while depth:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            assert field[1] not in fields, f"{match[2]}: {field[1]} stands twice"
            fields[field[1]] = " ".join(text[start : at - 1].split())
            separator = re.compile(r"\s*(,|(?=\}))").match(text, at)
            assert separator, f"{match[2]}: a comma is missing behind {field[1]}"
            at = separator.end()
        end = re.compile(r"\s*\}").match(text, at)
        assert end, f"{match[2]} does not end: {text[at : at + 20]!r}"
        assert match[2] not in entries, f"{match[2]} stands twice"
        entries[match[2]], at = (match[1], fields), end.end()
    assert "@" not in text[at:]
    return entries


def test_every_entry_parses_and_has_its_fields():
    entries = parse_bibtex(bibtex(ALL))
    assert list(entries) == ALL
    for kind, fields in entries.values():
        assert fields.keys() >= REQUIRED[kind]
        assert all(fields.values())
        assert not {"doi", "volume", "pages"} & fields.keys()  # none is known for certain


def test_entries_are_those_of_the_page():
    page = (ROOT / "docs" / "citation.md").read_text("utf-8")
    documented = parse_bibtex("\n".join(re.findall(r"^```bibtex\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)))
    assert list(documented.items()) == list(parse_bibtex(bibtex(ALL)).items())


def test_arxiv_numbers():
    told = {key: re.search(r"arXiv:([\d.]+)", " ".join(entry_fields(key).values())) for key in ALL if key != CXU}
    assert {key: found[1] for key, found in told.items()} == {
        CHEXMASK_U: "2512.10715",
        CHEXMASK: "2307.03293",
        HYBRIDGNET: "2203.10977",
        "johnson2019mimic": "1901.07042",
        "irvin2019chexpert": "1901.07031",
        "wang2017chestxray8": "1705.02315",
        "bustos2020padchest": "1901.07441",
        "nguyen2022vindr": "2012.15029",
    }


def plain(text):
    """Return a field of BibTeX as people read it."""
    return re.sub(r"[{}]", "", text.replace(r"{\'a}", "á"))


def test_citation_file_says_the_same():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    fields = entry_fields(CXU)
    assert (told["cff-version"], told["type"], told["license"]) == ("1.2.0", "software", "MIT")
    assert told["message"]
    assert told["title"] == plain(fields["title"])
    assert told["authors"] == [{"name": plain(fields["author"])}]
    assert told["version"] == __version__
    assert fields["note"] == f"Software, version {__version__}"


def test_citation_file_refers_to_the_methods():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    for reference, key in zip(told["references"], (CHEXMASK_U, CHEXMASK, HYBRIDGNET), strict=True):
        fields = entry_fields(key)
        assert reference["type"] in {"article", "conference-paper"}
        assert reference["title"] == plain(fields["title"])
        names = [f"{one['family-names']}, {one['given-names']}" for one in reference["authors"]]
        assert " and ".join(names) == plain(fields["author"])
        assert str(reference["year"]) == fields["year"]
        assert reference["notes"] == fields["note"]
        assert reference.get("journal") == fields.get("journal")
        assert reference.get("collection-title") == fields.get("booktitle")


def test_only_what_a_text_cites():
    assert cited("by cxu [cxu], of VinDr-CXR [nguyen2022vindr]; a list [1], [a, b]") == ["nguyen2022vindr", CXU]
    assert cited("") == []
    assert bibtex([]) == ""
    assert list(parse_bibtex(bibtex(["cxu", CHEXMASK_U]))) == [CHEXMASK_U, CXU]
    assert citation_of("mimic") == "johnson2019mimic"
    assert citation_of("mine") is None


def test_only_a_bibliography_of_ours_is_replaced(tmp_path):
    path = tmp_path / "refs.bib"
    check_bibtex_path(path)
    write_bibtex([CHEXMASK_U], path)
    check_bibtex_path(path)
    write_bibtex([CXU], path)
    assert list(parse_bibtex(path.read_text("utf-8"))) == [CXU]
    path.write_text("@book{mine,\n title = {All my references}\n}\n")
    with pytest.raises(OutputExistsError, match="was not written by cxu report"):
        check_bibtex_path(path)
    (tmp_path / "folder.bib").mkdir()
    with pytest.raises(OutputExistsError):
        check_bibtex_path(tmp_path / "folder.bib")
    with pytest.raises(UsageError, match=r"ends in \.bib"):
        check_bibtex_path(tmp_path / "refs.txt")


@pytest.mark.parametrize(
    "broken",
    ["@misc{a,\n title = {x}\n author = {y}\n}", "@misc{a,\n title = {x}", "@misc{a, title = {x}, title = {y}}"],
)
def test_the_parser_is_strict(broken):
    with pytest.raises((AssertionError, IndexError)):
        parse_bibtex(broken)
