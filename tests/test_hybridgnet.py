"""The network against the reference outputs, and map sampling against a plain transcription."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cxu.model.hybridgnet import HybridGNet, InstanceNorm, ModelConfig, ResidualBlock
from cxu.model.map_sampling import sample_maps

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
VARIANTS = ["skip", "no_skip"]


@pytest.fixture(scope="module", params=VARIANTS)
def reference(request):
    path = FIXTURES / f"reference_{request.param}_128.npz"
    if not path.is_file():
        pytest.skip("needs the reference outputs in ../shared/fixtures")
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


def model_of(reference, map_sampling="fixed"):
    model = HybridGNet(ModelConfig(128, use_skip="pos1_0" in reference, map_sampling=map_sampling))
    prefix = "weights/"
    state = {name.removeprefix(prefix): value for name, value in reference.items() if name.startswith(prefix)}
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.shared
@torch.inference_mode()
def test_encoder_and_decoder_reproduce_the_reference_in_one_batch(reference):
    model = model_of(reference)
    encoding = model.encode(reference["image"])
    decoding = model.decode(encoding, torch.stack([reference["z0"], reference["z1"]]))
    close = {"atol": 1e-4, "rtol": 0}
    for image in (0, 1):
        torch.testing.assert_close(encoding.mu[image], reference[f"mu{image}"][0], **close)
        torch.testing.assert_close(encoding.log_var[image], reference[f"log_var{image}"][0], **close)
        torch.testing.assert_close(decoding.points[image], reference[f"out{image}"], **close)
        if decoding.pos1 is not None:
            torch.testing.assert_close(decoding.pos1[image], reference[f"pos1_{image}"], **close)
            torch.testing.assert_close(decoding.pos2[image], reference[f"pos2_{image}"], **close)


@pytest.mark.shared
@torch.inference_mode()
def test_one_image_at_a_time_gives_the_same(reference):
    model = model_of(reference)
    together = model.encode(reference["image"])
    for image in (0, 1):
        alone = model.encode(reference["image"][image : image + 1])
        torch.testing.assert_close(alone.mu[0], together.mu[image], atol=1e-5, rtol=0)
        points = model.decode(alone, reference[f"z{image}"][None]).points
        torch.testing.assert_close(points[0], reference[f"out{image}"], atol=1e-4, rtol=0)


@pytest.mark.shared
@pytest.mark.parametrize("map_sampling", ["fixed", "adaptive"])
@torch.inference_mode()
def test_statistics_of_400_draws_agree_within_sampling_error(reference, map_sampling):
    if "pos1_0" not in reference:
        pytest.skip("the two modes differ with skip connections only")
    model = model_of(reference, map_sampling)
    encoding = model.encode(reference["image"])
    eps = torch.randn(2, 400, 64, generator=torch.Generator().manual_seed(7))
    points = model.decode(encoding, encoding.mu[:, None] + torch.exp(0.5 * encoding.log_var)[:, None] * eps).points
    for image in (0, 1):
        mean, std = reference[f"mean400_{map_sampling}{image}"], reference[f"std400_{map_sampling}{image}"]
        ours, spread = points[image].mean(0), points[image].std(0, correction=0)
        z_scores = (ours - mean) / torch.sqrt((spread**2 + std**2) / 400)
        # nodes move together, so this is a mean of few independent squares; and rounding, which differs between
        # machines, draws the adaptive samples anew
        assert z_scores.square().mean().sqrt() < 2.2
        # a standard deviation of 400 draws has an error of 3.5 %, the ratio of two of 5 %
        assert 0.9 < (spread / std).median() < 1.1
        assert ((spread / std - 1).abs() < 0.25).float().mean() > 0.98


@pytest.mark.shared
@torch.inference_mode()
def test_the_two_modes_differ_as_the_reference_does(reference):
    if "pos1_0" not in reference:
        pytest.skip("the two modes differ with skip connections only")
    points = {}
    for mode in ("fixed", "adaptive"):
        model = model_of(reference, mode)
        points[mode] = model.decode(model.encode(reference["image"][:1]), reference["z0"][None]).points[0]
    ours = (points["adaptive"] - points["fixed"]).abs().mean()
    theirs = (reference["out_adaptive0"] - reference["out0"]).abs().mean()
    assert 0.5 < ours / theirs < 2


def plain_sample(maps, points, offsets):
    """METHOD, word for word: the mean of bilinear samples, each coordinate clamped or, too far out, counted as zero."""
    side = maps.shape[-1]
    out = np.zeros((len(points), maps.shape[0]))
    for row, (x, y) in enumerate(points):
        for dy in offsets:
            for dx in offsets:
                u, v = x * side + dx, y * side + dy
                if not (-1 <= u <= side and -1 <= v <= side):
                    continue
                u, v = min(max(u, 0), side - 1), min(max(v, 0), side - 1)
                left, top = int(np.floor(u)), int(np.floor(v))
                right, bottom = min(left + 1, side - 1), min(top + 1, side - 1)
                a, b = u - left, v - top
                out[row] += (
                    (1 - a) * (1 - b) * maps[:, top, left]
                    + a * (1 - b) * maps[:, top, right]
                    + (1 - a) * b * maps[:, bottom, left]
                    + a * b * maps[:, bottom, right]
                ) / len(offsets) ** 2
    return out


@given(st.lists(st.tuples(st.floats(-0.6, 1.6), st.floats(-0.6, 1.6)), min_size=1, max_size=5))
def test_fixed_sampling_equals_the_plain_transcription(points):
    maps = np.random.default_rng(0).normal(size=(3, 8, 8))
    ours = sample_maps(torch.from_numpy(maps).float()[None], torch.tensor([points], dtype=torch.float64).float())
    single = np.array(points, np.float32).astype(np.float64)
    # at the jump between counted and not counted, rounding decides
    at_jump = np.isclose(np.abs(single[..., None] * 8 + [-1, 0, 1] - 3.5), 4.5, atol=1e-4).any(axis=(1, 2))
    np.testing.assert_allclose(ours[0].numpy()[~at_jump], plain_sample(maps, single, (-1, 0, 1))[~at_jump], atol=1e-4)


def test_sampling_takes_each_image_s_own_map():
    maps = torch.stack([torch.zeros(2, 4, 4), torch.ones(2, 4, 4)])
    sampled = sample_maps(maps, torch.full((2, 3, 2), 0.5))
    assert sampled.unique(dim=1).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "parts",
    [{"use_skip": True}, {"use_skip": False}, {"refine": True, "spread": True}, {"use_skip": False, "spread": True}],
)
@torch.inference_mode()
def test_an_image_does_not_depend_on_its_neighbours(parts):
    torch.manual_seed(0)
    model = trained_a_little(HybridGNet(ModelConfig(64, **parts)).eval())
    images, latents = torch.rand(8, 1, 64, 64), torch.randn(8, 5, 64)
    whole = model.decode(model.encode(images), latents)
    for first, stop in ((0, 1), (1, 4), (4, 8)):
        part = model.decode(model.encode(images[first:stop]), latents[first:stop])
        torch.testing.assert_close(part.points, whole.points[first:stop], atol=1e-5, rtol=0)
        if whole.spread is not None:
            torch.testing.assert_close(part.spread, whole.spread[first:stop], atol=1e-5, rtol=0)


def trained_a_little(model):
    """Give what starts at zero another value: a new refinement moves nothing, a new spread is the same everywhere."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "graphConv_out.lins" in name:
                nn.init.normal_(weight, std=0.02)
    return model


def test_a_new_refinement_moves_nothing():
    models = []
    for refine in (False, True):
        torch.manual_seed(4)
        models.append(HybridGNet(ModelConfig(64, refine=refine)))
    images, latents = torch.rand(2, 1, 64, 64), torch.randn(2, 3, 64)
    plain, refined = (model.decode(model.encode(images), latents) for model in models)
    assert plain.drafts == ()
    assert [draft.shape for draft in refined.drafts] == [(2, 3, 120, 2)] * 2
    for positions in (refined.points, *refined.drafts):
        torch.testing.assert_close(positions, plain.points, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_refinement_sees_the_finer_maps():
    torch.manual_seed(4)
    model = trained_a_little(HybridGNet(ModelConfig(64, refine=True)))
    encoding, latents = model.encode(torch.rand(2, 1, 64, 64)), torch.randn(2, 3, 64)
    assert (encoding.conv4.shape, encoding.conv3.shape) == ((2, 64, 8, 8), (2, 32, 16, 16))
    first, second = model.decode(encoding, latents).drafts
    assert not torch.equal(first, second)
    blind = model.decode(encoding._replace(conv4=torch.zeros_like(encoding.conv4)), latents)
    assert torch.equal(blind.drafts[0], first)
    assert not torch.equal(blind.drafts[1], second)
    blind = model.decode(encoding._replace(conv3=torch.zeros_like(encoding.conv3)), latents)
    assert torch.equal(blind.drafts[1], second)
    assert not torch.equal(blind.points, model.decode(encoding, latents).points)


def test_gradients_reach_a_new_refinement_and_soon_all_of_it():
    torch.manual_seed(4)
    model = HybridGNet(ModelConfig(64, refine=True))
    images = torch.rand(2, 1, 64, 64)

    def moved():
        model.zero_grad()
        (model(images).points - 0.5).square().sum().backward()
        return {
            name for name, weight in model.named_parameters() if name.startswith("refine_") and weight.grad.abs().max()
        }

    outs = {f"refine_{index}.graphConv_out.lins.0.weight" for index in (1, 2)}
    assert moved() == outs
    trained_a_little(model)
    assert moved() == {name for name, _ in model.named_parameters() if name.startswith("refine_")}


def test_refinement_without_skip_connections_is_refused():
    with pytest.raises(ValueError, match="needs skip connections"):
        ModelConfig(64, use_skip=False, refine=True)


@torch.inference_mode()
def test_a_new_network_expects_twelve_pixels_everywhere():
    model = HybridGNet(ModelConfig(64, spread=True))
    encoding, latents = model.encode(torch.rand(2, 1, 64, 64)), torch.randn(2, 3, 64)
    torch.testing.assert_close(
        model.decode(encoding, latents, spread=True).spread, torch.full((2, 3, 120, 2), 12 / 1024)
    )
    assert model.decode(encoding, latents).spread is None
    assert HybridGNet(ModelConfig(64))(torch.rand(1, 1, 64, 64)).spread is None


@pytest.mark.parametrize(("bias", "expected"), [(-100.0, 0.25 / 1024), (math.log(0.1), 0.1), (100.0, 0.5)])
@torch.inference_mode()
def test_the_spread_stays_within_its_range(bias, expected):
    model = HybridGNet(ModelConfig(64, spread=True))
    model.spread.exit.bias.fill_(bias)
    torch.testing.assert_close(model(torch.rand(1, 1, 64, 64)).spread, torch.full((1, 1, 120, 2), expected))


@pytest.mark.parametrize(("bias", "error"), [(3.0, 0.1), (-20.0, 0.1)])
def test_a_spread_beyond_its_range_comes_back(bias, error):
    model = HybridGNet(ModelConfig(64, spread=True))
    torch.nn.init.constant_(model.spread.exit.bias, bias)
    optimiser = torch.optim.SGD(model.spread.parameters(), lr=0.1)
    spread = model(torch.rand(1, 1, 64, 64)).spread
    (0.5 * (error / spread).square() + spread.log()).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.spread.parameters(), 1.0)
    optimiser.step()
    moved = model.spread.exit.bias - bias
    assert (moved * (1 if bias < 0 else -1) > 0).all()


@pytest.mark.parametrize("parts", [{"refine": True}, {}, {"use_skip": False}])
def test_the_spread_only_looks_on(parts):
    torch.manual_seed(0)
    model = HybridGNet(ModelConfig(64, spread=True, **parts))
    torch.nn.init.normal_(model.spread.exit.weight)
    model(torch.rand(2, 1, 64, 64)).spread.log().sum().backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().max()}
    assert moved == {name for name, _ in model.named_parameters() if name.startswith("spread.")}


def test_a_network_s_error_factor_is_its_own():
    first, second = (HybridGNet(ModelConfig(64, spread=True)) for _ in range(2))
    before = first.spread.error_factor.clone()
    second.load_state_dict({**second.state_dict(), "spread.error_factor": torch.zeros(240, 240)})
    assert torch.equal(first.spread.error_factor, before)
    assert torch.equal(HybridGNet(ModelConfig(64, spread=True)).spread.error_factor, before)


def test_gradients_reach_every_weight():
    model = HybridGNet(ModelConfig(64))
    decoding = model(torch.rand(2, 1, 64, 64))
    (decoding.points.square().sum() + decoding.pos1.sum() + decoding.pos2.sum()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == ["encoder.fc_logvar.weight", "encoder.fc_logvar.bias"]


@pytest.mark.parametrize("size", [0, 32, 100, 1000])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(ValueError, match="multiple of 32"):
        ModelConfig(size)


def test_published_number_of_parameters():
    assert sum(weight.numel() for weight in HybridGNet(ModelConfig(1024)).parameters()) == 17_511_090


class PlainBlock(nn.Module):
    """METHOD, word for word: batch norm without running statistics, for one image at a time."""

    def __init__(self, channels_in, channels_out):
        super().__init__()

        def norm(channels):
            return nn.BatchNorm2d(channels, track_running_stats=False)

        def conv(before, after):
            return nn.Conv2d(before, after, 3, padding=1)

        shortcut = [nn.Conv2d(channels_in, channels_out, 1, bias=False), norm(channels_out)]
        self.skip = nn.Sequential(*(shortcut if channels_in != channels_out else []))
        self.block = nn.Sequential(
            norm(channels_in),
            nn.ReLU(),
            conv(channels_in, channels_out),
            norm(channels_out),
            nn.ReLU(),
            conv(channels_out, channels_out),
        )

    def forward(self, maps):
        return torch.cat([functional.relu(self.block(one) + self.skip(one)) for one in maps.split(1)])


def blocks(channels_in, channels_out):
    """The plain block and ours with the same weights, norms anything but their first state, of both signs."""
    torch.manual_seed(1)
    plain = PlainBlock(channels_in, channels_out)
    for norm in (module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    ours = ResidualBlock(channels_in, channels_out).to(memory_format=torch.channels_last)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


SHAPES = [(1, 8, 64), (8, 16, 6), (16, 16, 10), (64, 128, 8)]


@pytest.mark.parametrize(("channels_in", "channels_out", "side"), SHAPES)
@pytest.mark.parametrize("n_images", [1, 3])
@torch.inference_mode()
def test_block_without_autograd_equals_the_plain_one(channels_in, channels_out, side, n_images):
    plain, ours = blocks(channels_in, channels_out)
    maps = 2 + torch.rand(n_images, channels_in, side, side)
    before = maps.clone()
    torch.testing.assert_close(ours(maps), plain(maps), atol=1e-4, rtol=1e-5)
    assert torch.equal(maps, before)
    pooled = functional.max_pool2d(plain(maps), 2)
    torch.testing.assert_close(ours(maps, pool=True), pooled, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("channels_in", "channels_out", "side"), SHAPES)
def test_block_with_autograd_has_the_plain_one_s_values_and_gradients(channels_in, channels_out, side):
    plain, ours = blocks(channels_in, channels_out)
    maps = torch.rand(3, channels_in, side, side, requires_grad=True)
    towards = torch.randn(3, channels_out, side, side)
    gradients = []
    for block in (plain, ours):
        result = block(maps)
        torch.testing.assert_close(result, plain(maps), atol=1e-5, rtol=1e-5)
        gradients.append(torch.autograd.grad((result * towards).sum(), [maps, *block.parameters()]))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item() + 5e-3, rtol=1e-3)


def test_an_even_image_is_normalised_to_the_bias():
    norm = InstanceNorm(2)
    nn.init.normal_(norm.weight)
    scale, shift = norm.affine(torch.full((1, 2), 0.7), torch.tensor([[-1e-9, 0.0]]))
    torch.testing.assert_close(scale * 0.7 + shift, norm.bias[None], atol=1e-4, rtol=0)


@pytest.mark.parametrize("grey", [0.0, 0.7, 1.0])
@torch.inference_mode()
def test_an_even_image_gives_finite_numbers(grey):
    torch.manual_seed(0)
    encoding = HybridGNet(ModelConfig(64)).encode(torch.full((1, 1, 64, 64), grey))
    assert all(part.isfinite().all() for part in encoding if part is not None)


def test_sums_over_large_maps_keep_their_digits():
    block = ResidualBlock(1, 8).to(memory_format=torch.channels_last).eval()
    image = 5 + torch.rand(1, 1, 1024, 1024, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = block(image)
    expected = block(image).detach()
    assert (found - expected).abs().max() < 5e-4  # plain sums are off by ten times that


@pytest.mark.parametrize(("channels_in", "channels_out", "side"), [(1, 8, 64), (16, 16, 32), (32, 64, 16)])
@pytest.mark.parametrize("pool", [False, True])
def test_block_in_training_under_autocast_is_near_float32(channels_in, channels_out, side, pool):
    _, block = blocks(channels_in, channels_out)
    maps = torch.rand(3, channels_in, side, side, requires_grad=True)
    exact = block(maps, pool=pool)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block(maps, pool=pool)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.02 * exact.std()
    towards = torch.randn(exact.shape)
    (maps_exact, *exact), (maps_rounded, *rounded) = (
        torch.autograd.grad((result.float() * towards).sum(), [maps, *block.parameters()])
        for result in (exact, rounded)
    )
    weights_exact, weights_rounded = (torch.cat([part.flatten() for part in parts]) for parts in (exact, rounded))
    assert functional.cosine_similarity(weights_exact, weights_rounded, dim=0) > 0.99
    # a rounded value may lie on the other side of a ReLU, or win a pool
    assert functional.cosine_similarity(maps_exact.flatten(), maps_rounded.flatten(), dim=0) > 0.98


def bf16_case(**parts):
    torch.manual_seed(0)
    return HybridGNet(ModelConfig(64, **parts)).eval(), torch.rand(2, 1, 64, 64)


@pytest.mark.parametrize("autograd", [False, True])
def test_bf16_is_near_float32_and_hands_on_float32(autograd):
    model, images = bf16_case(refine=True)
    with torch.set_grad_enabled(autograd):
        exact, rounded = model.encode(images), model.encode(images, "bf16")
    for before, after in zip(exact, rounded, strict=True):
        assert after.dtype == torch.float32
        assert 0 < (after - before).abs().mean() < 0.1 * before.std()


def test_bf16_reaches_the_convolutions_with_and_without_autograd():
    model, images = bf16_case(refine=True)
    with_autograd = model.encode(images, "bf16")
    with torch.no_grad():
        without = model.encode(images, "bf16")
    seen = []
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        conv.register_forward_hook(lambda _module, _inputs, result: seen.append(result.dtype))
    model.encode(images, "bf16")
    assert set(seen) == {torch.bfloat16}
    for before, after in zip(with_autograd, without, strict=True):
        assert (after - before).abs().mean() < 0.1 * before.std()


@torch.inference_mode()
def test_float32_leaves_a_surrounding_autocast_alone():
    model, images = bf16_case()
    with torch.autocast("cpu", torch.bfloat16):
        surrounded = model.encode(images)
    assert torch.equal(surrounded.conv6.float(), model.encode(images, "bf16").conv6)
