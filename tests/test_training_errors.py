"""How errors go together."""

import numpy as np
import pytest
import torch

from cxu.model.graph import error_factor
from cxu.training.errors import MIN_FILMS, measured_error_factor


def smooth_errors(n_films, reach, seed=0):
    """Errors [n, 120, 2] of unit size whose correlation along each ring falls as exp(−d² / 2 reach²)."""
    noise = torch.randn(n_films, 240, generator=torch.Generator().manual_seed(seed))
    return (noise @ error_factor(reach).T).view(n_films, 120, 2)


def test_the_correlation_is_found_again():
    factor = measured_error_factor(smooth_errors(4000, 5.0), error_factor())
    found, true = factor @ factor.T, error_factor(5.0) @ error_factor(5.0).T
    torch.testing.assert_close(found.diagonal(), torch.ones(240), atol=1e-4, rtol=0)
    assert (found - true).abs().max() < 0.06


def test_larger_errors_are_no_other_correlation():
    errors, prior = smooth_errors(50, 3.0), error_factor()
    torch.testing.assert_close(measured_error_factor(7 * errors, prior), measured_error_factor(errors, prior))


def test_organs_annotated_too_seldom_keep_the_prior():
    errors, prior = smooth_errors(40, 8.0), error_factor()
    errors[MIN_FILMS - 1 :, 94:] = np.nan
    factor = measured_error_factor(errors, prior)
    assert torch.equal(factor[188:, 188:], prior[188:, 188:])
    assert not torch.allclose(factor[:88, :88], prior[:88, :88], atol=0.01)
    assert torch.equal(measured_error_factor(errors[:0], prior), prior)


def test_a_film_with_one_unknown_node_of_an_organ_does_not_count_for_it():
    errors, prior = smooth_errors(20, 8.0), error_factor()
    spoilt = errors.clone()
    spoilt[0, 3, 0] = np.nan
    factor = measured_error_factor(spoilt, prior)
    assert factor.isfinite().all()
    torch.testing.assert_close(factor[:88, :88], measured_error_factor(errors[1:], prior)[:88, :88])
    torch.testing.assert_close(factor[88:, 88:], measured_error_factor(errors, prior)[88:, 88:])


@pytest.mark.parametrize("first", [0, 88, 188])
def test_x_and_y_do_not_go_together(first):
    factor = measured_error_factor(smooth_errors(30, 3.0), error_factor())
    correlation = factor @ factor.T
    assert correlation[first, first + 1].abs() < 1e-6
