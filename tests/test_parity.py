"""Equal to transformers' SegFormer, stage by stage, with every parameter and statistic randomised."""

import pytest
import torch
from torch import nn

import segformer_lite as sl

transformers = pytest.importorskip("transformers", reason="the peer of the parity test")

CONFIGS = {
    "b0": dict(hidden_sizes=[32, 64, 160, 256], decoder_hidden_size=256),
    "b1": dict(hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=256),
}
SIZES = [(64, 67), (250, 333)]  # test_pretrained.py has the square of 512


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter and every batch-norm statistic away from 0 and 1, where a missing map would hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            fan_in = max(1, value[0].numel()) if value.ndim > 1 else 25
            scaled = (2 * noise - 1) * (3 / fan_in) ** 0.5
            norm = name.endswith(("running_var",)) or (value.ndim == 1 and name.endswith("weight"))
            value.copy_(0.5 + noise if norm else scaled)
    return model


def pair(variant: str) -> tuple[nn.Module, sl.SegFormer]:
    config = transformers.SegformerConfig(num_labels=150, **CONFIGS[variant])
    theirs = randomise(transformers.SegformerForSemanticSegmentation(config)).eval()
    ours = sl.SegFormer.from_pretrained(theirs.state_dict())
    return theirs.double(), ours.double()


def outputs(theirs: nn.Module, ours: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(theirs, ours) for the four stages and the logits."""
    with torch.no_grad():
        out = theirs(x, output_hidden_states=True)
        features = ours.encoder(x)
        return [*zip(out.hidden_states, features, strict=True), (out.logits, ours.decoder(features))]


@pytest.fixture(scope="module", params=list(CONFIGS))
def models(request):
    return pair(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_stages_and_logits_are_equal(models, size):
    theirs, ours = models
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = outputs(theirs, ours, x)
    for a, b in reference:
        assert a.shape == b.shape and (a - b).abs().max() < 1e-8
    with torch.no_grad():
        single = ours.float()(x.float())
        ours.double()
    logits = reference[-1][0]
    assert (single - logits).norm() / logits.norm() < 1e-4


class Doubled(nn.Module):
    """A wrong scale in front of the softmax, as when sqrt(d) is forgotten or taken of the wrong d."""

    def __init__(self, q: nn.Module):
        super().__init__()
        self.q = q

    def forward(self, x):
        return 2 * self.q(x)


FAULTS = {
    "eps of the block norms": lambda m: setattr(m.encoder.stages[0].blocks[0].norm1, "eps", 1e-6),
    "scale of the attention": lambda m: setattr(m.encoder.stages[3].blocks[0].attention, "q",
                                                Doubled(m.encoder.stages[3].blocks[0].attention.q)),
    "norm after the reduction": lambda m: setattr(m.encoder.stages[0].blocks[0].attention, "norm", nn.Identity()),
    "norm at a stage's end": lambda m: setattr(m.encoder.stages[2], "norm", nn.Identity()),
    "order of the concatenation": lambda m: m.decoder.fuse.weight.data.copy_(
        torch.cat(m.decoder.fuse.weight.data.chunk(4, dim=1)[::-1], dim=1)),
    "batch-norm statistics": lambda m: m.decoder.norm.running_mean.zero_(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault):
    theirs, ours = pair("b0")
    FAULTS[fault](ours)
    x = torch.randn(1, 3, 64, 67, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert max((a - b).abs().max() for a, b in outputs(theirs, ours, x)) > 1e-8
