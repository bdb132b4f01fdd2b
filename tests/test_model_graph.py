"""The landmark graph as dense constants."""

import math

import pytest
import torch

from cxu.model.graph import (
    COARSE_RINGS,
    FINE_RINGS,
    chebyshev_stack,
    error_factor,
    ring_laplacian,
    unpool_matrix,
)


def test_rings_are_those_of_the_anatomy():
    assert FINE_RINGS == (44, 50, 26)
    assert COARSE_RINGS == (22, 25, 13)


def test_laplacian_of_one_triangle():
    half = -0.5
    assert ring_laplacian((3,)).tolist() == [[0, half, half], [half, 0, half], [half, half, 0]]


def test_laplacian_joins_no_two_organs():
    laplacian = ring_laplacian(FINE_RINGS)
    assert laplacian[43, 44] == 0
    assert laplacian[43, 0] == -0.5
    assert torch.equal(laplacian.sum(dim=1), torch.full((120,), -1.0))


@pytest.mark.parametrize("order", [1, 2, 6])
def test_chebyshev_terms_are_cosines_of_the_spectrum(order):
    # T_k(cos t) = cos(k t): an independent way to the same matrices
    laplacian = ring_laplacian(COARSE_RINGS).double()
    values, vectors = torch.linalg.eigh(laplacian)
    angles = torch.arccos(values.clamp(-1, 1))
    expected = [vectors @ torch.diag(torch.cos(k * angles)) @ vectors.T for k in range(order)]
    torch.testing.assert_close(chebyshev_stack(COARSE_RINGS, order).double(), torch.cat(expected, 1), atol=1e-5, rtol=0)


def test_unpool_copies_even_nodes_and_averages_odd_ones_within_a_ring():
    coarse = torch.arange(60.0)
    fine = unpool_matrix() @ coarse
    assert fine[:4].tolist() == [0, 0.5, 1, 1.5]
    assert fine[43] == (21 + 0) / 2
    assert fine[44:46].tolist() == [22, 22.5]
    assert fine[93] == (46 + 22) / 2
    assert fine[119] == (59 + 47) / 2


def test_errors_correlate_with_neighbours_of_the_same_organ_and_coordinate_only():
    correlation = error_factor() @ error_factor().T
    torch.testing.assert_close(correlation.diagonal(), torch.ones(240))
    torch.testing.assert_close(correlation, correlation.T)
    by_node = correlation.view(120, 2, 120, 2)
    assert (by_node[:, 0, :, 1] == 0).all()
    assert torch.equal(by_node[:, 0, :, 0], by_node[:, 1, :, 1])
    organ = torch.repeat_interleave(torch.arange(3), torch.tensor(FINE_RINGS))
    apart = organ[:, None] != organ
    assert (by_node[:, 0, :, 0][apart] == 0).all()
    assert (by_node[:, 0, :, 0][~apart] > 0).all()


def test_correlation_of_errors_falls_along_the_ring_and_closes_it():
    correlation = (error_factor() @ error_factor().T)[::2, ::2]
    for first, length in ((0, 44), (44, 50), (94, 26)):
        for distance in (1, 3, 6):
            expected = pytest.approx(math.exp(-(distance**2) / 18), abs=1e-3)
            assert correlation[first + 10, first + 10 + distance].item() == expected
            assert correlation[first, first + length - distance].item() == expected


def test_constants_made_within_inference_mode_serve_training():
    for make in (ring_laplacian, chebyshev_stack, unpool_matrix, error_factor):
        make.cache_clear()
    with torch.inference_mode():
        constants = [ring_laplacian(FINE_RINGS), chebyshev_stack(FINE_RINGS, 6), unpool_matrix(), error_factor()]
    assert not any(constant.is_inference() for constant in constants)
