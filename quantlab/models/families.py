"""Where the blocks of a model are: data, not code. A new architecture is one more line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from quantlab.block import Scaling


class UnsupportedModelError(ValueError):
    """The model's blocks are not where any known architecture keeps them."""


@dataclass(frozen=True)
class Family:
    """Architectures that share one path to their list of blocks.

    Attributes
    ----------
    blocks : str
        Dotted path from the model to an ``nn.ModuleList`` of blocks.
    model_types : tuple of str
        Hugging Face's ``config.model_type`` of models known to have it.
    scalings : tuple of Scaling
        Where input scales can be folded. A block that lacks one of the modules does without.
    """

    blocks: str
    model_types: tuple[str, ...]
    scalings: tuple[Scaling, ...] = ()


LLAMA_SCALINGS = (
    Scaling(
        "input_layernorm",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        inspect="self_attn",
    ),
    Scaling("self_attn.v_proj", ("self_attn.o_proj",), inspect="self_attn.o_proj"),
    Scaling("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), inspect="mlp"),
    Scaling("mlp.up_proj", ("mlp.down_proj",), inspect="mlp.down_proj"),
)
# Gemma's norms multiply by 1 + gain and have others between the sublayers: no scaling folds there.
FAMILIES = (
    Family("model.layers", ("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA_SCALINGS),
    Family("model.layers", ("phi3", "gemma2")),
    Family("model.decoder.layers", ("opt",)),
    Family("gpt_neox.layers", ("gpt_neox",)),
)


def find_blocks(model: nn.Module, path: str | Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the model's blocks in order, by their full names.

    Parameters
    ----------
    model : nn.Module
    path : dotted path of a ModuleList or Sequential, names of blocks, or None
        For an architecture that is not in ``FAMILIES``.

    Raises
    ------
    UnsupportedModelError
        If there is no list of blocks with linears at any known path, or no module of a given name.
    """
    if path is not None and not isinstance(path, str):
        return named_blocks(model, path)
    if isinstance(sequence := resolve(model, path or ""), nn.Sequential):
        children = [f"{path}.{name}" for name, m in sequence.named_children() if layers(m)]
        return named_blocks(model, children)
    for candidate in [path] if path else [family.blocks for family in FAMILIES]:
        modules = resolve(model, candidate)
        if modules is not None and len(modules) and all(linears(block) for block in modules):
            return {f"{candidate}.{i}": block for i, block in enumerate(modules)}
    found = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    hint = f"its ModuleLists are {', '.join(found)}" if found else "it has no ModuleList"
    raise UnsupportedModelError(
        f"{type(model).__name__} has no blocks with linears at "
        f"{path or ', '.join(family.blocks for family in FAMILIES)}; {hint}. "
        "Pass blocks='path.to.the.list', or blocks=['name', 'name'] for blocks that lie anywhere"
    )


def named_blocks(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules of these names, each with a layer that holds weights."""
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise UnsupportedModelError(f"{type(model).__name__} has no module {name!r}")
        held = layers(modules[name])
        if not held or "" in held:
            what = "is itself a layer" if held else "holds no Linear or Conv2d"
            raise UnsupportedModelError(f"{name!r} {what}; a block is a module around layers")
        if list(names).count(name) > 1:
            raise UnsupportedModelError(f"{name!r} is named twice")
        for outer in names:
            if name.startswith(f"{outer}."):
                raise UnsupportedModelError(
                    f"{name!r} lies inside {outer!r}; name only one of them"
                )
    if not names:
        raise UnsupportedModelError("blocks names no block; pass at least one")
    return {name: modules[name] for name in names}


def resolve(model: nn.Module, path: str) -> nn.ModuleList | nn.Sequential | None:
    """Follow a dotted path; None if it does not end in a list of modules."""
    module: object = model
    for part in path.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, nn.ModuleList | nn.Sequential) else None


def layers(block: nn.Module, *, convolutions: bool = True) -> dict[str, Any]:
    """Return the layers of a block that hold a weight matrix, by name ("" is the block itself)."""
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    return {name: m for name, m in block.named_modules() if isinstance(m, kinds)}


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers inside a block by name."""
    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}


def find_scalings(model: nn.Module) -> tuple[Scaling, ...]:
    """Return where the model's blocks can fold input scales; empty for an unknown architecture.

    The model's ``config.model_type`` decides; a model without one is recognized by its modules.
    """
    kind = getattr(getattr(model, "config", None), "model_type", "llama")
    for family in FAMILIES:
        if kind in family.model_types and resolve(model, family.blocks) is not None:
            return family.scalings
    return ()
