"""How fast to learn: the optimiser's groups and the learning rate over time."""

import torch
from torch import nn

NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)


def make_optimizer(model: nn.Module, lr: float, weight_decay: float = 0.01, head_lr_mult: float = 10.0):
    """AdamW with no decay on norms and a `head_lr_mult` times higher rate in the decoder (`model.decoder`).

    Frozen parameters (without `requires_grad`) are left out.

    Source: section 4.1 for AdamW; decay and decoder rate as in the released training settings.
    """
    in_norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    groups: dict[tuple[float, float], list] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        rate = lr * head_lr_mult if name.startswith("decoder.") else lr
        groups.setdefault((rate, 0.0 if id(p) in in_norms else weight_decay), []).append(p)
    return torch.optim.AdamW([{"params": params, "lr": rate, "peak": rate, "weight_decay": decay}
                              for (rate, decay), params in groups.items()], fused=True)


def poly_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on every learning rate at `step`: up from 1e-6 over `warmup` steps, then linearly down to 0."""
    if step < warmup:
        return max(step / warmup, 1e-6)
    return 1 - (step - warmup) / max(1, steps - warmup)
