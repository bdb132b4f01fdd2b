"""The network that tells films from mirrored ones."""

import numpy as np
import pytest
import torch

from cxu import files
from cxu.films import film_frame, model_input, read_film
from cxu.image_listing import ImageFile
from cxu.model.reference import bundled_references
from cxu.model.sides import SideNet, load_sides, side_odds, sides_path


def drawn(path, size=384):
    film = read_film(ImageFile.at(path))
    return model_input(film, film_frame(film), size)


@pytest.mark.parametrize("size", [64, 80, 256, 384])
def test_a_mirrored_film_has_the_odds_turned_round(size):
    films = torch.rand(3, 1, size, size)
    with torch.inference_mode():
        odds, mirrored = load_sides()(films), load_sides()(films.flip(-1))
    torch.testing.assert_close(mirrored, -odds, atol=1e-4, rtol=1e-4)


def test_a_symmetrical_or_even_image_has_no_side():
    half = np.random.default_rng(0).random((96, 48), np.float32)
    assert side_odds(np.hstack([half, half[:, ::-1]])) == pytest.approx(0, abs=1e-4)
    assert side_odds(np.zeros((96, 96), np.float32)) == pytest.approx(0, abs=1e-4)


def test_the_network_that_ships_is_whole():
    loaded, made = load_sides().state_dict(), SideNet().state_dict()
    assert {name: values.shape for name, values in loaded.items()} == {name: one.shape for name, one in made.items()}
    assert all(torch.isfinite(values).all() for values in loaded.values())


@pytest.mark.parametrize("reference", bundled_references(), ids=lambda one: one.model_id[:8])
def test_limits_were_fitted_to_the_network_that_ships(reference):
    assert reference.facts["sides_sha256"] == files.sha256_of(sides_path())


def test_films_of_other_hospitals_are_the_right_way_round(shared_data):
    films = sorted(path for path in (shared_data / "demo").iterdir() if path.suffix in {".png", ".dcm"})
    odds = [side_odds(drawn(path)) for path in films]
    assert len(odds) >= 9
    assert np.mean(np.array(odds) > 0) > 0.85
