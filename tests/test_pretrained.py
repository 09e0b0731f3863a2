"""Weights in and out: equal to transformers whatever the file, and one clear line for every file that is wrong."""

import gc
import json
import pickle
import random
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import segformer_lite as sl
from segformer_lite.cli import main
from segformer_lite.evaluation import predict_labels
from segformer_lite.models import SegFormer, checkpoints, layouts

transformers = pytest.importorskip("transformers", reason="the peer of these tests")
transformers.utils.logging.disable_progress_bar()

WIDE = [64, 128, 320, 512]
CONFIGS = {  # as the released models are configured on the hub: written down here, not taken from the package
    "b0": dict(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2], decoder_hidden_size=256),
    "b1": dict(hidden_sizes=WIDE, depths=[2, 2, 2, 2], decoder_hidden_size=256),
    "b2": dict(hidden_sizes=WIDE, depths=[3, 4, 6, 3], decoder_hidden_size=768),
    "b3": dict(hidden_sizes=WIDE, depths=[3, 4, 18, 3], decoder_hidden_size=768),
    "b4": dict(hidden_sizes=WIDE, depths=[3, 8, 27, 3], decoder_hidden_size=768),
    "b5": dict(hidden_sizes=WIDE, depths=[3, 6, 40, 3], decoder_hidden_size=768),
}


def peer(variant: str = "b0", num_classes: int = 19, kind: str = "SegformerForSemanticSegmentation"):
    """transformers' network, every parameter and every batch-norm statistic at random, none of them 0 or 1."""
    names = [f"class {k}" for k in range(num_classes)]
    config = transformers.SegformerConfig(**CONFIGS[variant], id2label=dict(enumerate(names)),
                                          label2id={name: k for k, name in enumerate(names)})
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                value.fill_(3)
            elif name.endswith("running_var") or value.ndim == 1 and name.endswith("weight"):
                value.uniform_(0.5, 1.5, generator=generator)
            else:
                bound = (3 / max(25, value[0].numel())) ** 0.5
                value.uniform_(-bound, bound, generator=generator)
    return model


def picture(height: int = 64, width: int = 67) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def differences(theirs, ours, x=None) -> list[float]:
    """Largest difference in float64 of the four stages and, where theirs has them, of the logits."""
    x = picture() if x is None else x
    theirs, ours = theirs.double(), ours.double()
    out, features = theirs(x, output_hidden_states=True), ours.encoder(x)
    pairs = list(zip(out.hidden_states, features, strict=True))
    if hasattr(theirs, "decode_head"):
        pairs.append((out.logits, ours.decoder(features)))
    assert all(a.shape == b.shape for a, b in pairs)
    return [(a - b).abs().max().item() for a, b in pairs]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and not [name for name in one if not torch.equal(one[name], other[name])]


def tensors_of(theirs) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in theirs.state_dict().items()}


# NVlabs' names, made from transformers' by steps of their own: nothing here comes from the package's table.
TO_NVLABS = [
    (r"^segformer\.stages\.(\d)\.patch_embeddings\.layer_norm", r"backbone.patch_embed<\1>.norm"),
    (r"^segformer\.stages\.(\d)\.patch_embeddings", r"backbone.patch_embed<\1>"),
    (r"^segformer\.stages\.(\d)\.layer_norm", r"backbone.norm<\1>"),
    (r"^segformer\.stages\.(\d)\.blocks", r"backbone.block<\1>"),
    (r"layernorm_before", "norm1"), (r"layernorm_after", "norm2"),
    (r"attention\.q_proj", "attn.q"), (r"attention\.o_proj", "attn.proj"),
    (r"attention\.sequence_reduction\.layer_norm", "attn.norm"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attn.sr"),
    (r"linear_projections\.(\d)", r"linear_c<\1>"), (r"linear_fuse\.", "linear_fuse.conv."),
    (r"batch_norm", "linear_fuse.bn"), (r"decode_head\.classifier", "decode_head.linear_pred"),
]


def nvlabs(theirs) -> dict[str, torch.Tensor]:
    """The state dict that the released training code would write for the same network."""
    state = tensors_of(theirs)
    for name in [n for n in state if ".k_proj." in n]:
        halves = torch.cat([state.pop(name), state.pop(name.replace(".k_proj.", ".v_proj."))])
        state[name.replace("attention.k_proj", "attn.kv")] = halves
    renamed = {}
    for name, value in state.items():
        for pattern, new in TO_NVLABS:
            name = re.sub(pattern, new, name)
        renamed[re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 1), name)] = value
    return renamed


def nvlabs_eps(theirs):
    """Their network with the eps of the released code: 1e-6 in blocks and at stage ends."""
    for name, module in theirs.named_modules():
        if re.search(r"layernorm_(before|after)$|stages\.\d\.layer_norm$", name):
            module.eps = 1e-6
    return theirs


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    """A B0 with 19 classes as transformers writes it."""
    folder = tmp_path_factory.mktemp("pretrained") / "b0"
    peer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(512, 512), (64, 67), (375, 500)])
def test_b0_from_a_folder_is_equal_stage_by_stage(hub_folder, size):
    assert max(differences(peer(), SegFormer.from_pretrained(hub_folder), picture(*size))) < 1e-8


@pytest.mark.parametrize(("variant", "num_classes"),
                         [("b0", 150), ("b1", 19), ("b2", 150), ("b3", 19), ("b4", 150), ("b5", 19)])
def test_every_variant_goes_there_and_back(variant, num_classes, tmp_path):
    """theirs -> file -> ours -> file -> theirs and ours again: the same weights, logits and class names."""
    theirs = peer(variant, num_classes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = SegFormer.from_pretrained(tmp_path / "theirs")
    assert ours.num_classes == num_classes and ours.classes == [f"class {k}" for k in range(num_classes)]
    assert not ours.training
    ours.save_pretrained(tmp_path / "ours")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    back, info = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "ours",
                                                                               output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert back.config.id2label == theirs.config.id2label
    assert_equal(theirs.state_dict(), back.state_dict())
    assert_equal(ours.state_dict(), SegFormer.from_pretrained(tmp_path / "ours").state_dict())
    del back
    gc.collect()
    assert max(differences(theirs, ours)) < 1e-8


def test_every_kind_of_source_gives_the_same_network(hub_folder, tmp_path):
    """Folder, single file, pytorch_model.bin, half precision, names in memory: as a state dict and in a file."""
    reference = SegFormer.from_pretrained(hub_folder).state_dict()
    on_disk, theirs = load_file(hub_folder / "model.safetensors"), peer()
    (tmp_path / "bin").mkdir()
    torch.save(on_disk, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "config.json").write_bytes((hub_folder / "config.json").read_bytes())
    torch.save(on_disk, tmp_path / "any.bin")
    torch.save(theirs.state_dict(), tmp_path / "memory.pth")
    save_file(on_disk, tmp_path / "any.safetensors")
    torch.save(SegFormer.from_pretrained(hub_folder).state_dict(), tmp_path / "ours.pt")
    sources = [hub_folder / "model.safetensors", tmp_path / "bin", str(tmp_path / "any.bin"), tmp_path / "memory.pth",
               tmp_path / "any.safetensors", theirs.state_dict(), tmp_path / "ours.pt"]
    for source in sources:
        model = SegFormer.from_pretrained(source)
        assert_equal(reference, model.state_dict())
        named = isinstance(source, Path) and source.name in ("bin", "model.safetensors")
        assert model.classes == ([f"class {k}" for k in range(19)] if named else None)
    torch.save({name: value.half() for name, value in on_disk.items()}, tmp_path / "half.bin")
    half = SegFormer.from_pretrained(tmp_path / "half.bin")
    assert half.encoder.stages[0].norm.weight.dtype == torch.float32
    assert max(differences(theirs, half)) < 1e-1


@pytest.mark.parametrize("wrapped", [True, False])
def test_nvlabs_file_is_equal_with_its_own_eps(wrapped, tmp_path):
    theirs = peer()
    state = nvlabs(theirs) | {"decode_head.conv_seg.weight": torch.rand(19, 128, 1, 1),
                              "decode_head.conv_seg.bias": torch.rand(19)}
    names = [f"thing {k}" for k in range(19)]
    content = {"meta": {"CLASSES": tuple(names), "epoch": 1}, "state_dict": state} if wrapped else state
    torch.save(content, tmp_path / "segformer.pth", _use_new_zipfile_serialization=wrapped)
    ours = SegFormer.from_pretrained(tmp_path / "segformer.pth")
    assert max(differences(theirs, ours)) > 1e-8  # transformers' own eps is another
    assert max(differences(nvlabs_eps(theirs), ours)) < 1e-8
    assert ours.classes == (names if wrapped else None)


@pytest.mark.parametrize("kind", ["SegformerForImageClassification", "SegformerModel", "NVlabs mit_b0"])
def test_encoder_only(kind, tmp_path):
    """ImageNet's encoders: four equal stages, a decoder at random, said in one line."""
    if kind == "NVlabs mit_b0":
        theirs, source = nvlabs_eps(peer()), tmp_path / "mit.pth"
        state = {n.removeprefix("backbone."): v for n, v in nvlabs(theirs).items() if n.startswith("backbone.")}
        torch.save(state | {"head.weight": torch.rand(1000, 256), "head.bias": torch.rand(1000)}, source)
        del theirs.decode_head
        theirs = theirs.segformer
    else:
        theirs, source = peer(num_classes=1000, kind=kind), tmp_path / "encoder"
        theirs.save_pretrained(source)
    with pytest.raises(ValueError, match="encoder only.*num_classes=") as error:
        SegFormer.from_pretrained(source)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="encoder only, so decoder starts at random for 5 classes") as said:
        ours = SegFormer.from_pretrained(source, num_classes=5)
    assert len(said) == 1 and said[0].filename == __file__ and "\n" not in str(said[0].message)
    assert ours.num_classes == 5 and ours.classes is None
    assert max(differences(theirs, ours)) < 1e-8
    state = ours.decoder.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    assert 0.001 < state["classify.weight"].std() < 0.1 and (state["norm.weight"] == 1).all()
    assert ours.float()(picture().float()).shape == (1, 5, 16, 17)


def test_another_number_of_classes_says_what_starts_at_random(hub_folder):
    with pytest.warns(UserWarning, match="19 classes, so decoder.classify starts at random for 4 classes") as said:
        ours = SegFormer.from_pretrained(hub_folder, num_classes=4)
    assert len(said) == 1
    whole = SegFormer.from_pretrained(hub_folder).state_dict()
    differing = {n for n, v in ours.state_dict().items() if v.shape != whole[n].shape or not torch.equal(v, whole[n])}
    assert differing == {"decoder.classify.weight", "decoder.classify.bias"}
    assert ours.num_classes == 4 and ours.classes is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SegFormer.from_pretrained(hub_folder, num_classes=19).classes[18] == "class 18"
    with pytest.raises(ValueError, match="at least 1"):
        SegFormer.from_pretrained(hub_folder, num_classes=0)


def swap(*cells):
    """Fault: two names of the on-disk layout in each other's place."""
    def plant(monkeypatch):
        text = layouts.BLOCK if cells[0] in layouts.BLOCK else layouts.STAGE
        name = "BLOCK" if text is layouts.BLOCK else "STAGE"
        a, b = cells
        assert a in text and b in text
        monkeypatch.setattr(layouts, name, text.replace(a, "@").replace(b, a).replace("@", b))
    return plant


def reverse_levels(weight):
    return weight.copy_(torch.cat(weight.clone().chunk(4, dim=1)[::-1], dim=1))


PLANTED = {
    "halves of kv": swap("attention.self.key", "attention.self.value"),
    "norm1 and norm2": swap("layer_norm_1", "layer_norm_2"),
    "q and proj": swap("attention.self.query", "attention.output.dense"),
    "norms of patch and stage": swap("encoder.patch_embeddings.{i}.layer_norm", "encoder.layer_norm.{i}"),
    "eps": lambda monkeypatch: monkeypatch.setattr(checkpoints, "NORM_EPS", (1e-6,) * 4),
}
SPOILED = {
    "levels of the decoder": lambda m: reverse_levels(m.decoder.fuse.weight.data),
    "statistics": lambda m: m.decoder.norm.running_mean.zero_(),
    "norm at a stage's end": lambda m: m.encoder.stages[2].norm.reset_parameters(),
    "norm after the reduction": lambda m: m.encoder.stages[0].blocks[1].attention.norm.reset_parameters(),
}


@pytest.mark.parametrize("fault", [None, *PLANTED, *SPOILED])
def test_a_planted_fault_is_seen(fault, hub_folder, monkeypatch):
    if fault in PLANTED:
        PLANTED[fault](monkeypatch)
    ours = SegFormer.from_pretrained(hub_folder)
    if fault in SPOILED:
        SPOILED[fault](ours)
    assert (max(differences(peer(), ours)) > 1e-8) == (fault is not None)


def test_save_keeps_eps_and_says_that_transformers_has_another(tmp_path):
    ours = SegFormer("b0", num_classes=3).eval()
    with pytest.warns(UserWarning, match="eps 1e-05"):
        ours.save_pretrained(tmp_path)
    again = SegFormer.from_pretrained(tmp_path).double()
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    x = picture()
    with torch.no_grad():
        logits = ours.double()(x)
        assert torch.equal(again(x), logits)
        assert (theirs.double()(x).logits - logits).norm() / logits.norm() < 1e-2
    assert again.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_save_refuses_what_transformers_cannot_compute(tmp_path):
    from segformer_lite.models.variants import MLPFFN, set_padding

    for model, named in ((sl.create_model("segformer_b0", 3, ffn=MLPFFN), "ffn"),
                         (set_padding(SegFormer("b0", 3), "reflect"), "dwconv"),
                         (sl.create_model("segformer_b0_report", 3), "decoder")):
        with pytest.raises(ValueError, match=f"no such SegFormer: .*{named}.* is not as released"):
            model.save_pretrained(tmp_path / "never")
    assert not (tmp_path / "never").exists()
    (tmp_path / "file").write_text("in the way")
    with warnings.catch_warnings(), pytest.raises(OSError, match="cannot write the model"):
        warnings.simplefilter("ignore")
        SegFormer("b0", 3).save_pretrained(tmp_path / "file")


def test_a_run_of_the_course_is_a_source_too(tmp_path):
    from segformer_lite.training.checkpoint import save_model

    def run(name, model, **options):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model": model}))  # a run's settings, not transformers'
        save_model(sl.create_model(model, 2, **options), folder / "model.safetensors",
                   {"model": model, "model_options": {k: getattr(v, "__name__", v) for k, v in options.items()},
                    "classes": ["sky", "bird"]})
        return folder

    ours = SegFormer.from_pretrained(run("plain", "segformer_b0", drop_path=0.0))
    assert ours.classes == ["sky", "bird"] and ours.encoder.stages[0].norm.eps == 1e-6
    assert SegFormer.from_pretrained(run("eps", "segformer_b0", norm_eps=1e-5)).encoder.stages[0].norm.eps == 1e-5
    for name, model, options in (("own", "segformer_b0", {"ffn": sl.models.MixFFN}), ("unet", "unet", {}),
                                 ("report", "segformer_b0_report", {})):
        with pytest.raises(ValueError, match=f"{model}.*load_model"):
            SegFormer.from_pretrained(run(name, model, **options))


def complaint(source, *patterns, **options) -> str:
    """The one line of ValueError or FileNotFoundError that a source gets, with the patterns in it."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        SegFormer.from_pretrained(source, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 600 and "weights_only" not in text
    for pattern in patterns:
        assert re.search(pattern, text), text
    return text


class Runs:
    """A pickle that leaves a file behind when somebody loads it without care."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new", [True, False])
def test_a_malicious_pickle_runs_nothing(new, tmp_path):
    witness, file = tmp_path / "it ran", tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1), "b": Runs(witness)}, file, _use_new_zipfile_serialization=new)
    complaint(file, "asks to run", "nothing of it was run")
    complaint(tmp_path, "asks to run")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": Runs(witness)}))
    complaint(tmp_path / "plain.pth")
    assert not witness.exists()
    torch.load(file, weights_only=False)  # it is a live one
    assert witness.exists()


def test_foreign_and_missing_files_get_one_line(hub_folder, tmp_path):
    for name, content in (("empty.bin", b""), ("text.pth", b"<html>404</html>"), ("zip.bin", b"PK\3\4" + bytes(99)),
                          ("empty.safetensors", b""), ("text.safetensors", b"not found\n" * 9), ("a.txt", b"hello")):
        (tmp_path / name).write_bytes(content)
        complaint(tmp_path / name, re.escape(name), "not a whole file of weights", "again")
    for name, content in (("number.pth", 3), ("list.pth", [torch.zeros(2)]), ("mixed.pth", {"a": 1}),
                          ("ints.pth", {1: torch.zeros(1)}), ("meta.pth", {"meta": 7, "state_dict": {}})):
        torch.save(content, tmp_path / name)
        complaint(tmp_path / name, re.escape(name), "not a whole file of weights")
    torch.save({"layer1.0.conv.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    complaint(tmp_path / "resnet.pth", "no SegFormer", "layer1.0.conv.weight")
    complaint({}, "no SegFormer")
    complaint({"a": 1}, "no table of tensors")
    complaint(tmp_path / "nowhere.pth", "no weights at", r"\.safetensors", "owner/name")
    complaint(tmp_path / "no" / "where", "no weights at")
    (tmp_path / "folder").mkdir()
    complaint(tmp_path / "folder", "holds no weights", "model.safetensors or pytorch_model.bin")


def test_what_does_not_fit_is_named():
    theirs = peer().state_dict()
    norm = "segformer.stages.1.blocks.0.layernorm_before.weight"
    short = norm.removeprefix("segformer.")
    complaint({n: v for n, v in theirs.items() if n != norm}, "the state dict", r"missing 1 \(first", re.escape(short))
    complaint({n: v for n, v in theirs.items() if "patch_embeddings.layer_norm" not in n}, r"missing 8 \(")
    complaint({n: v for n, v in theirs.items() if "decode_head.classifier" not in n}, r"missing 2 \(", "classifier")
    complaint(theirs | {"more.weight": torch.zeros(1), "more.bias": torch.zeros(1)}, r"unexpected 2 \(first 'more\.w")
    complaint(theirs | {norm: torch.zeros(65)}, re.escape(short), r"has shape \(65,\), expected \(64,\)")
    complaint(theirs | {norm: torch.zeros(64, dtype=torch.int32)}, re.escape(short), "int32")
    complaint(theirs | {norm: torch.zeros(64).to_sparse()}, re.escape(short))
    complaint({n: v for n, v in theirs.items() if ".blocks.1." not in n}, r"\(1, 1, 1, 1\) blocks", "B0 to B5")
    complaint({n: v for n, v in theirs.items() if "stages.3.patch" not in n}, r"\(32, 64, 160\) channels")
    complaint(theirs | {"decode_head.classifier.bias": torch.zeros(19, 1)}, "classifier.bias", r"\(19, 1\)")


@pytest.mark.parametrize(("change", "pattern"), [
    ({"model_type": "bert"}, "model_type 'bert'.*'segformer'"),
    ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ({"num_attention_heads": [2, 2, 4, 8]}, "num_attention_heads"),
    ({"id2label": {"0": "sky"}}, "names 1 classes, but tells 19 apart"),
    ({"id2label": {"5": "sky"}}, "config.json"),
    ({"id2label": [1, 2]}, "config.json"),
    ("[]", "config.json"), ("{", "config.json"), ("", "config.json"), (b"\xff\xfe", "config.json"),
])
def test_a_config_that_does_not_fit_is_named(change, pattern, hub_folder, tmp_path):
    config = tmp_path / "config.json"
    (tmp_path / "model.safetensors").symlink_to(hub_folder / "model.safetensors")
    if isinstance(change, dict):
        change = json.dumps(json.loads((hub_folder / "config.json").read_text()) | change)
    config.write_bytes(change if isinstance(change, bytes) else change.encode())
    complaint(tmp_path, pattern)


def mutations(rng: random.Random, whole: bytes):
    """(kind, damaged bytes): half of them in the first or last 20 kB, where names, shapes and offsets are."""
    for kind in ["flip"] * 7 + ["cut"] * 5 + ["append"] * 3:
        damaged = bytearray(whole)
        near = rng.choice([0, len(whole) - 20_000])
        at = near + rng.randrange(20_000) if rng.random() < 0.8 else rng.randrange(len(whole))
        if kind == "flip":
            damaged[at] ^= rng.randrange(1, 256)
        elif kind == "cut":
            del damaged[at:]
        else:
            damaged += rng.randbytes(rng.randrange(1, 2000))
        yield kind, bytes(damaged)


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.bin", "nvlabs.pth", "legacy.pth"])
def test_damaged_files_give_one_line_or_load_whole(kind, hub_folder, tmp_path):
    """15 seeded mutations each. Only zip files have check sums: elsewhere a flipped byte may change one number."""
    half = {n: v.half() for n, v in load_file(hub_folder / "model.safetensors").items()}
    file = tmp_path / kind
    if kind.endswith(".safetensors"):
        save_file(half, file)
    else:
        state = {n: v.half() for n, v in nvlabs(peer()).items()} if kind == "nvlabs.pth" else half
        torch.save(state, file, _use_new_zipfile_serialization=kind != "legacy.pth")
    reference, whole = SegFormer.from_pretrained(file).state_dict(), file.read_bytes()
    refused = 0
    for what, damaged in mutations(random.Random(kind), whole):
        file.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = SegFormer.from_pretrained(file).state_dict()
        except (ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error) and kind in str(error)
            refused += 1
            continue
        assert what != "cut"
        changed = sum(int((state[name] != value).sum()) for name, value in reference.items())
        assert changed <= (what == "flip" and kind in ("weights.safetensors", "legacy.pth")), f"{changed} differ"
    assert refused >= 5


@pytest.fixture
def hub_cache(hub_folder, tmp_path, monkeypatch):
    """The hub's cache as huggingface_hub lays it out, with no way to the network: (its snapshot folder)."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--segformer-b0"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(hub_folder / name)
    return snapshot


def test_a_name_on_the_hub_comes_from_its_cache_when_offline(hub_cache, hub_folder, monkeypatch, tmp_path):
    reference = SegFormer.from_pretrained(hub_folder)
    assert SegFormer.from_pretrained("someone/segformer-b0").classes == reference.classes
    (hub_cache / "model.safetensors").unlink()
    complaint("someone/segformer-b0", "someone/segformer-b0", "hub", "offline")
    torch.save(load_file(hub_folder / "model.safetensors"), hub_cache / "pytorch_model.bin")
    ours = SegFormer.from_pretrained("someone/segformer-b0")
    assert torch.equal(ours.decoder.fuse.weight, reference.decoder.fuse.weight)
    complaint("someone/else", "someone/else", "hub", "cache")
    complaint("someone/../else", "no weights at")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    complaint("runs/typing-eror", "no weights at")  # a path, so the hub is not asked
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    complaint("someone/segformer-b0", "pip install huggingface_hub")


def test_the_command_line_takes_weights_from_elsewhere(hub_folder, tmp_path, capsys):
    Image.new("RGB", (80, 60), (90, 120, 30)).save(tmp_path / "photo.png")
    predict = ["predict", str(hub_folder), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]
    assert main([*predict, "--size", "64", "--device", "cpu"]) == 0
    with Image.open(tmp_path / "out" / "photo.png") as mask:
        image = torch.from_numpy(np.array(Image.open(tmp_path / "photo.png"))).permute(2, 0, 1)
        expected = sl.SegFormer.from_pretrained(hub_folder)
        assert np.array_equal(np.asarray(mask), predict_labels(expected, image, 64))
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB" if name == "images" else "L", (64, 64), 7).save(tmp_path / "data" / name / f"{k}.png")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(f"class {k}" for k in range(19)))
    capsys.readouterr()
    evaluate = ["evaluate", str(hub_folder / "model.safetensors"), "--device", "cpu", "--size", "64"]
    assert main([*evaluate, "--data", str(tmp_path / "data")]) == 0
    assert "miou" in capsys.readouterr().out
    assert main(evaluate) == 2
    assert "--data" in capsys.readouterr().err


def test_the_table_names_every_weight_once():
    """In each layout: as many names as transformers' own network has, none twice, and those it writes to disk."""
    with torch.device("meta"):
        ours = SegFormer("b0", 19)
    for layout, count in ((0, 192), (1, 208), (2, 208), (3, 192)):
        assert len(layouts.in_layout(ours, layout)) == count
    assert set(layouts.in_layout(ours, 2)) == {n.removeprefix("segformer.") for n in peer().state_dict()}


def test_files_name_the_framework(tmp_path):
    """transformers refuses a safetensors file whose header does not say "pt"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SegFormer("b0", 2).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "norm_eps": "1e-06"}
