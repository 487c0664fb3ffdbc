"""`notify`: tells systemd how the service fares, where it has asked for that (Type=notify).

The protocol is sd_notify(3): a datagram to the socket in NOTIFY_SOCKET; "@" is the abstract namespace.
"""

import socket

from quire.base.logging import get_logger
from quire.config import environ

log = get_logger(__name__)


def notify(state: str) -> None:
    """Send `state`, such as READY=1. A socket that does not take it is logged: the service itself can go on."""
    address = environ.read("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.sendall(state.encode())
        except OSError as error:
            log.warning("cannot tell systemd %s: %s", state, error)
