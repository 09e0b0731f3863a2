"""Files of a run: the weights that others load (safetensors), and the checkpoint that training resumes from."""

import io
import json
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..files import beside
from ..models import SegFormer, Segmenter, create_model
from ..models.checkpoints import require_check_sums
from .config import LARGEST_SIZE, require_own_classes

WEIGHTS, CHECKPOINT, LOG, CONFIG = "model.safetensors", "checkpoint.pt", "log.jsonl", "config.json"
KINDS = {"model": str, "model_options": dict, "classes": list, "palette": list, "size": int, "data": str,
         "data_options": dict}  # what the header of a run's weights holds


def save_model(model: nn.Module, path: str | Path, description: dict) -> None:
    """Write weights as safetensors with `description` (model name, classes, size, ...) in the header."""
    # safetensors wants plain row-major tensors; channels-last weights are only another layout of the same values.
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with beside(path) as part:
        save_file(state, part, metadata={"segformer_lite": json.dumps(description)})


def load_model(path: str | Path, **options) -> tuple[Segmenter, dict]:
    """The network in a run's folder or a .safetensors file, its `classes` named, and its description.

    Arguments: `options` for `create_model`: the learner's own classes, if the run used any.
    Raises FileNotFoundError or ValueError (in one line) for what is missing, truncated, foreign or does not fit.
    """
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; give a run's folder, which holds {WEIGHTS}, or such a file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator of its own)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or train it again") from None
    if "segformer_lite" not in metadata:
        raise ValueError(f"{path} was not written by segformer_lite: its header names no model")
    description = read_description(metadata["segformer_lite"], path)
    options = {**description["model_options"], **options}
    require_own_classes(options, path)
    try:
        model = create_model(description["model"], len(description["classes"]), **options)
    except (TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{path} describes a {description['model']} that cannot be built ({error})") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        expected = f"{description['model']} with {len(description['classes'])} classes"
        raise ValueError(f"{path} does not fit {expected}: {first}") from None
    model.classes = description["classes"]
    return model.eval(), description


def read_description(text: str, path: Path) -> dict:
    """What the header of a file of weights says of its network; ValueError, naming the file, where it is damaged."""
    try:
        description = json.loads(text)
        wrong = [key for key, kind in KINDS.items() if key in description and not isinstance(description[key], kind)]
        wrong += [key for key in ("model", "model_options", "classes") if key not in description]
        if not wrong:
            names, colours = description["classes"], description.get("palette", [])
            wrong += ["classes"] * (len(set(names)) < len(names) or not all(isinstance(name, str) for name in names))
            wrong += ["size"] * (not 1 <= description.get("size", 1) <= LARGEST_SIZE)
            wrong += ["palette"] * any(len(colour) != 3 or not set(colour) <= set(range(256)) for colour in colours)
    except (ValueError, TypeError, RecursionError) as error:
        wrong = [str(error)]
    if wrong:
        raise ValueError(f"{path} has a damaged header ({wrong[0]}): copy or train it again")
    return description


def start_from(model: Segmenter, source: str | Path) -> None:
    """Copy SegFormer weights from elsewhere into a network that is about to be trained.

    Arguments: `source`: whatever `SegFormer.from_pretrained` takes. Where its number of classes is another, the
    classifier starts at random; where it is an encoder only, the decoder. Raises FileNotFoundError or ValueError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that new parts need training: they are about to get it
        pretrained = SegFormer.from_pretrained(source, model.num_classes)
    try:
        model.load_state_dict(pretrained.state_dict())
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"{source} holds weights of another network than the one to train ({first}); choose the "
                         "model they belong to") from None


def save_checkpoint(path: str | Path, step: int, model: nn.Module, optimizer, scaler, settings: dict) -> None:
    """Write all that training needs to go on after `step` steps.

    Randomness is a function of (seed, step, index), so no generator's state is kept.
    """
    content = io.BytesIO()  # torch.save into a file tells of a full disk only that its writer lost count
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(), "settings": settings}, content)
    with beside(path) as part:
        part.write_bytes(content.getbuffer())


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint; tensors and plain values only, so a stranger's file runs no code.

    Raises FileNotFoundError or ValueError in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume from: no {path}")
    try:
        require_check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = {key: content[key] for key in ("step", "model", "optimizer", "scaler", "settings")}
    except Exception as error:  # whatever a broken file raises: zip, pickle, key and type errors alike
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a whole checkpoint of this course ({reason[:80]}); "
                         "start the run again without --resume") from None
    return content


def read_log(path: Path, step: int) -> list[dict]:
    """The entries of a run's log up to `step`; of a line that a full disk cut short, nothing."""
    history = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            entry = json.loads(line)
            if entry["step"] <= step and entry["loss"] + entry.setdefault("seconds", 0) >= 0:
                history.append(entry)
    return history
