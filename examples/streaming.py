"""Asynchronous streaming: several requests at once, each printed as it comes."""

import asyncio

from quire import AsyncLLM, RequestOutputKind, SamplingParams


async def tell(engine: AsyncLLM, prompt: str) -> str:
    """The completion of one prompt, piece by piece."""
    params = SamplingParams(temperature=0.8, max_tokens=32, seed=1, output_kind=RequestOutputKind.DELTA)
    pieces = [output.outputs[0].text async for output in engine.generate(prompt, params)]
    return prompt + "".join(pieces)


async def main() -> None:
    """Two prompts side by side."""
    engine = await AsyncLLM.start(model="default")
    for text in await asyncio.gather(tell(engine, "The sea was"), tell(engine, "The captain said")):
        print(text, end="\n\n")
    await engine.close()


asyncio.run(main())
