"""Every error that quire raises on purpose.

QuireError
├── ConfigError          a setting is wrong, or settings contradict each other
├── PlatformError        the device asked for is not there or cannot be used
├── CheckpointError      a file of the checkpoint is missing, damaged or does not match the model
├── RequestError         a request is wrong; belongs to its sender and to nobody else
├── EngineError          the engine failed while serving
│   └── EngineDeadError  the engine process has ended; nothing more will come from it
└── TransportError       bytes between processes that cannot be understood

Messages name the field and say what to do; they are written for the person who reads them.
"""


class QuireError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(QuireError):
    """A setting is wrong. The message names the field and the remedy."""


class PlatformError(QuireError):
    """The device asked for is missing or unusable. The message says what would work."""


class CheckpointError(QuireError):
    """A checkpoint file is missing, damaged or does not fit the model. The message names file and tensor or field."""


class RequestError(QuireError):
    """A request is refused.

    Args:
        message: one sentence for the sender, with the remedy.
        param: the field at fault, as the sender wrote it (`temperature`, `messages[0].role`), if there is one.
        code: a stable word for programs, such as `context_length_exceeded`.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class EngineError(QuireError):
    """The engine failed while serving this request."""


class EngineDeadError(EngineError):
    """The engine process has ended.

    Args:
        message: how.
        retry_after_s: when another one may be there.
    """

    def __init__(self, message: str, retry_after_s: int = 10) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TransportError(QuireError):
    """Bytes from another process are not a message of this version."""
