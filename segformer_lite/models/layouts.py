"""SegFormer's weights under the names of other implementations: one table, read in both directions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .segformer import VARIANTS, SegFormer

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The names of a module in four layouts: stage i = 0..3, n = i + 1; "a|b": one map here, two halves there.
# The encoder's prefixes "segformer." and "backbone." are left out, as in files of an encoder alone.
LAYOUTS = ("segformer_lite", "transformers", "transformers in memory", "NVlabs")
NORM_EPS = (1e-6, 1e-5, 1e-5, 1e-6)  # of block and stage norms; transformers never reads its layer_norm_eps
HEAD = """
decoder.fuse      decode_head.linear_fuse  decode_head.linear_fuse  decode_head.linear_fuse.conv
decoder.norm      decode_head.batch_norm   decode_head.batch_norm   decode_head.linear_fuse.bn
decoder.classify  decode_head.classifier   decode_head.classifier   decode_head.linear_pred
"""
STAGE = """
encoder.stages.{i}.patch_embed.proj  encoder.patch_embeddings.{i}.proj
    stages.{i}.patch_embeddings.proj  patch_embed{n}.proj
encoder.stages.{i}.patch_embed.norm  encoder.patch_embeddings.{i}.layer_norm
    stages.{i}.patch_embeddings.layer_norm  patch_embed{n}.norm
encoder.stages.{i}.norm  encoder.layer_norm.{i}  stages.{i}.layer_norm  norm{n}
decoder.linear.{i}  decode_head.linear_c.{i}.proj  decode_head.linear_projections.{i}.proj  decode_head.linear_c{n}.proj
"""
BLOCKS = "encoder.stages.{i}.blocks.  encoder.block.{i}.  stages.{i}.blocks.  block{n}."
BLOCK = """
norm1             layer_norm_1                             layernorm_before                                 norm1
attention.q       attention.self.query                     attention.q_proj                                 attn.q
attention.kv      attention.self.key|attention.self.value  attention.k_proj|attention.v_proj                attn.kv
attention.reduce  attention.self.sr                        attention.sequence_reduction.sequence_reduction  attn.sr
attention.norm    attention.self.layer_norm                attention.sequence_reduction.layer_norm          attn.norm
attention.proj    attention.output.dense                   attention.o_proj                                 attn.proj
norm2             layer_norm_2                             layernorm_after                                  norm2
ffn.fc1           mlp.dense1                               mlp.fc1                                          mlp.fc1
ffn.dwconv        mlp.dwconv.dwconv                        mlp.dwconv.dwconv                           mlp.dwconv.dwconv
ffn.fc2           mlp.dense2                               mlp.fc2                                          mlp.fc2
"""


def rows(table: str, **indices: int) -> list[list[str]]:
    """A table's rows of four cells, one a layout, with the indices put in."""
    cells = table.format(**indices).split()
    return [cells[k:k + len(LAYOUTS)] for k in range(0, len(cells), len(LAYOUTS))]


def module_names(depths: Sequence[int]) -> dict[str, list[str]]:
    """Our name of every module with weights -> its name in each layout."""
    names = rows(HEAD)
    for i, depth in enumerate(depths):
        names += rows(STAGE, i=i, n=i + 1)
        for j in range(depth):
            prefixes = [f"{prefix}{j}." for prefix in rows(BLOCKS, i=i, n=i + 1)[0]]
            names += [["|".join(prefix + part for part in cell.split("|"))
                       for prefix, cell in zip(prefixes, row, strict=True)] for row in rows(BLOCK)]
    return {row[0]: row for row in names}


def in_layout(model: SegFormer, layout: int, without: str | None = None) -> dict[str, Tensor]:
    """The model's weights under the names and shapes of a layout, as views: one map for reading and writing.

    `without`: the submodule that is left out.
    """
    names = module_names([len(stage.blocks) for stage in model.encoder.stages])
    renamed: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        if without and f"{module}.".startswith(f"{without}."):
            continue
        if module == "decoder.fuse" and layout:
            value = value[:, :, None, None]  # a linear map here, a 1x1 convolution there
        parts = names[module][layout].split("|")
        values = value.chunk(len(parts)) if len(parts) > 1 else [value]
        renamed |= {f"{part}.{leaf}": part_value for part, part_value in zip(parts, values, strict=True)}
    return renamed


def recognise(state: dict[str, Tensor], source: str) -> tuple[int, str]:
    """(layout, variant) of a state dict: by a name that one layout has, then by widths and depths of the stages."""
    stages = [(rows(STAGE, i=i, n=i + 1)[0], rows(BLOCKS, i=i, n=i + 1)[0]) for i in range(4)]
    layout = next((k for k, name in enumerate(stages[0][0]) if f"{name}.weight" in state), None)
    if layout is None:
        raise ValueError(f"{source} holds no SegFormer under names known here ({', '.join(LAYOUTS)}); the first is "
                         f"{next(iter(state), '')!r}")
    embeds = [f"{names[layout]}.weight" for names, _ in stages]
    dims = tuple(size for name in embeds if name in state for size in state[name].shape[:1])
    depths = tuple(len({name.removeprefix(prefix[layout]).split(".")[0] for name in state
                        if name.startswith(prefix[layout])}) for _, prefix in stages)
    return layout, variant_of(dims, depths, source)


def variant_of(dims: tuple[int, ...], depths: tuple[int, ...], source: str) -> str:
    """The variant with these widths and depths; raises ValueError where there is none."""
    for name, variant in VARIANTS.items():
        if (dims, depths) == variant[:2]:
            return name
    raise ValueError(f"{source} has stages of {dims} channels and {depths} blocks: none of SegFormer-B0 to B5")


def require_fit(state: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """Raises ValueError, in one line, where names, shapes or kinds of numbers are not those expected."""
    wrong = {"missing": [n for n in expected if n not in state], "unexpected": [n for n in state if n not in expected]}
    if any(wrong.values()):
        raise ValueError(f"{source}: weights " + ", ".join(f"{what} {len(names)} (first {names[0]!r})"
                                                           for what, names in wrong.items() if names))
    for name, target in expected.items():
        value = state[name]
        if value.shape != target.shape:
            raise ValueError(f"{source}: {name} has shape {tuple(value.shape)}, expected {tuple(target.shape)}")
        if value.layout != torch.strided or target.is_floating_point() and value.dtype not in FLOATS:
            raise ValueError(f"{source}: {name} holds {value.dtype}, expected plain floating-point numbers")
