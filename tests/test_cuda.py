"""On a CUDA GPU: the CPU's numbers, as near as its rounding allows. Skipped where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import segformer_lite as sl
from segformer_lite.training import segmentation_loss

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def exact():
    """Convolutions in float32: by themselves they round to 10 bits on a GPU."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    root = sl.data.make_sample("chest_ct", folder / "chest_ct", count=24)  # read without pycocotools
    return sl.TrainConfig(data=str(root), size=64, batch_size=4, steps=4, warmup=2, checkpoint_every=2,
                          precision="fp32", device=DEVICE, folder=str(folder / "run"))


@pytest.mark.parametrize("classes", [3, 150])
@pytest.mark.parametrize("size", [(5, 6), (20, 24)])
def test_the_loss_and_its_gradient(classes, size):
    logits, labels = torch.randn(3, classes, *size), torch.randint(0, classes, (3, 20, 24))
    labels[1, 5:] = 255
    found = []
    for device in ("cpu", DEVICE):
        here = logits.detach().clone().to(device).requires_grad_()
        loss = segmentation_loss(here, labels.to(device), class_weights=[0.5] * classes, dice_weight=0.3)
        loss.backward()
        found.append((loss.cpu(), here.grad.cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["segformer_b0", "segformer_b0_report", "unet", "deeplabv3plus"])
def test_the_networks(name):
    model, images = sl.create_model(name, 5).eval(), torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    with torch.inference_mode():
        here = model(sl.preprocess(images))
        there = model.to(DEVICE).to(memory_format=torch.channels_last)(sl.preprocess(images.to(DEVICE))).cpu()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3 * here.abs().max().item())


def test_a_run_is_evaluated_alike_and_goes_on_anywhere(config):
    run = sl.train(config, progress=False)
    val = sl.data.open_dataset(config.data, "val")
    here, there = (sl.evaluate(sl.load_model(run.folder)[0].to(device), val, 64, progress=False)
                   for device in ("cpu", DEVICE))
    assert np.abs(here.confusion - there.confusion).sum() < 0.002 * here.confusion.sum()
    np.testing.assert_allclose(here.losses, there.losses, rtol=1e-3)
    np.testing.assert_allclose(there.summary()["miou"], run.report.miou, atol=0.01)
    for device in ("cpu", DEVICE):
        assert sl.train(replace(config, device=device), run.folder, progress=False).history == run.history


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_and_compiled_code_train(config, precision, tmp_path):
    for mode in (None, "default", "reduce-overhead"):
        run = sl.train(replace(config, precision=precision, compile=mode, folder=str(tmp_path / str(mode))),
                       progress=False)
        assert np.isfinite(run.history[-1]["loss"]) and np.isfinite(run.report.miou)
