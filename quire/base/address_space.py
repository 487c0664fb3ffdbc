"""A limit on a process's own memory, set by itself: what strangers send to it may take so much and no more."""

import resource

import psutil


def limit_address_space(more_bytes: int) -> None:
    """Let this process take so many bytes beyond what it has, unless it may have less already."""
    most = psutil.Process().memory_info().vms + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
