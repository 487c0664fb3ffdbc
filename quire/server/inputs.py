"""`encoded`: the inputs of a request, texts or token ids, all as token ids, without blocking others."""

from collections.abc import Sequence

import msgspec

from quire.messages.text import Encode
from quire.server.service import Service
from quire.server.text.lengths import check_length
from quire.server.text.texts import Fits


async def encoded(
    listed: Sequence[str | list[int]], param: str, how: Encode, service: Service, fits: Fits | None = None
) -> tuple[list[list[int]], list[str | None]]:
    """Token ids of each of several inputs, and its text if it came as text.

    Args:
        listed: texts, or token ids.
        param: the field that they came in.
        how: to encode texts.
        fits: refuses long texts that have too many tokens.
    """
    texts = [one if isinstance(one, str) else None for one in listed]
    given = [text for text in texts if text is not None]
    check_length(max(map(len, given), default=0), param)
    found = iter(await service.texts.encode(msgspec.structs.replace(how, texts=given), fits))
    return [next(found) if isinstance(one, str) else one for one in listed], texts
