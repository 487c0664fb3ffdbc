"""Sockets that a parent and its child speak over."""

import contextlib

import pytest

from quire.messages.frames import pair_for_child, receive, send

pytestmark = pytest.mark.plain


def test_ours_outlives_the_block_and_hears_that_the_child_is_gone() -> None:
    with pair_for_child() as (ours, theirs):
        send(theirs, b"said")
    with ours:
        assert theirs.fileno() == -1
        assert receive(ours) == b"said" and receive(ours) is None


def test_neither_stays_open_where_no_child_is_born() -> None:
    with contextlib.suppress(OSError), pair_for_child() as (ours, theirs):
        raise OSError("no process")
    assert ours.fileno() == theirs.fileno() == -1
