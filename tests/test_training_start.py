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


def saved(path, **changes):
    """Return a trained network's file: no tensor is as a new network has it."""
    model = first_model(options(seed=3, **changes))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.01 * torch.randn_like(tensor))
    save_weights(model, path, {})
    return model.state_dict()


def test_further_parts_join_trained_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    small = saved(path)
    changes = {"size": 128, "refine": True, "spread": True}
    new, started = first_model(options(**changes)), first_model(options(**changes, start=str(path)))
    assert started.config == ModelConfig(128, latents=8, refine=True, spread=True)
    for name, tensor in started.state_dict().items():
        if name.startswith(("refine_", "spread.")):
            assert torch.equal(tensor, new.state_dict()[name])
        elif name not in ("encoder.fc_mu.weight", "encoder.fc_logvar.weight"):
            assert torch.equal(tensor, small[name])


def test_further_parts_are_taken_over_too(tmp_path):
    path = tmp_path / "w.safetensors"
    small = saved(path, refine=True, spread=True)
    started = first_model(options(refine=True, spread=True, start=str(path))).state_dict()
    assert all(torch.equal(tensor, small[name]) for name, tensor in started.items())
    # and left behind where the run has none
    plain = first_model(options(start=str(path))).state_dict()
    assert all(torch.equal(tensor, small[name]) for name, tensor in plain.items())


@pytest.mark.parametrize(("before", "after"), [("igsc", "no-skip"), ("no-skip", "igsc")])
def test_the_other_variant_keeps_the_layers_of_the_same_shape_whole(tmp_path, before, after):
    path = tmp_path / "w.safetensors"
    theirs = saved(path, variant=before)
    new = first_model(options(variant=after)).state_dict()
    started = first_model(options(variant=after, start=str(path)))
    assert started.config.use_skip == (after == "igsc")
    for name, tensor in started.state_dict().items():
        # these take what the skip connections add; biases go with their layer
        is_new = name.startswith(("graphConv_up4.", "graphConv_up2.", "SC_"))
        assert torch.equal(tensor, (new if is_new else theirs)[name]), name


def test_weights_of_another_latent_size_are_refused(tmp_path):
    saved(tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"w\.safetensors have latents 8; the run asks for 16"):
        first_model(options(start=str(tmp_path / "w.safetensors"), latents=16))


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


def test_a_further_part_is_taken_over_whole_or_not_at_all(tmp_path):
    path = tmp_path / "w.safetensors"
    model = first_model(options(variant="no-skip", spread=True))
    torch.nn.init.ones_(model.spread.exit.bias)
    save_weights(model, path, {})
    # behind skip connections the spread has more to look at: its first layer is another
    started = first_model(options(spread=True, start=str(path)))
    assert torch.equal(started.spread.exit.bias, first_model(options(spread=True)).spread.exit.bias)
    assert torch.equal(started.encoder.fc_mu.weight, model.encoder.fc_mu.weight)


def test_weights_of_another_order_are_refused(tmp_path):
    save_weights(HybridGNet(ModelConfig(64, latents=8, order=3)), tmp_path / "w.safetensors", {})
    with pytest.raises(UsageError, match="have order 3; the run asks for 6"):
        first_model(options(start=str(tmp_path / "w.safetensors")))
