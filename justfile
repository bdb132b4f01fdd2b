# Run `just` for the list.
default:
    @just --list

# the default suite
test *arguments:
    pytest {{arguments}}

# the tests left out of the default run
test-slow:
    pytest -m slow

# style, types and the import contract
lint:
    ruff check .
    ruff format --check .
    mypy
    lint-imports

# put right what can be put right by itself
fix:
    ruff check --fix .
    ruff format .

# the documentation as a site, in site/
docs:
    mkdocs build --strict

# write docs/reference.md anew from the command line
reference:
    python scripts/make_reference.py

# make the embedded sample again (the shape model itself needs the landmark data)
sample:
    python scripts/make_sample.py src/cxu/data/sample_synthetic.csv
