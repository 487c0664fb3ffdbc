"""`bind`: the sockets that front ends listen on, made before anything is loaded; and whether certificates are any good.

Called by the supervisor, so nothing here knows of HTTP.
"""

import ipaddress
import os
import resource
import socket
import ssl
import stat
from pathlib import Path

from quire.base.errors import ConfigError
from quire.config.fields import ServerConfig

BACKLOG = 2048
SPARE_DESCRIPTORS = 128
"""For all that is no connection of a client."""
LEAST_DESCRIPTORS = 2 * SPARE_DESCRIPTORS
"""As many for clients as for all else that a front end has open."""


def bind_all(config: ServerConfig) -> list[socket.socket]:
    """A listening socket for each front end. Raises ConfigError as `bind` does.

    A port has one socket per front end, over which the kernel spreads connections; a path has one for all of them.
    """
    first = bind(config)
    if config.api_server_count == 1 or config.uds is not None:
        return [first] * config.api_server_count
    # Sockets that share a port let any other of this user in, too: the first one is there to see whether it is free.
    address = first.getsockname()
    sockets = []
    for _ in range(config.api_server_count):
        listener = socket.socket(first.family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sockets.append(listener)
    first.close()
    for listener in sockets:
        listener.bind(address)
        listener.listen(BACKLOG)
    return sockets


def check_descriptors() -> None:
    """Refuse to serve where too few files may be open to hold any clients. Raises ConfigError."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < LEAST_DESCRIPTORS:
        raise ConfigError(
            f"only {most} files may be open in a process here, and serving takes {LEAST_DESCRIPTORS}; raise the limit "
            "(ulimit -Hn 65536, systemd: LimitNOFILE=65536)"
        )


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket. Listening at once keeps a second server off the port while this one still loads.

    Raises ConfigError if the address is taken or cannot be had.
    """
    return _bind_path(config.uds) if config.uds is not None else _bind_port(config.host, config.port)


def _bind_path(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_over(path)
        # The file must never be there with wider permissions, not even for a moment.
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"uds: cannot listen on {path!r}: {error.strerror or error}; choose another --uds") from error
    return listener


def _remove_left_over(path: str) -> None:
    """Remove the socket of a server that has ended. Raises OSError if one listens there, or it is something else."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise OSError("there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise OSError("a server listens there")


def _bind_port(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose others with --host and --port (0: any free)"
        ) from error
    return listener


def is_own(host: str) -> bool:
    """Whether an address is this machine's own, which no other machine can use."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_guard(config: ServerConfig, listener: socket.socket) -> None:
    """Raise ConfigError if other machines can reach the server without a key, and nobody has said that they may."""
    guarded = (config.uds, config.api_key, config.api_key_file, config.ssl_ca_certs) != (None,) * 4
    host = str(listener.getsockname()[0])
    if not guarded and not config.allow_unauthenticated and not is_own(host):
        raise ConfigError(
            f"host: other machines can reach {host} and no key is asked for; set --api-key-file (or --api-key), or say "
            "--allow-unauthenticated if anybody may ask"
        )


def tls_of(config: ServerConfig) -> ssl.SSLContext | None:
    """What connections are encrypted with, None where they are not.

    Raises ConfigError unless certificate, key and authorities can be read and belong together.
    """
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None or config.ssl_ca_certs is not None:
            raise ConfigError("ssl_certfile: it is missing; ssl_keyfile and ssl_ca_certs are of no use without it")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except OSError as error:
        raise ConfigError(f"ssl_certfile, ssl_keyfile: cannot be read as a certificate and its key: {error}") from error
    try:
        if config.ssl_ca_certs is not None:
            context.load_verify_locations(config.ssl_ca_certs)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"ssl_ca_certs: cannot be read as certificates: {error}") from error
    return context
