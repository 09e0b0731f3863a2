"""Weights in and out, from files, folders and the Hugging Face hub: read without running anything they hold."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .layouts import HEAD, LAYOUTS, NORM_EPS, in_layout, recognise, require_fit, rows, variant_of
from .segformer import EXPANSIONS, HEADS, KERNELS, REDUCTION_STRIDES, STRIDES, VARIANTS, SegFormer

WEIGHTS, CONFIG = ("model.safetensors", "pytorch_model.bin"), "config.json"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
UNUSED = ("decode_head.conv_seg.", "head.", "classifier.")  # NVlabs' idle layer; the classifiers of ImageNet


def load(build: Callable[..., SegFormer], source: str | Path | Mapping, num_classes: int | None) -> SegFormer:
    """`SegFormer.from_pretrained`: read, recognise, compare, and only then build and copy."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    source, state, about = open_source(source)
    layout, variant = recognise(state, source)
    classifier = rows(HEAD)[2][layout]
    in_file = state[f"{classifier}.bias"].numel() if f"{classifier}.bias" in state else None
    fresh = None
    if not any(name.startswith(("decoder.", "decode_head.")) for name in state):
        fresh, why = "decoder", "it holds an encoder only"
        if num_classes is None:
            raise ValueError(f"{source} holds an encoder only: say how many classes the new decoder has, num_classes=")
    elif in_file and num_classes not in (None, in_file):
        fresh, why = "decoder.classify", f"it has {in_file} classes"
        state = {name: value for name, value in state.items() if not name.startswith(classifier)}

    with torch.device("meta"):  # no storage yet: drawing random weights for a B5 takes longer than reading it
        model = build(variant, num_classes or in_file or 1, norm_eps=about.get("norm_eps", NORM_EPS[layout]))
    require_fit(state, in_layout(model, layout, fresh), f"{source} ({LAYOUTS[layout]}, {variant.upper()})")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, target in in_layout(model, layout, fresh).items():
            target.copy_(state[name])
    if fresh:
        for module in model.get_submodule(fresh).modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        warnings.warn(f"{source}: {why}, so {fresh} starts at random for {model.num_classes} classes: train it "
                      "before use", stacklevel=3)
    elif about.get("classes"):
        model.classes = about["classes"]
        if len(model.classes) != model.num_classes:
            raise ValueError(f"{source} names {len(model.classes)} classes, but tells {model.num_classes} apart")
    return model.eval()


def save(model: SegFormer, folder: str | Path) -> None:
    """`SegFormer.save_pretrained`: the two files that transformers reads, each written beside, then renamed."""
    variant, eps = require_released(model)
    if eps != NORM_EPS[1]:
        warnings.warn(f"transformers computes every LayerNorm with eps {NORM_EPS[1]}, this model those of blocks and "
                      f"stages with {eps}: the logits there differ slightly, from_pretrained here gives it back as it "
                      "is", stacklevel=3)
    state = {("segformer." if name.startswith("encoder.") else "") + name:
             value.detach().cpu().clone(memory_format=torch.contiguous_format)
             for name, value in in_layout(model, 1).items()}
    dims, depths, decoder_dim = VARIANTS[variant]
    classes = model.classes or [f"LABEL_{k}" for k in range(model.num_classes)]
    config = {"architectures": ["SegformerForSemanticSegmentation"], "model_type": "segformer", "hidden_sizes": dims,
              "depths": depths, "decoder_hidden_size": decoder_dim, "num_attention_heads": HEADS,
              "sr_ratios": REDUCTION_STRIDES, "mlp_ratios": EXPANSIONS, "patch_sizes": KERNELS, "strides": STRIDES,
              "id2label": dict(enumerate(classes)), "label2id": {name: k for k, name in enumerate(classes)}}
    beside = Path(folder) / "saving.part"
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, beside, metadata={"format": "pt", "norm_eps": str(eps)})
        beside.replace(beside.with_name(WEIGHTS[0]))
        beside.write_text(json.dumps(config, indent=1), encoding="utf-8")
        beside.replace(beside.with_name(CONFIG))
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write the model to {folder} ({one_line(error)})") from None
    finally:
        with suppress(OSError):
            beside.unlink()


def require_released(model: SegFormer) -> tuple[str, float]:
    """(variant, eps of its block norms) of a model; raises ValueError where a part is not the released one."""
    variant = variant_of(model.encoder.dims, tuple(len(stage.blocks) for stage in model.encoder.stages), "the model")
    eps = model.encoder.stages[0].blocks[0].norm1.eps
    with torch.device("meta"):
        released = dict(SegFormer(variant, model.num_classes, norm_eps=eps).named_modules())
    for name, part in reversed(list(model.named_modules())):  # parts before what they are parts of
        if name and repr(part) != repr(released.get(name)):
            raise ValueError(f"transformers has no such SegFormer: {name} is not as released; keep this model by "
                             "torch.save(model.state_dict(), file)")
    return variant, eps


def open_source(source: str | Path | Mapping) -> tuple[str, dict[str, Tensor], dict]:
    """(what to call it, its tensors by name, what it says about them: "classes", "norm_eps")."""
    if isinstance(source, Mapping):
        return "the state dict", named_tensors(source), {}
    path = locate(source)
    state, about = read(path)
    if "run_of" in about:
        raise ValueError(f"{path} is of a {about['run_of']}, no SegFormer as released: open it with load_model")
    if path.name in WEIGHTS and "classes" not in about:
        about |= read_config(path.with_name(CONFIG))
    return str(source), state, about


def locate(source: str | Path) -> Path:
    """The file of weights that a folder, a file or a name on the hub stands for."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in WEIGHTS:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"{path} holds no weights: expected {' or '.join(WEIGHTS)} in it")
    # With a folder of the owner's name here, it is a path with a typing error: nothing of it leaves this machine.
    name = path.as_posix()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.parent.exists() and path.suffix not in SUFFIXES:
        return fetch(name)
    raise FileNotFoundError(f"no weights at {source}: give a folder with {' or '.join(WEIGHTS)}, a file "
                            f"({', '.join(SUFFIXES)}), or a name on the Hugging Face hub, owner/name")


def fetch(name: str) -> Path:
    """The file of weights of a hub repository, in the hub's own cache, with config.json beside it."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise ValueError(f"{name} is no file or folder here, and to have it from the Hugging Face hub needs one more "
                         "package: pip install huggingface_hub") from None
    try:
        hf_hub_download(name, CONFIG)
        try:
            return Path(hf_hub_download(name, WEIGHTS[0]))
        except EntryNotFoundError:  # not there, or offline and not in the cache
            return Path(hf_hub_download(name, WEIGHTS[1]))
    except Exception as error:  # network, access, name, cache: each has its own family, and each version others
        raise ValueError(f"{name} is no file or folder here and could not be had from the Hugging Face hub "
                         f"({one_line(error)}); offline, only what is in its cache can be") from None


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a file by name, and what the file says about them; code in it is never run."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
                about = read_header(file.metadata() or {})
        else:
            require_check_sums(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            classes = (content.get("meta") or {}).get("CLASSES")  # as NVlabs' training writes them
            about = {"classes": [str(name) for name in classes]} if classes else {}
        return named_tensors(content.get("state_dict", content)), about
    except Exception as error:  # whatever a broken file raises: header, zip, pickle, key and type errors alike
        asked = isinstance(error, pickle.UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise ValueError(f"{path} asks to run {asked[1]}, which weights need not; nothing of it was run: get "
                             "them as .safetensors") from None
        reason = one_line(error)
        raise ValueError(f"{path} is not a whole file of weights ({reason}); fetch or export it again") from None


def require_check_sums(path: Path) -> None:
    """Raises ValueError for a zip file, such as torch writes, with a wrong check sum: torch itself reads on."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"wrong check sum of {broken}")


def named_tensors(state: Mapping) -> dict[str, Tensor]:
    """A state dict without the encoder's prefixes and the unused heads; raises ValueError for anything else."""
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ValueError("no table of tensors by name")
    plain = {name.removeprefix("segformer.").removeprefix("backbone."): value for name, value in state.items()}
    return {name: value for name, value in plain.items() if not name.startswith(UNUSED)}


def read_header(metadata: dict[str, str]) -> dict:
    """What the header of a safetensors file tells: one that `save` wrote, or that of a run of this course."""
    about: dict = {"norm_eps": float(metadata["norm_eps"])} if "norm_eps" in metadata else {}
    if "segformer_lite" in metadata:
        run = json.loads(metadata["segformer_lite"])
        options = dict(run["model_options"])
        about = {"classes": run["classes"], "norm_eps": options.pop("norm_eps", NORM_EPS[0])}
        options.pop("drop_path", None)  # of training only
        if options or run["model"].removeprefix("segformer_") not in VARIANTS:
            about["run_of"] = " with its own ".join([run["model"], *options])
    return about


def read_config(path: Path) -> dict:
    """The class names in a config.json of transformers, {} where there are none.

    Raises ValueError for a file that is none, or that describes a network whose difference no shape would show.
    """
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        labels = {int(k): str(name) for k, name in config.get("id2label", {}).items()}
        classes = [labels[k] for k in range(len(labels))]
    except (ValueError, AttributeError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not a config.json of transformers ({one_line(error)}); fetch it again") from None
    released = {"model_type": "segformer", "num_attention_heads": list(HEADS), "strides": list(STRIDES),
                "hidden_act": "gelu"}
    for key, value in released.items():
        if config.get(key, value) != value:
            raise ValueError(f"{path} has {key} {config[key]!r}, a SegFormer as released has {value!r}")
    return {"classes": classes} if classes else {}


def one_line(error: Exception) -> str:
    """The reason of an error in few words; torch's advice to load a pickle unsafely is left out."""
    text = " ".join(str(error).split("WeightsUnpickler error:")[-1].split())
    return text[:120] or type(error).__name__
