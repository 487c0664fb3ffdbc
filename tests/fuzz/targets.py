"""Everything that reads bytes from outside, each as a function of bytes, with what it may raise and what must hold."""

import asyncio
import atexit
import json
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quire.base.errors import CheckpointError, QuireError, RequestError, TransportError
from quire.chat.events import fold, merge
from quire.chat.formats.recognise import TOOLS as FORMATS
from quire.chat.formats.recognise import reasoning_format, tool_format
from quire.chat.splitter import StreamSplitter
from quire.checkpoint.gguf import read_gguf
from quire.checkpoint.headers import read_header
from quire.cli.load.client import Line, Sample
from quire.messages.codec import Codec
from quire.messages.control import FromFront, ToFront
from quire.messages.frames import receive
from quire.messages.rank import FromRank, ToRank
from quire.messages.wire import FromClient, ToClient
from quire.server.channel import Channel
from quire.server.text.strict_json import parse_object
from tests.chat.tool_texts import ANSWERS, TOOLS

CODECS = [Codec(union) for union in (FromClient, ToClient, ToFront, FromFront, ToRank, FromRank)]
FOLDER = Path(tempfile.mkdtemp(prefix="quire-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def frames(raw: bytes) -> None:
    """Messages of every border: what is accepted is what would have been sent."""
    for codec in CODECS:
        with suppress(TransportError):
            message = codec.decode(raw)
            assert codec.encode(codec.decode(codec.encode(message))) == codec.encode(message)


def stream_frames(raw: bytes) -> None:
    """Frames with a length before them, over a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw[:60_000])
        theirs.shutdown(socket.SHUT_WR)
        read = 0
        while (frame := receive(ours)) is not None:
            read += len(frame) + 4
        assert read <= len(raw)


def wire(raw: bytes) -> None:
    """The same in an event loop: the conversation of the supervisor and its front ends."""

    async def listen() -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(raw[:60_000])
        theirs.close()
        channel: Channel[object] = await Channel.open(ours, FromFront)
        try:
            while await channel.receive() is not None:
                pass
        finally:
            channel.close()

    asyncio.run(listen())


def safetensors(raw: bytes) -> None:
    """Headers of weights: every tensor that is accepted lies in the file."""
    file = FOLDER / "fuzzed.safetensors"
    file.write_bytes(raw)
    for entry in read_header(file):
        assert 8 <= entry.offset <= entry.offset + entry.nbytes <= len(raw)


def gguf(raw: bytes) -> None:
    """The same of GGUF."""
    file = FOLDER / "fuzzed.gguf"
    file.write_bytes(raw)
    for tensor in read_gguf(file).tensors:
        assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(raw)


def strict_json(raw: bytes) -> None:
    """Bodies: what is accepted is what Python's own parser finds, and can be said again."""
    value = parse_object(raw)
    assert value == json.loads(raw)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def tools(raw: bytes) -> None:
    """What models write: cut anywhere, it is told apart in the same way, and arguments are JSON."""
    text = raw[1:].decode("utf-8", "replace")
    format = FORMATS[raw[0] % len(FORMATS)].name if raw else FORMATS[0].name

    def told(pieces: list[str]) -> list[object]:
        splitter = StreamSplitter(tool_format(format, ""), reasoning_format("think", ""), TOOLS)
        return merge([*(event for piece in pieces for event in splitter.push(piece)), *splitter.finish()])

    whole, middle = told([text]), len(text) // 2
    assert told([text[:middle], text[middle:]]) == whole
    for call in fold(whole).calls:
        assert isinstance(json.loads(call.arguments), dict)


def sse(raw: bytes) -> None:
    """A stream of events as our own client reads it: however it is cut into packets, the same comes out."""

    async def read(cut: int) -> tuple[str, str | None, int]:
        line, sample = Line(keep_text=True), Sample(due=0.0)
        line.expect(sample, asyncio.get_running_loop().create_future())
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw)
        whole = head + raw
        for start in range(0, len(whole), cut):
            with suppress(ValueError):
                line.data_received(whole[start : start + cut])
        return line.text, sample.finish_reason, sample.output_tokens

    one, many = asyncio.run(read(1 << 20)), asyncio.run(read(7))
    with suppress(ValueError):
        for event in raw.split(b"\n\n"):
            if event.startswith(b"data: {"):
                json.loads(event[6:])
        assert one == many or b'"' not in raw


@dataclass(frozen=True)
class Target:
    """A reader of bytes, what it may raise, and inputs from which others are made."""

    read: Callable[[bytes], None]
    raises: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def header(entries: dict[str, object], data: int = 64) -> bytes:
    """A safetensors file."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def gguf_text(text: bytes) -> bytes:
    """A string of GGUF."""
    return struct.pack("<Q", len(text)) + text


GGUF = (
    struct.pack("<4sIQQ", b"GGUF", 3, 1, 5)
    + (gguf_text(b"general.architecture") + struct.pack("<I", 8) + gguf_text(b"llama"))
    + (gguf_text(b"general.alignment") + struct.pack("<II", 4, 32))
    + (gguf_text(b"split.count") + struct.pack("<II", 4, 1))
    + (gguf_text(b"split.no") + struct.pack("<II", 4, 0))
    + (gguf_text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + gguf_text(b"a") + gguf_text(b"b"))
    + (gguf_text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 4, 0, 0))
    + bytes(256)
)
TENSOR = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
MESSAGES = [codec.encode(["Hello", "1"]) for codec in CODECS[:1]] + [
    b"\x82\xa4type\xa5Abort\xa3ids\x91\xa11",
    b"\x84\xa4type\xa6Finish\xa2id\xa11\xa5index\x00\xa6tokens\x05",
    b"\x82\xa4type\xa6Failed\xa7message\xa3why",
    b"\x83\xa4type\xa6Strike\xa5print\xc4\x01x\xa6tokens\x01",
]
EVENTS = b'data: {"choices":[{"text":"h\xc3\xa9","finish_reason":null}]}\n\n'

TARGETS = {
    "frames": Target(frames, (TransportError,), tuple(MESSAGES)),
    "stream_frames": Target(stream_frames, (TransportError,), (b"\0\0\0\2ab" * 2, b"\xff\xff\xff\xff", b"\0\0")),
    "wire": Target(wire, (TransportError,), tuple(struct.pack(">I", len(m)) + m for m in MESSAGES)),
    "safetensors": Target(safetensors, (CheckpointError,), (header({"a": TENSOR}), header({"__metadata__": {}}, 0))),
    "gguf": Target(gguf, (CheckpointError,), (GGUF,)),
    "strict_json": Target(strict_json, (RequestError,), (b'{"a": [1, -2.5e3, "\\ud83d\\ude00", null]}', b'{"a":{}}')),
    "tools": Target(
        tools, (), tuple(bytes([number % 32]) + answer.text.encode() for number, answer in enumerate(ANSWERS[:24]))
    ),
    "sse": Target(
        sse, (QuireError,), (EVENTS + b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n',)
    ),
}
