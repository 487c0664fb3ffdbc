"""A checkpoint in llama.cpp's format: `python gguf_files.py FOLDER`, with llama-cpp-python, gguf and numpy there.

Writes bf16.gguf and files of FILE_TYPES beside `model.safetensors`, once. Started by
`benchmarks/cpu_peers.py --install` in llama.cpp's environment; llama.cpp and OpenVINO read them.
"""

import json
import sys
from pathlib import Path
from typing import Any

FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_0": 2, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""LLAMA_FTYPE_MOSTLY_*, made from bf16.gguf by llama.cpp itself."""


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Parameters of a layer of Llama or Qwen3: Hugging Face's names and llama.cpp's."""


def write_gguf(folder: Path, target: Path, gguf: Any, numpy: Any) -> None:
    """Matrices in bfloat16, norms in float32, a vocabulary of numbers."""
    config = json.loads((folder / "config.json").read_text())
    out = gguf.GGUFWriter(target, "qwen3")
    describe(out, config)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_file_type(32)  # LLAMA_FTYPE_MOSTLY_BF16
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(config["eos_token_id"])
    out.add_pad_token_id(config["eos_token_id"])
    out.add_chat_template("{{ messages[0].content }}")
    # The merge that there is makes the third token of the first two.
    out.add_token_list(["t", "1", "t1", *(f"t{i}" for i in range(3, config["vocab_size"]))])
    special = {config["bos_token_id"], config["eos_token_id"]}
    out.add_token_types([3 if i in special else 1 for i in range(config["vocab_size"])])
    out.add_token_merges(["t 1"])
    with (folder / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            file.seek(8 + size + entry["data_offsets"][0])
            raw = numpy.frombuffer(file.read(entry["data_offsets"][1] - entry["data_offsets"][0]), numpy.uint16)
            add(out, renamed(name), raw.reshape(entry["shape"]), gguf, numpy)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def describe(out: Any, config: dict[str, Any]) -> None:
    """Tell a writer the sizes of a model, as config.json has them."""
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])


def renamed(name: str) -> str:
    """llama.cpp's name of a parameter."""
    parts = name.removeprefix("model.").removesuffix(".weight")
    if parts.startswith("layers."):
        _, index, rest = parts.split(".", 2)
        return f"blk.{index}.{NAMES[rest]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight", "lm_head": "output.weight"}[parts]


def add(out: Any, name: str, raw: Any, gguf: Any, numpy: Any) -> None:
    """A tensor of bfloat16 bits."""
    if raw.ndim == 1:
        out.add_tensor(name, (raw.astype(numpy.uint32) << 16).view(numpy.float32))
        return
    kind = gguf.GGMLQuantizationType.BF16
    out.add_tensor(name, raw.view(numpy.uint8), raw_shape=raw.view(numpy.uint8).shape, raw_dtype=kind)


def main() -> None:
    """Write what is missing."""
    import gguf
    import llama_cpp as c
    import numpy

    folder = Path(sys.argv[1])
    whole = folder / "bf16.gguf"
    if not whole.exists():
        partial = whole.with_suffix(".partial")
        write_gguf(folder, partial, gguf, numpy)
        partial.rename(whole)
    for name, kind in FILE_TYPES.items():
        target = folder / f"{name}.gguf"
        if not target.exists():
            partial = target.with_suffix(".partial")
            params = c.llama_model_quantize_default_params()
            params.ftype = kind
            c.llama_model_quantize(str(whole).encode(), str(partial).encode(), params)
            partial.rename(target)


if __name__ == "__main__":
    main()
