"""The norm for training in bfloat16 against that of torch."""

import pytest
import torch
from torch.nn import functional

from cxu.model.norm import EPS, norm

SHAPES = [(2, 3, 32, 32), (1, 1, 16, 16), (3, 8, 7, 7), (2, 5, 48, 17)]


def case(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    deviations = 0.3 + torch.rand(1, shape[1], 1, 1, generator=generator)
    maps = 0.7 + torch.randn(shape, generator=generator) * deviations
    weight, bias = torch.randn(2, shape[1], generator=generator)
    towards = torch.randn(shape, generator=generator)
    return maps, weight, bias, towards


def plain(maps, weight, bias, *, relu):
    normed = functional.instance_norm(maps, weight=weight, bias=bias, eps=EPS)
    return functional.relu(normed) if relu else normed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_has_torch_s_values_and_gradients(shape, relu, layout):
    maps, weight, bias, towards = case(shape)
    found, gradients = [], []
    for function in (plain, norm):
        inputs = [tensor.clone().requires_grad_() for tensor in (maps.contiguous(memory_format=layout), weight, bias)]
        found.append(function(*inputs, relu=relu))
        gradients.append(torch.autograd.grad((found[-1] * towards).sum(), inputs))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    for expected, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4 * expected.abs().max().item() + 1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_bfloat16_is_near_and_its_affine_gradients_are_float32(shape, relu):
    maps, weight, bias, towards = case(shape)
    # the same maps for both: what is measured is the norm, not the rounding of its input
    maps, towards = maps.bfloat16(), towards.bfloat16()
    found, gradients = [], []
    for function, dtype in ((plain, torch.float32), (norm, torch.bfloat16)):
        inputs = [
            maps.to(dtype).clone().requires_grad_(),
            weight.clone().requires_grad_(),
            bias.clone().requires_grad_(),
        ]
        found.append(function(*inputs, relu=relu))
        gradients.append(torch.autograd.grad((found[-1] * towards.to(dtype)).sum(), inputs))
    assert found[1].dtype == gradients[1][0].dtype == torch.bfloat16
    assert gradients[1][1].dtype == gradients[1][2].dtype == torch.float32
    assert (found[1].float() - found[0]).abs().mean() < 0.02 * found[0].std()
    # a rounded value may lie on the other side of the ReLU
    tolerance = 0.15 if relu else 0.05
    for expected, gradient in zip(*gradients, strict=True):
        assert (gradient.float() - expected).norm() < tolerance * expected.norm()


def test_each_image_is_normalised_by_itself():
    maps, weight, bias, _ = case((3, 4, 16, 16))
    whole = norm(maps, weight, bias, relu=True)
    for index in range(3):
        torch.testing.assert_close(norm(maps[index : index + 1], weight, bias, relu=True)[0], whole[index])


@pytest.mark.parametrize("grey", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("side", [16, 15])
def test_an_even_map_becomes_the_bias(grey, side):
    maps = torch.full((1, 2, side, side), grey, requires_grad=True)
    weight, bias = torch.tensor([0.5, -2.0], requires_grad=True), torch.tensor([1.0, -1.0], requires_grad=True)
    normed = norm(maps, weight, bias, relu=False)
    torch.testing.assert_close(normed, bias.view(1, 2, 1, 1).expand_as(maps), atol=2e-3, rtol=0)
    normed.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (maps, weight, bias))


@pytest.mark.parametrize("grey", [0.0, 0.3, 0.7, 1.0])
def test_an_even_map_of_bfloat16_is_finite(grey):
    maps = torch.full((1, 2, 16, 16), grey, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.tensor([0.5, -2.0]), torch.tensor([1.0, -1.0])
    normed = norm(maps, weight, bias, relu=True)
    normed.sum().backward()
    assert normed.isfinite().all()
    assert maps.grad.isfinite().all()


def test_sums_of_bfloat16_lose_nothing_that_is_added_late():
    # a plain sum of bfloat16 ends at 256 ones
    maps = torch.ones(1, 1, 1024, 64, dtype=torch.bfloat16)
    maps[:, :, ::2] = 0
    normed = norm(maps, torch.ones(1), torch.zeros(1), relu=False)
    assert normed[0, 0, 0].unique().tolist() == [-1]
    assert normed[0, 0, 1].unique().tolist() == [1]
