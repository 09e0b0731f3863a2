"""The building blocks of SegFormer as released: patch embedding, efficient attention, Mix-FFN.

Token maps keep their two spatial axes, (B, H, W, C): the N = H * W tokens of the paper, never flattened
without need. `permute` to (B, C, H, W) for a convolution is a view, not a copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available()


def linear_map(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of every token, (B, H, W, C) -> (B, H, W, C'); on a CPU in float32 as the 1x1 convolution that it is.

    The same function, rounded differently, and on an AMD processor the faster way: PyTorch hands convolutions to
    oneDNN, if there are several threads, and products in float32 to MKL. Chapter 14 measures both.
    """
    other = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()  # products of oneDNN; the compiler's own
    tokens_on_cpu = x.ndim == 4 and x.dtype == torch.float32 and x.device.type == "cpu"
    if other or not tokens_on_cpu or not ONEDNN or torch.get_num_threads() == 1:
        return F.linear(x, weight, bias)
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)  # a view, where tokens lie in order
    return F.conv2d(x, weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Linear(nn.Linear):
    """`nn.Linear` for maps of tokens, (B, H, W, in_features) -> (B, H, W, out_features), by `linear_map`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear_map(x, self.weight, self.bias)


class OverlapPatchEmbed(nn.Module):
    """Cut an image (or feature map) into overlapping patches and embed each as one token.

    Arguments: `in_channels` and `dim` channels in and out; `kernel` and `stride` in pixels (paper: K, S;
    the padding is K // 2). (B, in_channels, H, W) -> (B, H', W', dim) with H' = ceil(H / stride) for the
    released settings 7/4 and 3/2. Source: section 3.1, "Overlapped Patch Merging".
    """

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class EfficientSelfAttention(nn.Module):
    """Multi-head self-attention whose keys and values are a shortened copy of the tokens.

    Arguments: `dim` channels C, `heads` (C is divisible by it), `stride` s in tokens per axis: s x s tokens
    merge into one key, so the paper's sequence reduction is R = s². (B, H, W, C) -> same; cost O(N² / R).
    Tokens in the last H mod s rows (W mod s columns) are queries but never keys.
    Source: section 3.1, equations 1 and 2 (the strided convolution is the released form of equation 2).
    """

    def __init__(self, dim: int, heads: int, stride: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got dim={dim} and heads={heads}")
        self.heads, self.stride = heads, stride
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        if stride > 1:
            self.reduce = nn.Conv2d(dim, dim, kernel_size=stride, stride=stride)
            self.norm = nn.LayerNorm(dim)
        self.proj = Linear(dim, dim)

    def shorten(self, x: Tensor) -> Tensor:
        """The tokens that keys and values are made from: (B, H, W, C) -> (B, H // s, W // s, C)."""
        if self.stride == 1:
            return x
        return self.norm(self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q (B, heads, N, C / heads); K and V (B, heads, N / R, C / heads)."""
        b, _, _, c = x.shape
        q = self.q(x).view(b, -1, self.heads, c // self.heads).transpose(1, 2)
        k, v = self.kv(self.shorten(x)).view(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x)
        out = F.scaled_dot_product_attention(q, k, v)  # Softmax(Q Kᵀ / sqrt(d_head)) V
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class MixFFN(nn.Module):
    """Feed-forward network with a depth-wise 3x3 convolution in the middle; its zero padding leaks position.

    Arguments: `dim` channels C, `expansion` E: the hidden width is E * C. (B, H, W, C) -> same.
    The residual of equation 3 is added by `TransformerBlock`. Source: section 3.1, equation 3.
    """

    def __init__(self, dim: int, expansion: int):
        super().__init__()
        hidden = dim * expansion
        self.fc1 = Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x).permute(0, 3, 1, 2)
        x = self.dwconv(x).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))


class DropPath(nn.Module):
    """Skip a residual branch for whole samples while training, with probability `rate`; rescale the rest.

    (B, H, W, C) -> same. Source: stochastic depth, Huang et al. 2016.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        # torch.rand, not bernoulli_: its CPU stream is the same on every platform.
        mask = torch.rand((len(x), 1, 1, 1), device=x.device) < keep
        return x * mask.to(x.dtype) / keep


class TransformerBlock(nn.Module):
    """Attention, then Mix-FFN; each normalised before (pre-norm) and added to what came in.

    Arguments: `dim`, `heads`, `stride`, `expansion` as in the parts; `drop_path` rate; `attention` and `ffn`:
    classes with the signatures of `EfficientSelfAttention` and `MixFFN` to put in their place; `norm_eps` of
    the two norms. (B, H, W, C) -> same. Source: figure 2; the order of norms is that of the released network.
    """

    def __init__(self, dim: int, heads: int, stride: int, expansion: int, drop_path: float = 0.0,
                 attention=EfficientSelfAttention, ffn=MixFFN, norm_eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = attention(dim, heads, stride)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.ffn = ffn(dim, expansion)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))
