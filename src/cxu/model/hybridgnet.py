"""HybridGNet (Gaggion et al., TMI 2022, arXiv 2203.10977) with image-to-graph skip connections, as in CheXmask-U.

Reads top to bottom as the architecture. Letters in shapes: B images, S samples of each, M = B · S, N nodes, F features,
K Chebyshev order, Z latent size, C channels, H side of a feature map, P points.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxu.anatomy import N_NODES
from cxu.frame import MODEL_SIZE
from cxu.model.graph import COARSE_RINGS, FINE_RINGS, N_COARSE, chebyshev_stack, error_factor, unpool_matrix
from cxu.model.map_sampling import MapSampling, sample_maps
from cxu.model.norm import EPS, norm, whole_rows

Precision = Literal["float32", "bf16"]
_CHANNELS: Final = (8, 16, 32, 64, 128, 128)
_MIN_SIZE: Final = 64
_FIRST_SPREAD: Final = 12 / MODEL_SIZE  # what a network says of every node before it has learned better
_SPREAD_RANGE: Final = (0.25 / MODEL_SIZE, 0.5)
_SPREAD_FEATURES: Final = 48
_MOVE_SCALE: Final = 64.0  # brings moves of some pixels to the size of the other features


@dataclass(frozen=True)
class ModelConfig:
    """What a HybridGNet is made of.

    Attributes
    ----------
    size
        Side of the input, px; divisible by 32, at least 64.
    use_skip
        With image-to-graph skip connections (IGSC) or without.
    latents
        Z, size of the latent code.
    order
        K, Chebyshev order of the graph convolutions.
    filters
        Features of a node: of the decoder's start, then after up4 to up2.
    map_sampling
        ``fixed`` takes 3 × 3 samples of a feature map; ``adaptive`` repeats the rounding noise of the published kernel.
    refine
        Two further skip connections, to the finer maps of blocks 4 and 3, each moving the found positions once more.
        Not in the published network.
    spread
        The network also says how far it expects each node to lie from the truth. Not in the published network.
    """

    size: int = MODEL_SIZE
    use_skip: bool = True
    latents: int = 64
    order: int = 6
    filters: tuple[int, int] = (16, 32)
    map_sampling: MapSampling = "fixed"
    refine: bool = False
    spread: bool = False

    def __post_init__(self) -> None:
        if self.size < _MIN_SIZE or self.size % 32:
            raise ValueError(f"input size {self.size}; expected a multiple of 32, at least {_MIN_SIZE}")
        if self.refine and not self.use_skip:
            raise ValueError("refinement takes features of the image along: it needs skip connections")


class Encoding(NamedTuple):
    """What the encoder says of B images: shared by all samples, never copied for them."""

    mu: Tensor  # [B, Z]
    log_var: Tensor  # [B, Z]
    conv5: Tensor  # [B, C, size/16, size/16]
    conv6: Tensor  # [B, C, size/32, size/32]
    conv4: Tensor | None = None  # [B, 64, size/8, size/8], for refinement
    conv3: Tensor | None = None  # [B, 32, size/4, size/4], for refinement


class Decoding(NamedTuple):
    """Positions in [0, 1] (x, y) of each sample; ``pos1`` and ``pos2`` of the skip connections, None without them.

    ``drafts`` are the positions before each refinement; ``spread`` the standard deviations along x and y with which the
    network expects the truth around ``points``, None where it does not say.
    """

    points: Tensor  # [B, S, 120, 2]
    pos1: Tensor | None  # [B, S, 60, 2]
    pos2: Tensor | None  # [B, S, 120, 2]
    drafts: tuple[Tensor, ...] = ()  # [B, S, 120, 2] each
    spread: Tensor | None = None  # [B, S, 120, 2]


class InstanceNorm(nn.Module):
    """Normalise each channel of each image over its pixels; the published batch norm at a batch of one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, H] → the same."""
        return functional.instance_norm(maps.float(), weight=self.weight, bias=self.bias, eps=EPS)

    def affine(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift [B, C] that do the same to maps of this mean and variance [B, C]."""
        # rounding can leave the variance of an even map a little below zero
        scale = self.weight * torch.rsqrt(variance.clamp_min(0) + EPS)
        return scale, self.bias - mean * scale


_BlockLayers = tuple[InstanceNorm, nn.ReLU, nn.Conv2d, InstanceNorm, nn.ReLU, nn.Conv2d]


class ResidualBlock(nn.Module):
    """Norm, ReLU, convolution, twice, beside a shortcut; without autograd the same in fewer passes over memory."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        if channels_in != channels_out:
            self.skip = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=False), InstanceNorm(channels_out))
        else:
            self.skip = nn.Sequential()
        self.block = nn.Sequential(
            InstanceNorm(channels_in),
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            InstanceNorm(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )

    def forward(self, maps: Tensor, *, pool: bool = False) -> Tensor:
        """[B, C, H, H] → [B, C', H, H], or half of H behind a 2 × 2 max-pool."""
        if not torch.is_grad_enabled():
            return self._infer(maps, pool=pool)
        if torch.is_autocast_enabled(maps.device.type):
            return self._train_rounded(maps, pool=pool)
        summed = functional.relu(self.block(maps) + self.skip(maps))
        return functional.max_pool2d(summed, 2) if pool else summed

    def _train_rounded(self, maps: Tensor, *, pool: bool) -> Tensor:
        norm_in, _, conv_in, norm_mid, _, conv_out = cast(_BlockLayers, tuple(self.block))
        maps = maps.to(torch.get_autocast_dtype(maps.device.type))
        inner = conv_in(norm(maps, norm_in.weight, norm_in.bias, relu=True))
        outer = conv_out(norm(inner, norm_mid.weight, norm_mid.bias, relu=True))
        if len(self.skip):
            project, norm_skip = cast(tuple[nn.Conv2d, InstanceNorm], tuple(self.skip))
            maps = norm(project(maps), norm_skip.weight, norm_skip.bias, relu=False)
        summed = functional.relu(outer + maps)
        return functional.max_pool2d(summed, 2) if pool else summed

    def _infer(self, maps: Tensor, *, pool: bool) -> Tensor:
        norm_in, _, conv_in, norm_mid, _, conv_out = cast(_BlockLayers, tuple(self.block))
        mean, covariance = _moments(maps)
        inner = _convolve(conv_in, _scale_shift_relu(maps, *norm_in.affine(mean, _diagonal(covariance))))
        mean_mid, covariance_mid = _moments(inner)
        _scale_shift_relu(inner, *norm_mid.affine(mean_mid, _diagonal(covariance_mid)), out=inner)
        outer = _convolve(conv_out, inner)
        if not len(self.skip):
            outer.add_(maps)
            return (_halve(outer) if pool else outer).relu_()
        # of w · x the mean is w · mean and the variance w · covariance · wᵀ: its norm goes into the weights
        project, norm_skip = cast(tuple[nn.Conv2d, InstanceNorm], tuple(self.skip))
        weight = project.weight.flatten(1).expand(len(maps), -1, -1)  # [B, C', C]
        variance = (_product(weight, covariance) * weight).sum(dim=2)
        scale, shift = norm_skip.affine(_product(weight, mean[..., None])[..., 0], variance)
        _pixels(outer).baddbmm_(_pixels(maps), (scale[..., None] * weight).mT)
        # a shift and the ReLU change places with the pool: a quarter of the pixels is left for them
        return (_halve(outer) if pool else outer).add_(shift[..., None, None]).relu_()


def _convolve(conv: nn.Conv2d, maps: Tensor) -> Tensor:
    """[B, C, H, H] → [B, C', H, H] float32, channels last; new memory."""
    convolved: Tensor = conv(maps)
    return convolved.float().contiguous(memory_format=torch.channels_last)


def _pixels(maps: Tensor) -> Tensor:
    """[B, C, H, H] → [B, H · H, C]: a view of maps with their channels last."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [B, C] and covariance [B, C, C] of the channels over the pixels, in one pass.

    Sums run within rows, then over rows: over a million pixels at once they would lose four digits.
    """
    n_images, n_channels, height, width = maps.shape
    rows = _pixels(maps).reshape(-1, width, n_channels)  # [B · H, H, C]
    row_mean = rows.mean(dim=1)
    within = row_mean[:, :, None] * row_mean[:, None, :]
    within.baddbmm_(rows.mT, rows, beta=-1, alpha=1 / width)
    row_mean = row_mean.view(n_images, height, n_channels)
    mean = row_mean.mean(dim=1)
    between = row_mean - mean[:, None]
    covariance = within.view(n_images, height, n_channels, n_channels).mean(dim=1)
    return mean, covariance.baddbmm_(between.mT, between, alpha=1 / height)


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Batched matrix product in float32: what works in place is out of autocast's reach."""
    return left.new_zeros(len(left), left.shape[1], right.shape[2]).baddbmm_(left, right)


def _scale_shift_relu(maps: Tensor, scale: Tensor, shift: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return ReLU(scale · maps + shift) of maps [B, C, H, H], scale and shift [B, C]; into ``out`` where given."""
    width = maps.shape[-1]
    rows, target = whole_rows(maps), None if out is None else whole_rows(out)
    scaled: Tensor = torch.addcmul(shift.repeat(1, width)[:, None], rows, scale.repeat(1, width)[:, None], out=target)
    return scaled.relu_().view(*rows.shape[:2], width, -1).permute(0, 3, 1, 2)


def _halve(maps: Tensor) -> Tensor:
    """2 × 2 max-pool of [B, C, H, H]; without the indices that torch would write for a backward pass."""
    tall = torch.maximum(maps[:, :, ::2], maps[:, :, 1::2])
    return torch.maximum(tall[..., ::2], tall[..., 1::2])


class Encoder(nn.Module):
    """Six residual blocks with pools between, and the two heads of the latent code."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        blocks = [ResidualBlock(before, after) for before, after in itertools.pairwise((1, *_CHANNELS))]
        self.dconv_down1, self.dconv_down2, self.dconv_down3, self.dconv_down4, self.dconv_down5, self.dconv_down6 = (
            blocks
        )
        n_features = _CHANNELS[-1] * (config.size // 32) ** 2
        self.keeps_finer = config.refine
        self.fc_mu = nn.Linear(n_features, config.latents)
        self.fc_logvar = nn.Linear(n_features, config.latents)
        # the convolutions hand on the layout of their weights
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, precision: Precision = "float32") -> Encoding:
        """[B, 1, size, size] in [0, 1] → :class:`Encoding`."""
        with _convolutions_in(precision, images.device):
            maps = self.dconv_down1(images, pool=True)
            maps = self.dconv_down2(maps, pool=True)
            if self.keeps_finer:
                finer = self.dconv_down3(maps)
                fine = self.dconv_down4(functional.max_pool2d(finer, 2))
                maps = functional.max_pool2d(fine, 2)
            else:
                finer = fine = None
                maps = self.dconv_down4(self.dconv_down3(maps, pool=True), pool=True)
            conv5 = self.dconv_down5(maps)
            conv6 = self.dconv_down6(functional.max_pool2d(conv5, 2))
        # with autograd, maps of bfloat16 convolutions stay bfloat16
        conv5, conv6 = conv5.float(), conv6.float()
        fine, finer = (None if maps is None else maps.float() for maps in (fine, finer))
        flat = conv6.flatten(1)
        return Encoding(self.fc_mu(flat), self.fc_logvar(flat), conv5, conv6, fine, finer)


def _convolutions_in(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context for the encoder's blocks; float32 leaves alone what a trainer may have set around it."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


class ChebConv(nn.Module):
    """Chebyshev graph convolution: sum over k of T_k x W_k, plus a bias."""

    stack: Tensor

    def __init__(
        self, features_in: int, features_out: int, order: int, rings: tuple[int, ...], *, bias: bool = True
    ) -> None:
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(features_in, features_out, bias=False) for _ in range(order))
        self.bias = nn.Parameter(torch.zeros(features_out)) if bias else None
        self.register_buffer("stack", chebyshev_stack(rings, order), persistent=False)

    def forward(self, nodes: Tensor) -> Tensor:
        """[M, N, F] → [M, N, F']."""
        # weights first: the graph then mixes F' features, not F
        weight = torch.cat([cast(Tensor, lin.weight) for lin in self.lins])  # [K · F', F]
        n_samples, n_nodes, _ = nodes.shape
        mixed = functional.linear(nodes, weight).view(n_samples, n_nodes, len(self.lins), -1)
        stacked = mixed.transpose(1, 2).reshape(n_samples, len(self.lins) * n_nodes, -1)  # [M, K · N, F']
        result = self.stack @ stacked if len(self.lins) > 1 else stacked
        return result if self.bias is None else result + self.bias


class SkipConnection(nn.Module):
    """Image-to-graph skip connection: nodes say where they lie, and take the features of the map there along."""

    def __init__(self, features: int, rings: tuple[int, ...]) -> None:
        super().__init__()
        self.graphConv_pre = ChebConv(features, 2, 1, rings, bias=False)

    def forward(self, nodes: Tensor, maps: Tensor, map_sampling: MapSampling) -> tuple[Tensor, Tensor]:
        """Nodes [B · S, N, F] and maps [B, C, H, H] → nodes [B · S, N, F + C + 2], positions [B · S, N, 2]."""
        positions = self.graphConv_pre(nodes)
        n_images = len(maps)
        points = positions.reshape(n_images, -1, 2)  # [B, S · N, 2]
        sampled = sample_maps(maps, points, map_sampling).view(*nodes.shape[:2], -1)
        return torch.cat([nodes, sampled, positions], dim=2), positions


class Refinement(nn.Module):
    """A skip connection behind the positions: what a finer map shows there moves each node, with its neighbours."""

    def __init__(self, features: int, channels: int, order: int) -> None:
        super().__init__()
        self.graphConv_in = ChebConv(features + channels + 2, features, order, FINE_RINGS)
        self.graphConv_out = ChebConv(features, 2, 1, FINE_RINGS, bias=False)
        # a new refinement moves nothing, so that it can join a trained network
        nn.init.zeros_(cast(Tensor, self.graphConv_out.lins[0].weight))

    def forward(self, nodes: Tensor, points: Tensor, maps: Tensor, map_sampling: MapSampling) -> tuple[Tensor, Tensor]:
        """Nodes [B · S, N, F], points [B · S, N, 2] and maps [B, C, H, H] → nodes and points."""
        # where it looks is not what it is to learn: the map's slope along the position is noise to the positions
        places = points.detach().reshape(len(maps), -1, 2)
        sampled = sample_maps(maps, places, map_sampling).view(*nodes.shape[:2], -1)
        nodes = _norm_relu(self.graphConv_in(torch.cat([nodes, sampled, points], dim=2)))
        return nodes, points + self.graphConv_out(nodes)


class Spread(nn.Module):
    """How far from the truth a node is to be expected, by what is known of it: a standard deviation along x and y.

    Not in the published network. It looks on: no gradient leads from its evidence to the positions.
    """

    error_factor: Tensor

    def __init__(self, evidence: int, order: int) -> None:
        super().__init__()
        self.entry = nn.Linear(evidence, _SPREAD_FEATURES)
        self.node = nn.Parameter(torch.zeros(N_NODES, _SPREAD_FEATURES))
        self.graphConv_1 = ChebConv(_SPREAD_FEATURES, _SPREAD_FEATURES, order, FINE_RINGS)
        self.graphConv_2 = ChebConv(_SPREAD_FEATURES, _SPREAD_FEATURES, order, FINE_RINGS)
        self.exit = nn.Linear(_SPREAD_FEATURES, 2)
        nn.init.zeros_(self.exit.weight)
        nn.init.constant_(self.exit.bias, math.log(_FIRST_SPREAD))
        # how errors of different nodes go together, so that draws do as well
        # a copy: weights are loaded into it, and the function keeps what it returned
        self.register_buffer("error_factor", error_factor().clone())

    def forward(self, evidence: Tensor) -> Tensor:
        """[M, N, E] → [M, N, 2], in the units of positions."""
        hidden = functional.gelu(self.entry(evidence) + self.node)
        hidden = hidden + functional.gelu(self.graphConv_1(hidden))
        hidden = hidden + functional.gelu(self.graphConv_2(hidden))
        logarithm = self.exit(hidden)
        low, high = _SPREAD_RANGE
        # beyond the range its gradient goes on, or what once left it would never come back
        return torch.exp(logarithm + (logarithm.clamp(math.log(low), math.log(high)) - logarithm).detach())


class HybridGNet(nn.Module):
    """The whole network; ``encode`` once, ``decode`` as many samples as wanted."""

    unpool: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        start, wide = config.filters
        order, extra = config.order, _CHANNELS[-1] + 2 if config.use_skip else 0
        self.encoder = Encoder(config)
        self.dec_lin = nn.Linear(config.latents, N_COARSE * start)
        self.graphConv_up6 = ChebConv(start, start, order, COARSE_RINGS)
        self.graphConv_up5 = ChebConv(start, start, order, COARSE_RINGS)
        self.graphConv_up4 = ChebConv(start + extra, wide, order, COARSE_RINGS)
        self.graphConv_up3 = ChebConv(wide, wide, order, FINE_RINGS)
        self.graphConv_up2 = ChebConv(wide + extra, wide, order, FINE_RINGS)
        self.graphConv_up1 = ChebConv(wide, 2, 1, FINE_RINGS, bias=False)
        if config.use_skip:
            self.SC_1 = SkipConnection(start, COARSE_RINGS)
            self.SC_2 = SkipConnection(wide, FINE_RINGS)
        if config.refine:
            self.refine_1 = Refinement(wide, _CHANNELS[3], order)
            self.refine_2 = Refinement(wide, _CHANNELS[2], order)
        if config.spread:
            self.spread = Spread(wide + _n_evidence(config), order)
        self.register_buffer("unpool", unpool_matrix(), persistent=False)

    def encode(self, images: Tensor, precision: Precision = "float32") -> Encoding:
        """Images [B, 1, size, size] in [0, 1] → :class:`Encoding`, float32 whatever the convolutions' precision."""
        encoding: Encoding = self.encoder(images, precision)
        return encoding

    def decode(self, encoding: Encoding, latents: Tensor, *, spread: bool = False) -> Decoding:
        """Latent codes [B, S, Z] with the encoding of their images → :class:`Decoding`, on request with its spread."""
        n_images, n_samples, _ = latents.shape
        sampling = self.config.map_sampling
        nodes = functional.relu(self.dec_lin(latents.flatten(0, 1))).view(-1, N_COARSE, self.config.filters[0])
        nodes = _norm_relu(self.graphConv_up6(nodes))
        nodes = _norm_relu(self.graphConv_up5(nodes))
        pos1 = pos2 = None
        if self.config.use_skip:
            nodes, pos1 = self.SC_1(nodes, encoding.conv6, sampling)
        nodes = _norm_relu(self.graphConv_up4(nodes))
        nodes = self.unpool @ nodes
        nodes = _norm_relu(self.graphConv_up3(nodes))
        if self.config.use_skip:
            nodes, pos2 = self.SC_2(nodes, encoding.conv5, sampling)
        nodes = _norm_relu(self.graphConv_up2(nodes))
        points, drafts = self.graphConv_up1(nodes), []
        if self.config.refine:
            for refine, maps in ((self.refine_1, encoding.conv4), (self.refine_2, encoding.conv3)):
                drafts.append(points)
                nodes, points = refine(nodes, points, maps, sampling)
        stated = self.spread(_evidence(encoding, nodes, points, drafts, pos2)) if spread else None

        def shaped(positions: Tensor) -> Tensor:
            return positions.view(n_images, n_samples, -1, 2)

        return Decoding(
            points=shaped(points),
            pos1=None if pos1 is None else shaped(pos1),
            pos2=None if pos2 is None else shaped(pos2),
            drafts=tuple(map(shaped, drafts)),
            spread=None if stated is None else shaped(stated),
        )

    def forward(self, images: Tensor) -> Decoding:
        """Decode the mean code of each image: S = 1."""
        encoding = self.encode(images)
        return self.decode(encoding, encoding.mu[:, None], spread=self.config.spread)


def _n_evidence(config: ModelConfig) -> int:
    """Return how many numbers :func:`_evidence` adds to a node's features."""
    maps = _CHANNELS[-1] if config.use_skip else 0
    if config.refine:
        maps += _CHANNELS[3] + _CHANNELS[2] + 3 * 4  # three moves, each with signs and without
    return maps


@torch.no_grad()
def _evidence(encoding: Encoding, nodes: Tensor, points: Tensor, drafts: list[Tensor], pos2: Tensor | None) -> Tensor:
    """Return what the error of a node may be seen from, [M, N, E]: its features, the maps there, how it was moved."""
    parts = [nodes]
    if pos2 is not None:
        places = points.reshape(len(encoding.mu), -1, 2)
        maps = [encoding.conv5, *(each for each in (encoding.conv4, encoding.conv3) if each is not None)]
        parts += [sample_maps(each, places).view(*nodes.shape[:2], -1) for each in maps]
        if drafts:
            moves = [points - drafts[0], drafts[1] - drafts[0], points - pos2]
            parts += [_MOVE_SCALE * move for move in moves] + [_MOVE_SCALE * move.abs() for move in moves]
    return torch.cat(parts, dim=2)


def _norm_relu(nodes: Tensor) -> Tensor:
    """Normalise each node over its own features, then ReLU. [M, N, F] → the same."""
    return functional.relu(functional.layer_norm(nodes, nodes.shape[-1:], eps=EPS))
