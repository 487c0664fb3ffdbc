"""Offline inference: complete some prompts with the model that ships with quire."""

from quire import LLM, SamplingParams

with LLM() as llm:
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=48, seed=1)
    for output in llm.generate(["The old house stood on a hill, and", "She opened the letter and"], params):
        print(output.prompt, "→", output.outputs[0].text, end="\n\n")
