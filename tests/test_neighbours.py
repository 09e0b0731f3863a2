"""The trained neighbours: any image size, torchvision's numbers where it has the part, and each network's own idea."""

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import segformer_lite as sl
from segformer_lite.models import FCN8s, ResNet, SegNet, UNet, ViT, cnn, resnet, upsample
from segformer_lite.training.losses import segmentation_loss
from segformer_lite.training.schedule import make_optimizer

NAMES = ["fcn8s", "segnet", "unet", "pspnet", "deeplabv3plus", "setr"]
CHECKPOINT_FILES = {"config.json", "log.jsonl", "loss.png", "checkpoint.pt", "model.safetensors", "report.json"}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def awake(module: nn.Module) -> nn.Module:
    """Evaluation mode with batch norms that do something: random statistics, gains and biases."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    return module.eval()


def copy_in_order(source: nn.Module, target: nn.Module, skip: tuple[str, ...] = ()) -> None:
    """Give `target` the values of `source`, one after the other; their shapes must agree."""
    values = {name: value for name, value in source.state_dict().items() if not name.startswith(skip or ("-",))}
    names = target.state_dict()
    target.load_state_dict(dict(zip(names, values.values(), strict=True)))


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (65, 97)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_from_32_trains_and_predicts(name, size):
    torch.manual_seed(0)
    model = sl.create_model(name, 5).train()
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    logits = model(sl.preprocess(images))  # preprocess gives channels last, as in training
    assert logits.shape[:2] == (2, 5) and min(logits.shape[-2:]) * 8 >= min(size)
    upsample(logits, size).square().mean().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not dead
    labels = model.predict(images)
    assert labels.shape == (2, *size) and labels.dtype == torch.int64 and model.training


def test_one_picture_a_batch_cannot_train_a_mean_over_the_image():
    for name in ("pspnet", "deeplabv3plus"):
        model = sl.create_model(name, 3)
        with pytest.raises(ValueError, match="at least 2 pictures a batch"):
            model.train()(torch.zeros(1, 3, 64, 64))
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape[:2] == (1, 3)


@pytest.mark.parametrize("name", NAMES)
def test_encoder_gives_its_stages_finest_first(name):
    model = sl.create_model(name, 5).eval()
    kept = []
    for stage in model.encoder.stages:
        stage.register_forward_hook(lambda *call: kept.append(call[2]))
    features = model.encoder(torch.randn(1, 3, 65, 97))
    assert all(torch.equal(a, b) for a, b in zip(kept, features, strict=True))
    assert tuple(f.shape[1] for f in features) == model.encoder.dims
    areas = [f.shape[-1] * f.shape[-2] for f in features]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_small_image_is_refused_in_words(name):
    with pytest.raises(ValueError, match="31 x 64 px.*at least 32 px"):
        sl.create_model(name, 5)(torch.randn(2, 3, 31, 64))


@pytest.mark.parametrize("name", NAMES)
def test_teaching_size(name):
    model = sl.create_model(name, 9)
    total, *parts = (sl.analysis.cost.macs(model, 96, part) for part in ("", "encoder", "decoder"))
    assert 0.8e6 < count(model) < 3.8e6 and 0.1e9 < total < 0.35e9 and sum(parts) == total


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_start_as_he_says(name):
    torch.manual_seed(0)
    model = sl.create_model(name, 9)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    large = max(convolutions, key=count)
    fan_in = 9 * large.in_channels
    assert large.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_stays_close(name):
    torch.manual_seed(0)
    model = awake(sl.create_model(name, 5))
    x = sl.preprocess(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(x).float()
    # Rounding moves some maxima to a neighbour, and SegNet's unpooling moves with them.
    assert (low - exact).abs().mean() < (0.1 if name == "segnet" else 0.02) * exact.std()


@pytest.mark.parametrize("name", NAMES)
def test_learns_two_pictures_by_heart(name):
    torch.manual_seed(0)
    images = torch.randint(0, 60, (2, 3, 48, 48), dtype=torch.uint8)
    labels = torch.zeros(2, 48, 48, dtype=torch.int64)
    for i, (top, left, colour) in enumerate([(8, 6, 1), (20, 18, 2)]):
        images[i, colour, top:top + 20, left:left + 24] += 150
        labels[i, top:top + 20, left:left + 24] = colour
    model = sl.create_model(name, 3).train()
    optimizer = make_optimizer(model, lr=1e-3)
    for _ in range(40):
        loss = segmentation_loss(model(sl.preprocess(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for _ in range(20):  # let the running statistics of batch norm catch up with the weights
        model(sl.preprocess(images))
    predicted = model.predict(images)
    for colour in (1, 2):
        both = ((predicted == colour) & (labels == colour)).sum() / ((predicted == colour) | (labels == colour)).sum()
        assert both > 0.8


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return sl.data.make_sample("coco", tmp_path_factory.mktemp("sample") / "coco", count=12)


@pytest.mark.parametrize("name", NAMES)
def test_trained_saved_loaded_evaluated_like_any_other(name, sample, tmp_path):
    config = sl.TrainConfig(data=str(sample), model=name, size=32, batch_size=4, steps=2, warmup=1, augment="flip",
                            device="cpu", folder=str(tmp_path / "run"))
    run = sl.train(config, progress=False)
    assert {p.name for p in run.folder.iterdir()} == CHECKPOINT_FILES
    model, description = sl.load_model(run.folder)
    assert description["model"] == name
    val = sl.data.open_dataset(str(sample), "val")
    assert sl.evaluate(model, val, 32, progress=False).summary() == run.report.summary()
    image = val[0][0].as_subclass(torch.Tensor)[None]
    assert torch.equal(model.predict(image), run.model.predict(image))


# --- FCN-8s, SegNet, U-Net -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 96])
def test_fcn_gradient_in_bf16_is_that_in_fp32(size):
    """At 32 and 64 px the map is narrower than fc6's kernel, where torch's own gradient in bf16 is wrong."""
    torch.manual_seed(0)
    decoder = cnn.FCNDecoder((4, 4, 8, 16, 128), 256, 5).eval()
    features = [torch.randn(4, c, size >> k, size >> k) for k, c in enumerate((4, 4, 8, 16, 128))]
    gradients = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = decoder(features).float().square().mean()
        gradients.append(torch.autograd.grad(loss, decoder.fc6[0].weight)[0])
    assert (gradients[1] - gradients[0]).norm() < 0.3 * gradients[0].norm()


def test_vgg16_is_torchvisions():
    torch.manual_seed(0)
    theirs = awake(torchvision.models.vgg16_bn(weights=None).features)
    convolutions = [m for m in theirs if isinstance(m, nn.Conv2d)]
    ours = cnn.vgg16(64).eval()
    assert count(ours) == count(theirs) - sum(m.out_channels for m in convolutions)  # no bias before batch norm
    for m in convolutions:
        m.bias = None
    copy_in_order(theirs, ours)
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(cnn.max_pool(ours(x)[-1])[0], theirs(x), rtol=1e-4, atol=1e-5)


def test_fcn_decoder_starts_bilinear():
    up = cnn.bilinear_up(3)
    x = torch.randn(2, 3, 6, 7)
    inside = (..., slice(1, -1), slice(1, -1))  # beyond the border a transposed convolution sees zeros
    torch.testing.assert_close(up(x)[inside], upsample(x, (12, 14))[inside])


def test_fcn_sums_the_score_maps():
    torch.manual_seed(0)
    decoder = awake(FCN8s(4).decoder)
    features = [torch.rand(1, d, -(-65 // 2**i), -(-97 // 2**i)) for i, d in enumerate(FCN8s(4).encoder.dims)]
    total = decoder(features)
    alone = []
    for level in ("score3", "score4", "score7"):
        part = copy.deepcopy(decoder)
        for other in {"score3", "score4", "score7"} - {level}:
            nn.init.zeros_(getattr(part, other).weight)
        alone.append(part(features))
    assert total.shape == (1, 4, 9, 13) and all(a.std() > 0.01 for a in alone)
    torch.testing.assert_close(sum(alone), total)


def test_segnet_unpools_to_where_the_maxima_were():
    torch.manual_seed(0)
    model = SegNet(4).eval()
    kept = []
    model.decoder.stages[-1].register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0]))
    x = torch.randn(1, 3, 65, 97)
    model(x)
    deepest = model.encoder(x)[-1]
    pooled = nn.functional.max_pool2d(deepest, 2, ceil_mode=True)
    unpooled, = kept
    assert torch.equal(unpooled.amax((2, 3)), deepest.amax((2, 3)))
    assert torch.equal(unpooled[unpooled != 0], deepest[unpooled != 0])  # values stay where they were
    assert (unpooled != 0).sum() == (pooled != 0).sum()  # and nothing else is handed over


def test_segnet_needs_the_indices():
    torch.manual_seed(0)
    model = awake(SegNet(4))
    x, other = torch.randn(2, 1, 3, 64, 64)
    features, indices = model.encoder(x, return_indices=True)
    _, wrong = model.encoder(other, return_indices=True)
    pool5, sizes = cnn.max_pool(features[-1])[0], [f.shape[-2:] for f in features]
    logits = model.decoder(pool5, indices, sizes)
    assert torch.equal(logits, model(x))
    for level in range(5):
        mixed = [*indices[:level], wrong[level], *indices[level + 1:]]
        assert (model.decoder(pool5, mixed, sizes) - logits).abs().mean() > 0.01 * logits.std()


def test_segnet_decoder_mirrors_the_encoder():
    def shapes(module):
        return [tuple(m.weight.shape[:2]) for m in module.modules() if isinstance(m, nn.Conv2d)]

    with torch.device("meta"):
        model = SegNet(11, width=64)
    encoder, decoder = shapes(model.encoder), shapes(nn.ModuleList(reversed(model.decoder.stages)))
    assert len(encoder) == len(decoder) + 1 == 13  # the classifier mirrors the first convolution
    assert [(b, a) for a, b in reversed(encoder[1:])] == decoder


def test_unet_has_the_standard_count_at_original_width():
    dims = (64, 128, 256, 512, 1024)
    double = [9 * a * b + 9 * b * b + 4 * b for a, b in zip((3, *dims), dims, strict=False)]  # 4b: two batch norms
    up = [4 * b * a + a for a, b in zip(dims, dims[1:], strict=False)]  # 2 x 2 transposed, with bias
    merge = [9 * 2 * a * a + 9 * a * a + 4 * a for a in dims[:-1]]
    expected = sum(double) + sum(up) + sum(merge) + 64 * 2 + 2
    with torch.device("meta"):
        model = UNet(2, width=64)
    assert count(model) == expected == 31_037_698


def test_unet_hands_features_over_whole():
    torch.manual_seed(0)
    model = awake(UNet(4))
    features = model.encoder(torch.randn(1, 3, 65, 97))
    kept = []
    for stage in model.decoder.stages:
        stage.register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0]))
    model.decoder(features)
    for skip, merged in zip(features[:-1], reversed(kept), strict=True):
        assert torch.equal(merged[:, : skip.shape[1]], skip) and merged.shape[1] == 2 * skip.shape[1]


# --- PSPNet, DeepLabV3+ ----------------------------------------------------------------------------------------------


def test_resnet_is_torchvisions():
    torch.manual_seed(0)
    theirs = awake(torchvision.models.resnet18(weights=None))
    ours = ResNet(64, output_stride=32).eval()
    copy_in_order(theirs, ours, skip=("fc.",))
    layers = create_feature_extractor(theirs, [f"layer{i}" for i in range(1, 5)])
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        for a, b in zip(ours(x), layers(x).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_resnet_computes_what_the_striding_one_skips(output_stride):
    torch.manual_seed(0)
    striding = awake(ResNet(8, output_stride=32).double())
    dilated = ResNet(8, output_stride).double().eval()
    dilated.load_state_dict(striding.state_dict())
    x = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    for i, (a, b) in enumerate(zip(striding(x), dilated(x), strict=True)):
        step = max(1, 4 * 2**i // output_stride)
        assert b.shape[-1] == 128 // min(4 * 2**i, output_stride)
        torch.testing.assert_close(b[..., ::step, ::step], a)


def test_pyramid_pooling_takes_the_means_of_its_bins():
    pyramid = resnet.PyramidPooling(4).eval()
    for level in pyramid.levels:
        level[1][0].weight.data = torch.tensor([[[[0.0]], [[0.0]], [[1.0]], [[0.0]]]])  # the third channel alone
    x = torch.rand(2, 4, 12, 12, dtype=torch.float32)
    out = pyramid(x)
    assert torch.equal(out[:, :4], x)
    for i, bins in enumerate((1, 2, 3, 6)):
        side = 12 // bins
        means = x[:, 2:3].view(2, 1, bins, side, bins, side).mean((3, 5))
        torch.testing.assert_close(out[:, 4 + i:5 + i], upsample(means, (12, 12)), rtol=1e-4, atol=1e-5)


def test_aspp_is_torchvisions():
    torch.manual_seed(0)
    theirs = awake(torchvision.models.segmentation.deeplabv3.ASPP(16, [2, 4, 6], 8))
    ours = resnet.ASPP(16, 8, (2, 4, 6)).eval()
    copy_in_order(theirs, ours)
    x = torch.randn(2, 16, 13, 17)
    torch.testing.assert_close(ours(x), theirs(x))


def test_deeplab_reads_the_fine_map():
    torch.manual_seed(0)
    model = awake(sl.create_model("deeplabv3plus", 4))
    features = model.encoder(torch.randn(1, 3, 64, 96))
    logits = model.decoder(features)
    assert logits.shape[-2:] == features[0].shape[-2:]
    blind = model.decoder([torch.zeros_like(features[0]), *features[1:]])
    assert (blind - logits).abs().mean() > 0.01 * logits.std()


# --- ViT, SETR -------------------------------------------------------------------------------------------------------


def test_vit_is_torchvisions_without_the_class_token():
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2,
                                                  hidden_dim=32, mlp_dim=128, num_classes=5).eval()
    ours = ViT(dim=32, depth=2, heads=2, patch=8, grid=(4, 4)).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    state = theirs.state_dict()
    values = [state["encoder.pos_embedding"][:, 1:].transpose(1, 2).reshape(1, 32, 4, 4),
              state["conv_proj.weight"], state["conv_proj.bias"]]
    for i in range(2):
        for name, value in state.items():
            if f"encoder_layer_{i}." in name and "in_proj_weight" in name:
                bias = state[name.replace("weight", "bias")]
                values += [value[:32], bias[:32], value[32:], bias[32:]]  # q; k and v
            elif f"encoder_layer_{i}." in name and "in_proj_bias" not in name:
                values.append(value)
    values += [state["encoder.ln.weight"], state["encoder.ln.bias"]]
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(2, 3, 32, 32)
    tokens = theirs._process_input(x) + state["encoder.pos_embedding"][:, 1:]
    expected = theirs.encoder.ln(theirs.encoder.layers(tokens))
    torch.testing.assert_close(ours(x)[0].flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_vit_b_16_count():
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16(weights=None)
        ours = ViT(dim=768, depth=12, heads=12, patch=16, grid=(14, 14))
    token = 2 * 768  # the class token and its row of the table
    assert count(ours) == count(theirs) - count(theirs.heads) - token == 85_797_120


def test_position_table_is_exact_at_its_size_and_resized_elsewhere():
    embed = sl.create_model("setr", 4).encoder.stages[0].patch_embed
    assert embed.positions((12, 12)) is embed.position
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(embed(x), (embed.proj(x) + embed.position).permute(0, 2, 3, 1))
    ramp = torch.arange(12.0).expand(12, 12)
    with torch.no_grad():
        embed.position.copy_(ramp)
    wide = embed.positions((12, 24))[0, 0, 0]
    expected = (torch.arange(24) + 0.5) / 2 - 0.5  # the same ramp, read at the middles of half as wide patches
    torch.testing.assert_close(wide[4:-4], expected[4:-4], rtol=0, atol=0.05)  # torch's cubic bends a ramp a little


def test_setr_answers_to_the_attention_tool():
    torch.manual_seed(0)
    model = sl.create_model("setr", 4).eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    weights = sl.analysis.attention_map(model, image, "stage1.block2", (10, 20))
    assert weights.shape == (2, 64, 96) and weights[:, ::8, ::8].sum((1, 2)) == pytest.approx(1, abs=1e-4)
    field = sl.analysis.receptive_field(model, image[None], "stage1")
    assert field.map.shape == (64, 96) and field.map.min() > 0  # one attention layer and every pixel counts


def test_setr_doubles_as_often_as_its_patch_needs():
    for patch in (4, 8, 16):
        assert sl.create_model("setr", 4, patch=patch).eval()(torch.randn(1, 3, 64, 96)).shape == (1, 4, 32, 48)
    with pytest.raises(ValueError, match="power of 2"):
        sl.create_model("setr", 4, patch=12)


# --- SegFormer's decoder on CNN encoders: Table 1d -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "millions", "gmacs"), [
    ("resnet50", 28.9, 67.9), ("resnet101", 47.9, 87.3), ("resnext101_64x4d", 86.8, 127.3)])
def test_table_1d_counts(name, millions, gmacs):
    """Printed: 29.0, 47.9, 86.8 M and 69.2, 88.7, 127.5 G, at 512 px with 150 classes."""
    class WithMLPDecoder(sl.models.Segmenter):
        def __init__(self):
            super().__init__()
            net = getattr(torchvision.models, name)(weights=None)
            self.encoder = create_feature_extractor(net, ["layer1", "layer2", "layer3", "layer4"])
            self.decoder = sl.models.MLPDecoder((256, 512, 1024, 2048), dim=768, num_classes=150)

        def forward(self, x):
            return self.decoder.forward_unfolded(list(self.encoder(x).values()))

    with torch.device("meta"):
        model = WithMLPDecoder()
    assert round(count(model) / 1e6, 1) == millions
    assert round(sl.analysis.cost.macs(model, 512) / 1e9, 1) == gmacs
