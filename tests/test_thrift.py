"""Thrift's compact protocol: what is decoded encodes to the same bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxu import thrift

integers = st.integers(-(2**63), 2**63 - 1)
leaves = st.one_of(
    st.tuples(st.sampled_from([thrift.I16, thrift.I32, thrift.I64]), integers),
    st.tuples(st.just(thrift.BINARY), st.binary(max_size=200)),
    st.tuples(st.just(thrift.BYTE), st.binary(min_size=1, max_size=1)),
    st.tuples(st.just(thrift.DOUBLE), st.binary(min_size=8, max_size=8)),
    st.tuples(st.sampled_from([thrift.TRUE, thrift.FALSE]), st.none()),
    st.tuples(st.just(thrift.LIST), st.tuples(st.just(thrift.I64), st.lists(integers, max_size=20))),
    st.tuples(st.just(thrift.SET), st.tuples(st.just(thrift.BINARY), st.lists(st.binary(max_size=9), max_size=3))),
    st.tuples(
        st.just(thrift.LIST),
        st.tuples(st.just(thrift.TRUE), st.lists(st.sampled_from([b"\1", b"\2"]), min_size=14, max_size=16)),
    ),
)
numbers = st.integers(1, 2**15 - 1)
structs = st.recursive(
    st.dictionaries(numbers, leaves, max_size=4),
    lambda inner: st.dictionaries(
        numbers,
        st.one_of(
            leaves,
            st.tuples(st.just(thrift.STRUCT), inner),
            st.tuples(st.just(thrift.LIST), st.tuples(st.just(thrift.STRUCT), st.lists(inner, max_size=3))),
        ),
        max_size=4,
    ),
    max_leaves=12,
)


def encoded(struct):
    out = bytearray()
    thrift.encode_struct(struct, out)
    return bytes(out)


@given(structs)
def test_a_struct_comes_back(struct):
    data = encoded(struct)
    assert thrift.decode_struct(data + b"more", 0) == (struct, len(data))


@given(structs)
def test_bytes_come_back(struct):
    data = encoded(struct)
    assert encoded(thrift.decode_struct(data, 0)[0]) == data


def test_a_struct_by_hand():
    # field 1, i32 -1; field 3, two steps on, the text ab; field 40, written out, a list of i16 1 and 300
    data = b"\x15\x01" + b"\x28\x02ab" + b"\x09\x50\x24\x02\xd8\x04" + b"\x00"
    struct = {1: (thrift.I32, -1), 3: (thrift.BINARY, b"ab"), 40: (thrift.LIST, (thrift.I16, [1, 300]))}
    assert thrift.decode_struct(data, 0) == (struct, len(data))
    assert encoded(struct) == data


def test_a_type_that_footers_do_not_have_is_noticed():
    with pytest.raises(AssertionError, match="type 11 of Thrift"):
        thrift.decode_struct(b"\x1b\x00\x00", 0)
