"""Small models, one for each way in which axes can belong together."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

Case = tuple[nn.Module, Tensor]
FAMILIES: dict[str, Callable[[], Case]] = {}


def family(make: Callable[[], Case]) -> Callable[[], Case]:
    FAMILIES[make.__name__] = make
    return make


def images(size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size)


class Then(nn.Module):
    """A model whose forward is a function of the model and the input."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def around(function: Callable[..., Tensor], width: int = 8, **layers: nn.Module) -> nn.Module:
    """Return a model with a function of layers and channels between two linear layers."""
    return nn.Sequential(nn.Linear(3, width), Then(function, **layers), nn.Linear(width, 2))


def conv(inputs: int, outputs: int, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


@family
def tabular() -> Case:
    layers = nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.PReLU(12), nn.Linear(12, 3)
    return nn.Sequential(*layers), torch.randn(2, 5)


@family
def sound() -> Case:
    layers = nn.Conv1d(2, 8, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 5, 4)
    return nn.Sequential(*layers), torch.randn(2, 2, 16)


def classifier(*layers: nn.Module, channels: int = 8) -> nn.Module:
    """Return layers for images with a classifier behind them."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


@family
def unfolded() -> Case:
    return nn.Sequential(conv(3, 8), nn.Unfold(2), nn.Flatten(), nn.Linear(8 * 4 * 49, 4)), images()


@family
def folded() -> Case:
    layers = conv(3, 8), nn.Unfold(2, stride=2), nn.Conv1d(32, 32, 1), nn.Fold(8, 2, stride=2), nn.ReLU()
    return classifier(*layers), images()


@family
def viewed_by_size() -> Case:
    def forward(self: Then, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(self.conv(x), 2)
        return self.linear(x.view(x.size(0), x.size(1) * 4))

    return Then(forward, conv=conv(3, 8), linear=nn.Linear(32, 4)), images()


@family
def concatenated() -> Case:
    def forward(self: Then, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        both = torch.cat([one, two, one], 1)
        return self.head(torch.cat([both, torch.relu(self.three(both))], 1).mean((2, 3)))

    return Then(forward, one=conv(3, 6), two=conv(3, 10), three=conv(22, 5), head=nn.Linear(27, 4)), images()


@family
def concatenation_added_to_one() -> Case:
    def forward(self: Then, x: Tensor) -> Tensor:
        return self.head((torch.cat([self.one(x), self.two(x)], 1) + self.whole(x)).amax((2, 3)))

    return Then(forward, one=conv(3, 6), two=conv(3, 10), whole=conv(3, 16), head=nn.Linear(16, 4)), images()


@family
def grouped() -> Case:
    normed = parametrizations.weight_norm(conv(16, 32, groups=8, bias=False))
    layers = conv(3, 16), normed, nn.GroupNorm(8, 32), nn.ReLU(), conv(32, 8), nn.GroupNorm(2, 8)
    return classifier(*layers, nn.Tanh()), images()


@family
def few_groups() -> Case:
    layers = conv(3, 16), conv(16, 24, groups=2), nn.ReLU(), nn.ConvTranspose2d(24, 12, 2, groups=2), conv(12, 8)
    return classifier(*layers), images()


@family
def transposed_and_shuffled() -> Case:
    first = nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU(), conv(8, 16), nn.PixelShuffle(2), conv(4, 6)
    groups = nn.PixelUnshuffle(2), nn.ConvTranspose2d(24, 24, 2, groups=12), nn.ChannelShuffle(2), conv(24, 4)
    return nn.Sequential(*first, *groups, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images(4)


@family
def gated() -> Case:
    layers = conv(3, 24), nn.GLU(1), conv(12, 8), nn.InstanceNorm2d(8, affine=True), nn.GELU()
    return classifier(*layers), images()


@family
def padded_shortcut() -> Case:
    def forward(self: Then, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).mean((2, 3)))

    down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    return Then(forward, stem=conv(3, 8), down=down, head=nn.Linear(12, 4)), images()


@family
def grid_of_boxes() -> Case:
    """Return a detector as YOLO is: two grids, whose cells have 3 anchors with a box, objectness and 2 classes each."""

    def predictions(grid: Tensor) -> Tensor:
        return grid.unflatten(1, (3, 5 + 2)).flatten(3).transpose(2, 3).flatten(1, 2)  # (batch, boxes, 7)

    def forward(self: Then, x: Tensor) -> Tensor:
        fine = self.stem(x)
        one, two = fine.chunk(2, 1)
        coarse = self.down(torch.cat([one, two + self.bottleneck(two)], 1))
        coarse = self.pool(torch.cat([coarse, F.max_pool2d(coarse, 3, 1, 1)], 1))
        both = torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1)
        found = torch.cat([predictions(self.coarse_head(coarse)), predictions(self.fine_head(both))], 1)
        return torch.cat([found[..., :2].sigmoid(), found[..., 2:4].exp(), found[..., 4:]], -1)

    layers = {
        "stem": nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.SiLU()),
        "bottleneck": nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.SiLU()),
        "down": nn.Conv2d(16, 12, 3, stride=2, padding=1),
        "pool": conv(24, 20, 1),
        "coarse_head": conv(20, 21, 1),
        "fine_head": conv(36, 21, 1),
    }
    return Then(forward, **layers), images()


class Attention(nn.Module):
    """Attention as many write it: one linear layer for all three, and its widths as numbers of its own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, length, self.dim))


class Separate(nn.Module):
    """Attention with a layer for each of the three; the heads are found by dividing."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:-1], self.heads, y.shape[-1] // self.heads).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        return self.out((torch.einsum("bhid,bhjd->bhij", query, key).softmax(-1) @ value).transpose(1, 2).flatten(2))


class Words(nn.Module):
    """Tied embeddings, positions as a raw parameter, a token of its own."""

    def __init__(self, attention: nn.Module, dim: int) -> None:
        super().__init__()
        self.token = nn.Embedding(11, dim)
        self.first = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 6, dim))
        self.norm, self.attention = nn.LayerNorm(dim), attention
        self.inner, self.outer = nn.Linear(dim, 20), nn.Linear(20, dim)
        self.decoder = nn.Linear(dim, 11, bias=False)
        self.decoder.weight = self.token.weight

    def forward(self, words: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(words), -1, -1), self.token(words)], 1) + self.position
        x = x + self.attention(self.norm(x))
        return self.decoder(x + self.outer(F.gelu(self.inner(x))))


@family
def packed_attention() -> Case:
    return Words(Attention(24, 3), 24), torch.randint(11, (2, 5))


@family
def separate_attention() -> Case:
    return Words(Separate(24, 4), 24), torch.randint(11, (2, 5))


@family
def torchs_encoder() -> Case:
    layer = nn.TransformerEncoderLayer(24, 4, 20, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Linear(5, 24), nn.TransformerEncoder(layer, 2), nn.Linear(24, 3)), torch.randn(2, 6, 5)


@family
def attention_of_the_inputs() -> Case:
    def forward(self: Then, x: Tensor) -> Tensor:
        return self.last(self.attention(x, self.key(x), self.value(x), need_weights=False)[0])

    attention = nn.MultiheadAttention(6, 2, kdim=10, vdim=7, batch_first=True)
    layers = {
        "key": nn.Linear(6, 10),
        "value": nn.Linear(6, 7),
        "last": nn.Sequential(nn.Linear(6, 40), nn.Linear(40, 3)),
    }
    return Then(forward, attention=attention, **layers), torch.randn(2, 5, 6)


def masked_encoder(**hint: bool) -> Case:
    def forward(self: Then, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.last(self.encoder(self.first(x), mask, **hint))

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 20, dropout=0.1, batch_first=True), 2)
    return Then(forward, first=nn.Linear(5, 24), encoder=encoder, last=nn.Linear(24, 3)), torch.randn(2, 6, 5)


FAMILIES |= {"masked_encoder": masked_encoder, "causal_encoder": partial(masked_encoder, is_causal=True)}


@family
def recurrent() -> Case:
    def forward(self: Then, words: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(words))
        x, _ = self.gru(x)
        return self.head(x[:, -1])

    lstm = nn.LSTM(10, 8, 2, bidirectional=True, batch_first=True)
    layers = {"embedding": nn.Embedding(11, 10), "lstm": lstm, "gru": nn.GRU(16, 6, batch_first=True)}
    return Then(forward, **layers, head=nn.Linear(6, 3)), torch.randint(11, (2, 5))


def between(function: Callable[[nn.Module, Tensor], Tensor], other: Callable[[], nn.Module] | None = None) -> Case:
    """Return a model with a function of its layers and of twelve channels between two linear layers."""

    def forward(self: Then, x: Tensor) -> Tensor:
        return self.last(function(self, self.first(x)))

    layers = {"first": nn.Linear(5, 12), "last": nn.Linear(12, 3), **({"other": other()} if other else {})}
    return Then(forward, **layers), torch.randn(2, 6, 5)


def put(self: nn.Module, x: Tensor) -> Tensor:
    return x.transpose(0, 1).index_put((torch.arange(6) > 3,), self.other(x[0, :1])).transpose(0, 1)


def scatter(self: nn.Module, x: Tensor) -> Tensor:
    total = x.sum(-1, keepdim=True)
    return x + torch.zeros_like(total).scatter_add(1, torch.zeros(total.shape, dtype=torch.long), total)


def turn(self: nn.Module, x: Tensor) -> Tensor:
    angles = torch.polar(torch.ones(6, 1), torch.arange(6.0).view(6, 1)).to(torch.complex128)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * angles).flatten(-2)


def dense() -> nn.Module:
    return nn.Linear(12, 12)


BETWEEN = {
    "added by index": (lambda self, x: x.index_add(1, torch.tensor([0, 0, 3]), self.other(x[:, :3])), dense),
    "put by index": (lambda self, x: x.index_put((torch.tensor(0), torch.tensor([0, 3])), self.other(x[0, :1])), dense),
    "put by a mask": (put, dense),
    "scattered": (scatter,),
    "turned by complex numbers": (turn,),
    "fourier over places": (lambda self, x: torch.fft.fft(x, dim=1).real,),
    "solved": (lambda self, x: torch.linalg.solve_triangular(torch.eye(6).to(x) * 2, x, upper=True),),
    "spectral norm": (lambda self, x: self.other(x), lambda: parametrizations.spectral_norm(dense())),
}
FAMILIES |= {name: lambda own=own: between(*own) for name, own in BETWEEN.items()}


CLASSES = 5
_MOBILE = partial(InvertedResidualConfig, stride=2, dilation=1, width_mult=1)


def _mobilenet() -> Case:
    blocks = [_MOBILE(8, 3, 8, 8, True, "RE"), _MOBILE(8, 3, 20, 12, False, "RE"), _MOBILE(12, 5, 32, 16, True, "HS")]
    return models.MobileNetV3(blocks, 24, CLASSES), images(32)


ARCHITECTURES: dict[str, Callable[[], Case]] = {
    "mobilenet": _mobilenet,
    "convnext": lambda: (
        models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.1, 1, CLASSES),
        images(16),
    ),
    "vit": lambda: (models.VisionTransformer(16, 8, 2, 4, 32, 40, num_classes=CLASSES), images(16)),
    "swin": lambda: (models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [2, 2], num_classes=CLASSES), images(16)),
}

CASES = FAMILIES | ARCHITECTURES
