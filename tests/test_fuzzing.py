"""Every reader gives the right answer to any bytes, or refuses them: seeds, and all that fuzzing kept."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing.seeds import seeds_of
from fuzzing.targets import TARGETS

# of what a text is made, and what stands before it: the size of a mask
TEXTS = {
    "rle": ("0123456789 -_x\n", b"\x05\x07"),
    "coco": ("0123PQop~ ", b"\x05\x07"),
    "landmarks": ("0123456789.,- e[]|\n", b""),
    "words": (None, b""),
}
CORPUS = Path(__file__).parent / "fuzzing" / "corpus"


def kept(target):
    with zipfile.ZipFile(CORPUS / f"{target}.zip") as archive:
        return [archive.read(name) for name in archive.namelist()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_fuzzing_found_breaks_a_reader(target):
    for data in [*seeds_of(target), *kept(target)]:
        TARGETS[target](data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TEXTS)
@given(data=st.data())
@settings(max_examples=60)
def test_no_text_breaks_a_reader(target, data):
    alphabet, start = TEXTS[target]
    text = data.draw(st.text(alphabet) if alphabet else st.text())
    TARGETS[target](start + text.encode("utf-8", "replace"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["published", "parquet", "image", "records"])
@given(data=st.data())
@settings(max_examples=40)
def test_no_flipped_bits_or_cut_end_break_a_reader(target, data):
    """Mutated seeds: some bits flipped, then cut somewhere."""
    seed = bytearray(data.draw(st.sampled_from(seeds_of(target))))
    for _ in range(data.draw(st.integers(0, 4))):
        seed[data.draw(st.integers(0, len(seed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    length = data.draw(st.one_of(st.just(len(seed)), st.integers(0, len(seed))))
    TARGETS[target](bytes(seed[:length]))
