"""Sample texts of the exported checkpoint for the documentation, written by the transformers library on a CPU.

    PYTHONPATH=tools python -m default_model.samples quire/assets/default_model

Sampling through another implementation also proves that the checkpoint is what it says it is.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

_PLAIN = (
    "It was a dark and stormy night",
    "The old house stood at the end of the lane.",
    "When the captain had finished his letter, he",
)
_CHATS = (
    ("Tell me a story.", "What happened next?"),
    ("The door opened slowly, and a man whom I had never seen before came into the room.",),
    ("Good morning, sir. How are you today?", "And where are you going?"),
)


def sample_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, seed: int) -> str:
    inputs = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(seed)
    output = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=180)
    return tokenizer.decode(output[0], skip_special_tokens=True)


def sample_chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: tuple[str, ...], seed: int
) -> list[tuple[str, str, bool]]:
    """Return each turn with its answer and whether the model ended the answer by itself."""
    messages: list[dict[str, str]] = []
    answers: list[tuple[str, str, bool]] = []
    torch.manual_seed(seed)
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=400)
        reply = output[0, inputs["input_ids"].shape[1] :]
        answer = tokenizer.decode(reply, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        answers.append((turn, answer, int(reply[-1]) == tokenizer.eos_token_id))
    return answers


def _quoted(text: str) -> str:
    return "".join(f"> {line}".rstrip() + "\n" for line in text.split("\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print samples of a checkpoint as Markdown.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    for prompt in _PLAIN:
        text = sample_plain(model, tokenizer, prompt, arguments.seed)
        print(_quoted(f"**{prompt}**{text.removeprefix(prompt).rstrip()}"))
    for turns in _CHATS:
        for turn, answer, ended in sample_chat(model, tokenizer, turns, arguments.seed):
            print(_quoted(f"**user:** {turn}\n\n**assistant{'' if ended else ', cut at 400 tokens'}:** {answer}"))


if __name__ == "__main__":
    main()
