"""A server of the toy model, whose next token is a hash of all that it reads back: whatever is wrong shows in it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

MODEL = "toy"
CONTEXT = 512
ROWS = 300
TEMPLATE = (
    "{#- <tool_call> -#}{% for message in messages %}{{ message.role }}: {{ message.content or '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_folder(folder: Path) -> Path:
    """A checkpoint of the toy model with a token per byte."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    # By words, as real ones do: a tokenizer remembers the words that it has seen, up to 10,000 of them.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<eos>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": TEMPLATE}))
    config = {"model_type": "toy", "vocab_size": ROWS, "max_position_embeddings": CONTEXT, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    # A safetensors file without tensors: the toy has no weights, but is loaded like any other model.
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@contextmanager
def toy_server(folder: Path, *flags: str) -> Iterator[tuple[str, psutil.Process]]:
    """Its address and its supervisor."""
    words = ["--model", str(make_folder(folder)), "--served-model-name", MODEL, "--port", "0", *flags]
    command = [sys.executable, "-m", "quire.cli", "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = next(line.split()[-1] for line in process.stdout if "ready at" in line)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)
