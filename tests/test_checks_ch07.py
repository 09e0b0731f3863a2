"""Chapter 07's checks accept the right answers and reject the stub and planted mistakes, naming the cause."""

import torch
import torch.nn.functional as F
from checks_table import accepts, complete, rejects, stub
from torch import nn

import segformer_lite as sl
from segformer_lite.course import checks


def upsample_row(row, factor, half=0.5, clamp=True):
    n = len(row)
    position = (torch.arange(n * factor) + half) / factor - half
    position = position.clamp(0, n - 1) if clamp else position
    left = position.floor().long().clamp(0, n - 2)
    return torch.lerp(row[left], row[left + 1], position - left)


def interpolated(row, factor, **how):
    return F.interpolate(row[None, None], scale_factor=factor, **how)[0, 0]


def padded(row, factor):
    return interpolated(F.pad(row, (1, 1)), factor, mode="linear")[factor:-factor]


def fold(first, second, product=lambda v, w: v @ w, bias=lambda v, b, c: v @ b + c):
    b, c = (m.bias if m.bias is not None else torch.zeros(m.out_features) for m in (first, second))
    weight = product(second.weight, first.weight)
    folded = nn.Linear(weight.shape[1], weight.shape[0])
    folded.weight.data, folded.bias.data = weight.data, bias(second.weight, b, c).data
    return folded


class Decoder(nn.Module):
    order, corners, mode, scale, normed, relu, dropped, fuse_bias = -1, False, "bilinear", 1, True, F.relu, True, False

    def __init__(self, in_channels, dim, num_classes):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(c, dim) for c in in_channels)
        self.fuse = nn.Linear(len(in_channels) * dim, dim, bias=self.fuse_bias)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(dim, num_classes, 1)

    def forward(self, features):
        size = [self.scale * n for n in features[0].shape[-2:]]
        how = {"align_corners": self.corners} if self.mode == "bilinear" else {}
        grown = [F.interpolate(m(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size, mode=self.mode, **how)
                 for m, f in zip(self.linear, features)]
        x = self.fuse(torch.cat(grown[::self.order], dim=1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = type(self).relu(self.norm(x)) if self.normed else type(self).relu(x)
        return self.classify(self.dropout(x) if self.dropped else x)


class WithoutNorm(Decoder):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.norm = nn.Identity()


class SingleNumbersDropped(Decoder):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.dropout = nn.Dropout(0.1)


class SumDecoder(nn.Module):
    corners, scale, normed, relu = False, 1, True, F.relu

    def __init__(self, in_channels, dim, num_classes):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(c, dim) for c in in_channels)
        self.norm = nn.BatchNorm2d(dim)
        self.classify = nn.Conv2d(dim, num_classes, 1)

    def forward(self, features):
        size = [self.scale * n for n in features[0].shape[-2:]]
        x = sum(F.interpolate(m(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size, mode="bilinear",
                              align_corners=self.corners) for m, f in zip(self.linear, features))
        return self.classify(type(self).relu(self.norm(x) if self.normed else x))


def changed(cls, **attributes):
    return type(cls.__name__, (cls,), attributes)


def folded_network(model, decoder=SumDecoder, order=-1, transposed=False, bias=lambda v, b: v @ b, stats=True,
                   encoder=True):
    network = sl.create_model("segformer_b0", model.num_classes, decoder=decoder)
    old, new = model.decoder, network.decoder
    if encoder:
        network.encoder.load_state_dict(model.encoder.state_dict())
    if stats:
        new.norm.load_state_dict(old.norm.state_dict())
    else:
        new.norm.weight.data, new.norm.bias.data = old.norm.weight.data, old.norm.bias.data
    new.classify.load_state_dict(old.classify.state_dict())
    for mine, theirs, fuse in zip(new.linear, old.linear, old.fuse.weight.chunk(4, dim=1)[::order]):
        fuse = fuse.T if transposed else fuse
        mine.weight.data, mine.bias.data = (fuse @ theirs.weight).detach(), bias(fuse, theirs.bias).detach()
    return network


def in_place(model):
    network = folded_network(model)
    model.decoder.linear[0].weight.data.zero_()
    return network


RIGHT = [
    (checks.upsample_row, upsample_row),
    (checks.fold_linear, fold),
    (checks.mlp_decoder, Decoder),
    (checks.folded_network, folded_network),
]
WRONG = [
    (checks.upsample_row, lambda r, f: interpolated(r, f, mode="linear", align_corners=True), "align_corners=True"),
    (checks.upsample_row, lambda r, f: interpolated(r, f, mode="nearest"), "nearest"),
    (checks.upsample_row, lambda r, f: upsample_row(r, f, half=0), "half a pixel"),
    (checks.upsample_row, lambda r, f: upsample_row(r, f, clamp=False), "continued"),
    (checks.upsample_row, padded, "zeros"),
    (checks.upsample_row, lambda r, f: upsample_row(r, f)[:-1], "expected shape"),
    (checks.fold_linear, lambda a, b: fold(a, b, bias=lambda v, b, c: c), "first bias is forgotten"),
    (checks.fold_linear, lambda a, b: fold(a, b, bias=lambda v, b, c: v @ b), "second bias"),
    (checks.fold_linear, lambda a, b: fold(a, b, bias=lambda v, b, c: 0 * c), "both biases"),
    (checks.fold_linear, lambda a, b: fold(a, b, bias=lambda v, b, c: b + c), "through the second matrix"),
    (checks.fold_linear, lambda a, b: fold(a, b, product=lambda v, w: w @ v), "wrong order"),
    (checks.fold_linear, lambda a, b: fold(a, b, product=lambda v, w: (v @ w).T), "transposed"),
    (checks.fold_linear, lambda a, b: nn.Sequential(a, b), "expected an nn.Linear"),
    (checks.fold_linear, lambda a, b: nn.Linear(a.out_features + 1, b.out_features), "the weight of a Linear"),
    (checks.mlp_decoder, stub, None),
    (checks.mlp_decoder, changed(Decoder, order=1), r"\[F4, F3, F2, F1\]"),
    (checks.mlp_decoder, changed(Decoder, corners=True), "align_corners=True"),
    (checks.mlp_decoder, changed(Decoder, mode="nearest"), "nearest"),
    (checks.mlp_decoder, changed(Decoder, scale=4), "input image"),
    (checks.mlp_decoder, changed(Decoder, normed=False), "batch norm is not used"),
    (checks.mlp_decoder, changed(Decoder, relu=lambda x: x), "ReLU after the batch norm is forgotten"),
    (checks.mlp_decoder, changed(Decoder, dropped=False), "dropout"),
    (checks.mlp_decoder, changed(Decoder, fuse_bias=True), "bias=False"),
    (checks.mlp_decoder, WithoutNorm, "batch norm is forgotten"),
    (checks.mlp_decoder, SingleNumbersDropped, "must be an nn.Dropout2d.*got Dropout;"),
    (checks.mlp_decoder, Decoder((4, 6, 8, 10), 12, 5), "the class itself, without brackets"),
    (checks.folded_network, lambda m: m, "new network"),
    (checks.folded_network, in_place, "was changed"),
    (checks.folded_network, lambda m: sl.create_model("segformer_b0", 5), "parameters fewer"),
    (checks.folded_network, lambda m: folded_network(m, encoder=False), "encoder's maps"),
    (checks.folded_network, lambda m: folded_network(m, order=1), r"\[F4, F3, F2, F1\]"),
    (checks.folded_network, lambda m: folded_network(m, transposed=True), "transposed"),
    (checks.folded_network, lambda m: folded_network(m, bias=lambda v, b: b), "did not go through"),
    (checks.folded_network, lambda m: folded_network(m, bias=lambda v, b: 0 * b), "are lost"),
    (checks.folded_network, lambda m: folded_network(m, stats=False), "running mean"),
    (checks.folded_network, lambda m: folded_network(m, changed(SumDecoder, corners=True)), "align_corners=True"),
    (checks.folded_network, lambda m: folded_network(m, changed(SumDecoder, scale=4)), "input image"),
    (checks.folded_network, lambda m: folded_network(m, changed(SumDecoder, normed=False)), "batch norm"),
    (checks.folded_network, lambda m: folded_network(m, changed(SumDecoder, relu=lambda x: x)), "ReLU"),
]

test_right_answers_pass = accepts(RIGHT)
test_wrong_answers_are_named = rejects(RIGHT, WRONG)
test_every_check_is_tested_both_ways = complete(RIGHT, WRONG)
