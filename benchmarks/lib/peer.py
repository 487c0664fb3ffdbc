"""One engine as a process that answers questions: `python peer.py ENGINE FOLDER PRECISION THREADS`.

It runs in the engine's own environment and imports nothing of quire but the engine itself. A line of JSON on standard
input, {"prompts": [[...]], "outputs": [...]}, is answered by one on standard output, {"seconds": ...}; the first line
it writes says that the model is loaded. Started by `benchmarks/cpu_peers.py`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, list[int]], int]
CONTEXT, ROWS, CHUNK = 2048, 32, 512


def quire(folder: str, precision: str, threads: int) -> Generate:
    """This project. Precisions: bf16, int8, int4."""
    from quire.config.environ import become_computing

    become_computing()
    import quire as engine

    llm = engine.LLM(
        folder,
        device="cpu",
        dtype="bfloat16",
        threads=threads,
        max_model_len=CONTEXT,
        kv_cache_memory_bytes=3 << 30,
        quantization=None if precision == "bf16" else precision,
        log_level="warning",
    )

    def generate(prompts: Prompts, outputs: list[int]) -> int:
        params = [
            engine.SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in outputs
        ]
        done = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in done)

    return generate


def vllm(folder: str, precision: str, threads: int) -> Generate:
    """vLLM's CPU backend, its threads bound by hand. Precision: bf16."""
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_CPU_KVCACHE_SPACE": "3"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    import vllm as engine

    llm = engine.LLM(folder, dtype="bfloat16", max_model_len=CONTEXT, skip_tokenizer_init=True)

    def generate(prompts: Prompts, outputs: list[int]) -> int:
        params = [
            engine.SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in outputs
        ]
        done = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in done)

    return generate


def transformers(folder: str, precision: str, threads: int) -> Generate:
    """transformers, eager, all requests in one padded batch. Precision: bf16."""
    import torch
    import transformers as engine

    torch.set_num_threads(threads)
    model = engine.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def generate(prompts: Prompts, outputs: list[int]) -> int:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        model.generation_config = engine.GenerationConfig(do_sample=False, max_new_tokens=max(outputs), pad_token_id=0)
        with torch.inference_mode():
            model.generate(ids, attention_mask=seen)
        return sum(outputs)

    return generate


def llama(folder: str, precision: str, threads: int) -> Generate:
    """llama.cpp by its plain interface: all sequences in one batch a step, a shared prefix computed once.

    Precisions: bf16, q8_0, q4_0.
    """
    import llama_cpp as c

    c.llama_backend_init()
    params = c.llama_model_default_params()
    model = c.llama_model_load_from_file(str(gguf_of(Path(folder), precision)).encode(), params)
    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = CONTEXT * ROWS // 2, CHUNK, CHUNK, ROWS
    settings.n_threads = settings.n_threads_batch = threads
    settings.kv_unified = True
    context = c.llama_init_from_model(model, settings)
    return Llama(c, context, c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))).generate


class Llama:
    """Sequences of llama.cpp."""

    def __init__(self, c: Any, context: Any, vocab: int) -> None:
        import numpy

        self.c, self.context, self.vocab, self.numpy = c, context, vocab, numpy
        self.batch = c.llama_batch_init(CHUNK, 0, 1)

    def generate(self, prompts: Prompts, outputs: list[int]) -> int:
        """Prompts one after another in chunks, then all sequences a token at a time."""
        c, memory = self.c, self.c.llama_get_memory(self.context)
        c.llama_memory_clear(memory, True)
        shared = next((i for i, column in enumerate(zip(*prompts)) if len(set(column)) > 1), 0)  # noqa: B905
        shared = shared if len(prompts) > 1 else 0
        last = {}
        for row, prompt in enumerate(prompts):
            done = 0
            if row and shared:
                c.llama_memory_seq_cp(memory, 0, row, 0, shared)
                done = shared
            for at in range(done, len(prompt), CHUNK):
                part = prompt[at : at + CHUNK]
                last[row] = self.step([(row, at + i, t) for i, t in enumerate(part)], [len(part) - 1])[0]
        made = len(prompts)
        for done in range(1, max(outputs)):
            rows = [row for row, n in enumerate(outputs) if n > done]
            work = [(row, len(prompts[row]) + done - 1, last[row]) for row in rows]
            last |= dict(zip(rows, self.step(work, list(range(len(rows)))), strict=True))
            made += len(rows)
        return made

    def step(self, work: list[tuple[int, int, int]], wanted: list[int]) -> list[int]:
        """Compute (sequence, position, token) and return the most probable next token of those wanted."""
        batch = self.batch
        batch.n_tokens = len(work)
        for i, (row, position, token) in enumerate(work):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, row
            batch.logits[i] = i in wanted
        if self.c.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp cannot compute this batch")
        logits = [self.c.llama_get_logits_ith(self.context, i) for i in wanted]
        return [int(self.numpy.ctypeslib.as_array(one, (self.vocab,)).argmax()) for one in logits]


def gguf_of(folder: Path, precision: str) -> Path:
    """The checkpoint in llama.cpp's format, written at the first call."""
    import gguf
    import llama_cpp as c
    import numpy

    whole, target = folder / "bf16.gguf", folder / f"{precision}.gguf"
    if not whole.exists():
        write_gguf(folder, whole.with_suffix(".partial"), gguf, numpy)
        whole.with_suffix(".partial").rename(whole)
    if not target.exists():
        params = c.llama_model_quantize_default_params()
        params.ftype = {"q8_0": 7, "q4_0": 2}[precision]  # LLAMA_FTYPE_MOSTLY_*
        c.llama_model_quantize(str(whole).encode(), str(target).encode(), params)
    return target


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
"""Parameters of a layer of Qwen3: Hugging Face's names and llama.cpp's."""


def write_gguf(folder: Path, target: Path, gguf: Any, numpy: Any) -> None:
    """Matrices in bfloat16, norms in float32, a vocabulary of numbers."""
    config = json.loads((folder / "config.json").read_text())
    out = gguf.GGUFWriter(target, "qwen3")
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_file_type(32)  # LLAMA_FTYPE_MOSTLY_BF16
    out.add_tokenizer_model("gpt2")
    out.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    out.add_token_types([1] * config["vocab_size"])
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


ENGINES = {"quire": quire, "llama.cpp": llama, "vllm-cpu": vllm, "transformers": transformers}


def main() -> None:
    """Load, then answer."""
    engine, folder, precision, threads = sys.argv[1:]
    # What engines print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    generate = ENGINES[engine](folder, precision, int(threads))
    generate([[5, 6, 7, 8]], [1])
    answers.write('{"ready": true}\n')
    for line in sys.stdin:
        asked = json.loads(line)
        begin = time.perf_counter()
        made = generate(asked["prompts"], asked["outputs"])
        seconds = time.perf_counter() - begin
        assert made == sum(asked["outputs"]), f"{made} tokens instead of {sum(asked['outputs'])}"
        answers.write(json.dumps({"seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
