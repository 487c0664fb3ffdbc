"""A core of one's own: its process, the connection to it, and what it says when it is ready. Used by `AsyncLLM.start`.

Where the supervisor starts cores, front ends join them instead. Needs no torch.
"""

import asyncio
import os
from collections.abc import Sequence

from quire.base.errors import EngineError
from quire.checkpoint.facts import ModelFacts
from quire.config.fields import EngineConfig
from quire.engine.client import CoreClient
from quire.engine.launch import CoreProcess, CoreSetup, private_folder
from quire.engine.pulse import Pulse, shared_page
from quire.messages.wire import EngineFacts, Failed

STOP_TIMEOUT_S = 5.0

ON_ITS_WAY_S = 0.5
"""What a core has sent before it ended may take as long to be here."""


async def start_core(
    config: EngineConfig, model: ModelFacts, core: Sequence[str]
) -> tuple[CoreProcess, CoreClient, EngineFacts]:
    """A core that is ready; `core` is what Python runs. Raises EngineError with the core's own words if it fails."""
    page = shared_page()
    try:
        pulse = Pulse(page)
        process = await CoreProcess.start(config, model, core, CoreSetup(private_folder(), pulse=page))
    finally:
        os.close(page)
    client: CoreClient | None = None
    try:
        client = CoreClient(process.address)
        return process, client, await _first_facts(client, process, pulse)
    except BaseException:
        try:
            if client is not None:
                client.close()
        finally:
            await process.stop(STOP_TIMEOUT_S)
        raise


async def _first_facts(client: CoreClient, process: CoreProcess, pulse: Pulse) -> EngineFacts:
    """What a starting core says first. Raises EngineError if it fails or ends."""
    ended = asyncio.create_task(process.ended())
    said = asyncio.create_task(client.receive())
    try:
        await asyncio.wait([ended, said], return_when=asyncio.FIRST_COMPLETED)
        if not said.done() and not pulse.said:
            await asyncio.wait([said], timeout=ON_ITS_WAY_S)
        if not said.done():
            raise EngineError(pulse.said or f"{ended.result()} before it was ready; its log is above")
        message = said.result()
        if isinstance(message, EngineFacts):
            return message
        raise EngineError(message.message if isinstance(message, Failed) else "the engine spoke out of turn")
    finally:
        ended.cancel()
        said.cancel()
