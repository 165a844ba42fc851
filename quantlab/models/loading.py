"""Open a model and its tokenizer: the embedded storyteller, a folder, or a Hugging Face id."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer as RawTokenizer
from torch import nn

from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.models.outlier import add_outliers_

EMBEDDED = Path(__file__).parent / "storyteller"


class Tokenizer:
    """Text to ids, the begin token first, and back."""

    def __init__(self, raw: RawTokenizer, begin: int | None) -> None:
        self.raw, self.begin = raw, begin

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text after the begin token.

        Examples
        --------
        >>> model, tokenizer = load("storyteller")
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
        """
        ids = self.raw.encode(text, add_special_tokens=False).ids
        return ids if self.begin is None else [self.begin, *ids]

    def decode(self, ids: list[int] | torch.Tensor) -> str:
        """Return the text of ids, special tokens left out."""
        flat = ids.flatten().tolist() if isinstance(ids, torch.Tensor) else ids
        return self.raw.decode(flat, skip_special_tokens=True)

    def __len__(self) -> int:
        return self.raw.get_vocab_size()


def load(name: str | Path) -> tuple[nn.Module, Tokenizer]:
    """Open a model in float32 on the CPU, ready to read, and its tokenizer.

    Parameters
    ----------
    name : str or path
        ``storyteller`` (embedded, 3.67 M parameters), ``storyteller-outlier`` (the same function
        with planted outlier channels), a folder in Hugging Face's layout, a folder that
        ``quantlab quantize`` wrote, a ``.gguf`` file, or a Hugging Face id (needs transformers;
        downloaded only if the environment says ``QUANTLAB_ONLINE=1``).

    Returns
    -------
    model, tokenizer

    Raises
    ------
    UnsupportedModelError
        If the folder is incomplete, or is for transformers and that is not installed.

    Examples
    --------
    >>> model, tokenizer = load("storyteller")
    >>> sum(weight.numel() for weight in model.parameters())
    3672320
    """
    if str(name) == "storyteller":
        return open_folder(EMBEDDED)
    if str(name) == "storyteller-outlier":
        model, tokenizer = open_folder(EMBEDDED)
        assert isinstance(model, Llama)  # for the type checker: the embedded folder is ours
        return add_outliers_(model), tokenizer
    if Path(name).is_dir():
        return open_folder(Path(name))
    if Path(name).suffix == ".gguf":
        return open_gguf(Path(name))
    return open_with_transformers(str(name))


def open_folder(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """Open a model folder with the small Llama where it can hold it, else with transformers."""
    config = read_config(folder)
    if not is_small_llama(config):
        return open_with_transformers(str(folder))
    model = small_model(config, folder)
    state = read_weights(folder)
    if "quantization_config" in config:
        from quantlab.checkpoint import restore_  # row 3, to the right: only such folders need it

        restore_(model, state, config["quantization_config"])
    else:
        state.pop("lm_head.weight", None)  # tied: the embedding is the head
        fill_(model, {name: tensor.float() for name, tensor in state.items()})
    return model.eval(), read_tokenizer(folder, config)


def open_gguf(path: Path) -> tuple[nn.Module, Tokenizer]:
    """Open a GGUF file that holds a tokenizer."""
    from quantlab.export.gguf_load import load_gguf  # row 3, to the right: only such files need it

    model, tokenizer = load_gguf(path)
    if tokenizer is None:
        raise UnsupportedModelError(f"{path} has no tokenizer; open it with ql.load_gguf")
    return model, tokenizer


def fill_(model: Llama, floats: dict[str, torch.Tensor]) -> None:
    """Load the tensors that stayed in float; each must be there, be known, and fit."""
    wanted = dict(model.named_parameters())
    if missing := wanted.keys() - floats.keys():
        raise UnsupportedModelError(f"the folder lacks {', '.join(sorted(missing))}")
    if unknown := floats.keys() - wanted.keys():
        raise UnsupportedModelError(f"the folder holds unknown {', '.join(sorted(unknown))}")
    for name, weight in wanted.items():
        if weight.shape != floats[name].shape:
            shapes = tuple(floats[name].shape), tuple(weight.shape)
            raise UnsupportedModelError(
                f"{name} has shape {shapes[0]}; the config says {shapes[1]}"
            )
        weight.data.copy_(floats[name])


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UnsupportedModelError(
            f"{folder} has no readable config.json ({error.strerror}); pass a model folder"
        ) from error
    except ValueError as error:
        raise UnsupportedModelError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnsupportedModelError(f"{folder / 'config.json'} holds no JSON object")
    return config


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the folder's model.safetensors."""
    path = folder / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UnsupportedModelError(f"cannot read {path}: {error}") from error


def read_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of the folder's tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UnsupportedModelError(f"{folder} has no tokenizer.json; copy it beside the weights")
    try:
        raw = RawTokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception on a bad file
        raise UnsupportedModelError(f"cannot read {path}: {error}") from error
    return Tokenizer(raw, config.get("bos_token_id"))


def is_small_llama(config: dict[str, Any]) -> bool:
    """Tell whether the config describes a tied, bias-free Llama with plain rotary positions."""
    scaling = config.get("rope_scaling")
    return (
        config.get("model_type") == "llama"
        and bool(config.get("tie_word_embeddings"))
        and not config.get("attention_bias")
        and not config.get("mlp_bias")
        and not scaling
        and isinstance(config.get("bos_token_id"), int)
    )


def small_model(config: dict[str, Any], folder: Path) -> Llama:
    """Return an empty small Llama of the config's sizes, or say that they make no model."""
    try:
        return Llama(small_config(config))
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UnsupportedModelError(f"{folder / 'config.json'} fits no Llama: {first}") from error


def small_config(config: dict[str, Any]) -> LlamaConfig:
    """Pick the entries of a Hugging Face config that the small Llama reads."""
    known = LlamaConfig.__dataclass_fields__
    picked = {key: value for key, value in config.items() if key in known and value is not None}
    rope = config.get("rope_parameters") or {}  # where newer transformers keep theta
    return LlamaConfig(**picked | {k: v for k, v in rope.items() if k == "rope_theta"})


def open_with_transformers(name: str) -> tuple[nn.Module, Tokenizer]:
    """Open a folder or an id with transformers."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise UnsupportedModelError(
            f"{name!r} is no embedded model and no folder of a small Llama; opening it needs "
            "transformers: pip install transformers. Embedded: storyteller, storyteller-outlier"
        ) from error
    cached = os.environ.get("QUANTLAB_ONLINE") != "1"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, local_files_only=cached
        )
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=cached)
    except (OSError, ValueError) as error:
        if cached and not Path(name).is_dir():
            raise UnsupportedModelError(
                f"there is no folder {name!r} and no downloaded model of that name; set "
                "QUANTLAB_ONLINE=1 to download it. Embedded: storyteller, storyteller-outlier"
            ) from error
        first = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(f"cannot open {name!r}: {first}") from error
    return model.eval(), Tokenizer(tokenizer.backend_tokenizer, tokenizer.bos_token_id)


def make_with_transformers(config: dict[str, Any]) -> nn.Module:
    """Return transformers' Llama of a config in float32; its weights are not yet the model's."""
    try:
        from transformers import LlamaConfig as Config
        from transformers import LlamaForCausalLM
    except ImportError as error:
        raise UnsupportedModelError(
            "this model is no small Llama (untied head, biases, head size or rope scaling); "
            "opening it needs transformers: pip install transformers"
        ) from error
    rope = config["rope_parameters"]
    if not hasattr(Config(), "rope_parameters"):  # before transformers 5
        scaling = None if rope["rope_type"] == "default" else rope
        config = config | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    return LlamaForCausalLM(Config(**config)).float()
