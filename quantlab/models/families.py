"""Where the blocks of a model are: data, not code. A new architecture is one more line."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


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
    """

    blocks: str
    model_types: tuple[str, ...]


FAMILIES = (
    Family("model.layers", ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "smollm3")),
    Family("model.decoder.layers", ("opt",)),
    Family("gpt_neox.layers", ("gpt_neox",)),
)


def find_blocks(model: nn.Module, path: str | None = None) -> dict[str, nn.Module]:
    """Return the model's blocks in order, by their full names.

    Parameters
    ----------
    model : nn.Module
    path : dotted path of a ModuleList, or None
        For an architecture that is not in ``FAMILIES``.

    Raises
    ------
    UnsupportedModelError
        If there is no list of blocks with linears at any known path.
    """
    for candidate in [path] if path else [family.blocks for family in FAMILIES]:
        modules = resolve(model, candidate)
        if modules is not None and len(modules) and all(linears(block) for block in modules):
            return {f"{candidate}.{i}": block for i, block in enumerate(modules)}
    found = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    hint = f"its ModuleLists are {', '.join(found)}" if found else "it has no ModuleList"
    raise UnsupportedModelError(
        f"{type(model).__name__} has no blocks with linears at "
        f"{path or ', '.join(family.blocks for family in FAMILIES)}; {hint}. "
        "Pass blocks='path.to.the.list' to quantize_"
    )


def resolve(model: nn.Module, path: str) -> nn.ModuleList | None:
    """Follow a dotted path; None if it does not end in a ModuleList."""
    module: object = model
    for part in path.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, nn.ModuleList) else None


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers inside a block by name."""
    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
