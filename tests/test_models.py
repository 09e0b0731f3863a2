"""The networks: exact sizes, any image size, the folded decoder, learners' own blocks, compile and autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import segformer_lite as sl
from segformer_lite.models import blocks, variants
from segformer_lite.models.blocks import Linear


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Counted on the released architecture (E = 4): encoder, total with 150 and with 19 classes.
COUNTS = {
    "segformer_b0": (3_319_392, 3_752_694, 3_719_027),
    "segformer_b1": (13_151_424, 13_715_798, 13_682_131),
    "segformer_b2": (24_196_288, 27_461_974, 27_361_235),
    "segformer_b3": (44_072_128, 47_337_814, 47_237_075),
    "segformer_b4": (60_842_688, 64_108_374, 64_007_635),
    "segformer_b5": (81_443_008, 84_708_694, 84_607_955),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_released_ones(name):
    with torch.device("meta"):
        ade, cityscapes = sl.create_model(name, 150), sl.create_model(name, 19)
    assert (count(ade.encoder), count(ade), count(cityscapes)) == COUNTS[name]


def test_report_encoder_count():
    assert count(sl.create_model("segformer_b0_report", 81).encoder) == 9_972_832


@pytest.mark.parametrize("size", [(32, 32), (65, 97), (64, 67), (100, 40)])
def test_any_size_rounds_up(size):
    model = sl.create_model("segformer_b0", 5).eval()
    x = torch.randn(2, 3, *size)
    features = model.encoder(x)
    expected, side = [], size
    for divide in (4, 2, 2, 2):
        side = tuple(-(-s // divide) for s in side)
        expected.append((2, model.encoder.dims[len(expected)], *side))
    assert [tuple(f.shape) for f in features] == expected
    assert model(x).shape == (2, 5, *expected[0][2:])
    labels = model.predict(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    assert labels.shape == (2, *size) and labels.dtype == torch.int64


def test_small_image_is_refused_in_words():
    with pytest.raises(ValueError, match="31 x 64 px.*at least 32 px"):
        sl.create_model("segformer_b0", 5)(torch.randn(1, 3, 31, 64))


@pytest.mark.parametrize("option", ["patch_embed", "attention", "ffn", "decoder"])
def test_an_object_where_a_class_belongs_is_named(option):
    with pytest.raises(ValueError, match=rf"{option} must be the class itself.*{option}=Linear, not Linear\("):
        sl.create_model("segformer_b0", 5, **{option: torch.nn.Linear(3, 3)})


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="segformer_b0"):
        sl.create_model("segformer_b6", 5)
    with pytest.raises(ValueError, match="uint8"):
        sl.preprocess(torch.rand(1, 3, 32, 32))


def test_preprocess_is_imagenet_normalisation():
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(sl.preprocess(images)[0, :, 1, 1], expected)


def test_preprocess_makes_its_constants_once():
    """To copy them to a GPU for every batch would wait for all that the GPU has still to do."""
    with torch.inference_mode():
        sl.preprocess(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with torch.profiler.profile() as profile:
        x = sl.preprocess(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).requires_grad_()
    assert not [event.name for event in profile.events() if event.name in ("aten::lift_fresh", "aten::detach_")]
    sl.create_model("segformer_b0", 2)(x).sum().backward()  # made without autograd at first, they do not break it
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [1, 16, 17, 150])
def test_label_map_is_the_largest_of_the_upsampled_logits(classes):
    logits = torch.randn(2, classes, 5, 7, generator=torch.Generator().manual_seed(0)).round()  # with ties
    expected = sl.models.upsample(logits, (20, 28)).argmax(1)
    assert torch.equal(sl.models.label_map(logits, (20, 28)), expected)


def test_predicted_labels_may_be_changed():
    labels = sl.create_model("segformer_b0", 3).predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    labels[0, 0, 0] = 255


def test_predict_accepts_bytes_or_normalised_and_keeps_the_mode():
    model = sl.create_model("segformer_b0", 7).train()
    images = torch.randint(0, 256, (2, 3, 48, 56), dtype=torch.uint8)
    assert torch.equal(model.predict(images), model.predict(sl.preprocess(images)))
    assert model.training


@pytest.mark.parametrize("name", ["segformer_b0", "segformer_b2"])
def test_folded_decoder_is_the_equation_forward_and_backward(name):
    torch.manual_seed(0)
    decoder = sl.create_model(name, 6).decoder.double().train()
    decoder.dropout.p = 0.0
    nn.init.normal_(decoder.norm.weight)
    features = [torch.randn(2, p.in_features, -(-37 // 2**i), -(-50 // 2**i), dtype=torch.float64, requires_grad=True)
                for i, p in enumerate(decoder.linear)]
    inputs = [*features, *decoder.parameters()]
    weights = torch.randn(2, 6, 37, 50, dtype=torch.float64)  # a plain sum would hide errors before batch norm
    folded, unfolded = decoder(features), decoder.forward_unfolded(features)
    torch.testing.assert_close(folded, unfolded, rtol=0, atol=1e-10)
    for a, b in zip(torch.autograd.grad((folded * weights).sum(), inputs),
                    torch.autograd.grad((unfolded * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_initialisation_is_the_released_one():
    torch.manual_seed(0)
    block = sl.create_model("segformer_b0", 5).encoder.stages[3].blocks[0]
    assert abs(block.ffn.dwconv.weight.std().item() - (2 / 9) ** 0.5) < 0.02
    assert abs(block.attention.q.weight.std().item() - 0.02) < 0.002
    assert block.ffn.dwconv.bias.abs().max() == 0


def test_drop_path_rises_linearly_and_drops_whole_samples():
    model = sl.create_model("segformer_b0", 5)
    rates = [b.drop_path.rate for s in model.encoder.stages for b in s.blocks]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])
    torch.manual_seed(0)
    drop = sl.models.blocks.DropPath(0.25).train()
    out = drop(torch.ones(4000, 1, 1, 1)).flatten()
    assert out.unique().tolist() == pytest.approx([0, 4 / 3]) and abs((out == 0).float().mean() - 0.25) < 0.03


def test_report_model_reads_strips_and_needs_n_divisible_by_r():
    model = sl.create_model("segformer_b0_report", 4).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match="N divisible by R"):
        model(torch.randn(1, 3, 72, 72))


def test_strip_reduction_is_a_flat_convolution():
    torch.manual_seed(0)
    strip = variants.StripReduction(8, 2, 2)
    x = torch.randn(1, 6, 8, 8)
    conv = nn.functional.conv2d(x.permute(0, 3, 1, 2), strip.k.weight.view(8, 1, 4, 8).permute(0, 3, 1, 2),
                                strip.k.bias, stride=(1, 4))
    torch.testing.assert_close(strip.k(x.reshape(1, 12, 32)), conv.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_own_blocks_go_into_the_real_network():
    class NoAttention(nn.Identity):
        pass

    model = sl.create_model("segformer_b0", 5, attention=NoAttention, ffn=variants.MLPFFN)
    kinds = {type(m) for m in model.modules()}
    assert NoAttention in kinds and variants.MLPFFN in kinds and sl.MixFFN not in kinds
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5, 8, 8)


@pytest.mark.parametrize("padding_mode", ["circular", "replicate", "reflect"])
def test_without_zero_padding_a_constant_image_stays_constant(padding_mode):
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 5).eval()
    image = torch.ones(1, 3, 128, 128)
    assert model.encoder(image)[3].std(dim=(2, 3)).max() > 1e-2  # zero padding leaks position
    model = variants.set_padding(model, padding_mode)
    assert model.encoder(image)[3].std(dim=(2, 3)).max() < 1e-4


def test_learned_position_is_resized_to_the_map():
    embed = variants.LearnedPosition(3, 8, 7, 4, grid=(8, 8))
    plain = sl.OverlapPatchEmbed(3, 8, 7, 4)
    plain.load_state_dict({k: v for k, v in embed.state_dict().items() if k != "position"})
    x = torch.randn(1, 3, 64, 48)
    added = embed(x) - plain(x)
    assert added.shape == (1, 16, 12, 8) and added.std() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_stays_close(dtype):
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        low = model(x)
    assert torch.allclose(low.float(), model(x), atol=0.1)


def operations(function):
    """Names of the operations of a call."""
    class Noted(TorchDispatchMode):
        names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(str(func).split(".")[1])
            return func(*args, **(kwargs or {}))

    with Noted() as noted:
        function()
    return noted.names


TOKENS = {  # maps as they lie in memory, (B, H, W, 24)
    "many": lambda: torch.randn(2, 32, 32, 24), "none": lambda: torch.randn(0, 5, 7, 24),
    "one for all": lambda: torch.randn(1, 1, 1, 24).expand(2, 5, 7, 24),
    "in order": lambda: torch.randn(2, 5, 7, 24), "from a map": lambda: torch.randn(2, 24, 5, 7).permute(0, 2, 3, 1),
    "every second row": lambda: torch.randn(2, 10, 7, 24)[:, ::2], "one token": lambda: torch.randn(3, 1, 1, 24),
    "one row": lambda: torch.randn(1, 1, 7, 24), "double": lambda: torch.randn(2, 5, 7, 24).double(),
    "a sequence": lambda: torch.randn(2, 35, 24),
}


@pytest.fixture
def two_threads():  # with one, PyTorch does not take oneDNN's convolution, and we the product
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("made", TOKENS)
def test_a_linear_map_of_tokens_is_a_matrix_product_forward_and_backward(made, two_threads):
    torch.manual_seed(0)
    compare_with_product(TOKENS[made]())


def compare_with_product(x):
    layer = Linear(24, 40).to(x.dtype)
    x.requires_grad_()
    ours, theirs = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(), "attention takes views of it"
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (x, *layer.parameters())) for y in (ours, theirs))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not blocks.ONEDNN, reason="this PyTorch comes without oneDNN")
def test_linear_maps_are_convolutions_on_a_cpu_in_float32_alone(two_threads):
    layer, x = Linear(24, 40), torch.randn(2, 5, 7, 24)
    assert "convolution" in operations(lambda: layer(x)) and "addmm" not in operations(lambda: layer(x))
    torch.set_num_threads(1)
    assert "convolution" not in operations(lambda: layer(x))
    torch.set_num_threads(2)
    assert "convolution" not in operations(lambda: layer.double()(x.double()))
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert "convolution" not in operations(lambda: layer(x))
    program = torch.export.export(layer, (x,))  # and so in ONNX, and in compiled code
    assert not any("conv" in str(node.target) for node in program.graph.nodes)


def test_compile_gives_the_same_numbers():
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 5).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
