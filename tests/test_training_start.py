import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cxu.errors import MissingInputError, UsageError
from cxu.model.hybridgnet import HybridGNet, ModelConfig
from cxu.model.weights import save_weights
from cxu.training import TrainOptions
from cxu.training.start import first_model, resize_latent_layer


def options(**changes):
    return TrainOptions(**{"steps": 1, "size": 64, "latents": 8, **changes})


@given(st.integers(1, 6), st.integers(1, 6))
def test_a_map_that_is_constant_gives_the_same_latents(before, after):
    generator = torch.Generator().manual_seed(before * 7 + after)
    weight = torch.randn(3, 2 * before**2, generator=generator)
    channels = torch.randn(2, generator=generator)
    expected = weight @ channels.repeat_interleave(before**2)
    found = resize_latent_layer(weight, before, after) @ channels.repeat_interleave(after**2)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_whole_multiple_is_nearest_neighbour_divided_by_the_ratio_of_areas():
    weight = torch.arange(8.0).view(1, 8)
    larger = resize_latent_layer(weight, 2, 4).view(1, 2, 4, 4)
    nearest = torch.nn.functional.interpolate(weight.view(1, 2, 2, 2), scale_factor=2)
    assert torch.equal(larger, nearest / 4)
    assert torch.equal(resize_latent_layer(larger.flatten(1), 4, 2), weight)


def test_weights_of_another_size_carry_over(tmp_path):
    model = first_model(options(seed=3))
    save_weights(model, tmp_path / "w.safetensors", {})
    larger = first_model(options(size=128, start=str(tmp_path / "w.safetensors")))
    assert larger.config == ModelConfig(128, latents=8)
    small, large = model.state_dict(), larger.state_dict()
    for name, tensor in small.items():
        if name.startswith("encoder.fc_") and name.endswith("weight"):
            before, after = tensor.view(8, 128, -1).sum(-1), large[name].view(8, 128, -1).sum(-1)
            assert torch.allclose(before, after, atol=1e-5)
        else:
            assert torch.equal(large[name], tensor)


@pytest.mark.parametrize("changes", [{"variant": "no-skip"}, {"latents": 16}])
def test_weights_of_another_kind_are_refused(tmp_path, changes):
    save_weights(HybridGNet(ModelConfig(64, latents=8)), tmp_path / "w.safetensors", {})
    with pytest.raises(UsageError, match="igsc with 8 latents; the run asks for"):
        first_model(options(start=str(tmp_path / "w.safetensors"), **changes))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.safetensors"):
        first_model(options(start=str(tmp_path / "none.safetensors")))


def test_first_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (first_model(options(seed=seed)).dec_lin.weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
