"""How memory becomes pages."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.base.errors import ConfigError
from quire.checkpoint.facts import ModelFacts
from quire.config.spec import PlatformFacts, RunSpec
from quire.kvcache.layout import fit, shrunk
from quire.kvcache.retention import most_held
from quire.messages.state import RECURRENT, Capacity, GroupLayout, Layout, Retention, StateSpec

pytestmark = pytest.mark.plain

FULL, WINDOW = StateSpec(100), StateSpec(100, Retention(window=33))


FACTS = ModelFacts(
    name="m",
    path="",
    config={},
    model_type="toy",
    dtype="float32",
    context_len=512,
    vocab_size=10,
    eos_token_ids=[],
    generation_config={},
    chat_template=None,
)
PLATFORM = PlatformFacts(
    name="cpu",
    device="cpu",
    device_name="cpu",
    arch="avx2",
    total_bytes=1,
    providers=[],
    refused={},
    dtypes=[],
    page_size=16,
)
READ = {
    "facts": FACTS,
    "platform": PLATFORM,
    "max_model_len": 512,
    "fit_max_model_len": False,
    "page_size": 16,
    "memory_fraction": 0.5,
    "kv_cache_memory_bytes": None,
    "num_pages": None,
    "max_num_seqs": 8,
}
# The layout reads nothing else, so nothing else is said.
SPEC = RunSpec(**{**dict.fromkeys(RunSpec.__struct_fields__), **READ})


@pytest.fixture
def spec():
    """A run on a CPU with pages of 16 tokens and sequences of at most 512."""
    return SPEC


def with_(spec, **changes):
    """The same run with other settings."""
    return msgspec.structs.replace(spec, **changes)


def spent(layout):
    """Bytes of all pages."""
    return sum(g.pages * g.spec.page_bytes(g.page_size) * g.layers for g in layout.groups)


def test_layers_with_equal_state_form_a_group_in_order_of_the_first(spec):
    layout = fit(spec, Capacity(10_000_000, [WINDOW, FULL, WINDOW, FULL, FULL]))
    assert [(g.spec, g.layers) for g in layout.groups] == [(WINDOW, 2), (FULL, 3)]
    assert layout.max_model_len == 512
    assert shrunk(spec, layout) is None


def test_one_group_takes_all_the_memory(spec):
    layout = fit(spec, Capacity(1_000_000, [FULL, FULL]))
    assert layout.groups[0].pages == 1_000_000 // (16 * 100 * 2)


def test_exact_bytes_and_exact_pages(spec):
    layout = fit(with_(spec, kv_cache_memory_bytes=16 * 100 * 50), Capacity(10**9, [FULL]))
    assert layout.groups[0].pages == 50
    layout = fit(with_(spec, num_pages=40), Capacity(0, [FULL, WINDOW]))
    assert [g.pages for g in layout.groups] == [40, 40]


def test_a_window_gets_pages_for_many_short_sequences(spec):
    """Balanced for sequences of the longest length only, the window group would get room for two sequences."""
    need = sum(most_held(s.retention, 512, 16) + 1 for s in (FULL, WINDOW)) * 1600
    layout = fit(spec, Capacity(2 * need, [FULL, WINDOW]))
    full, window = layout.groups
    assert window.pages > 2 * most_held(WINDOW.retention, 512, 16) + 1
    assert full.pages > most_held(FULL.retention, 512, 16)
    assert spent(layout) <= 2 * need


def test_what_does_not_fit_shrinks_or_is_refused_with_the_remedy(spec):
    capacity = Capacity(16 * 100 * 11, [FULL])
    shrinking = with_(spec, fit_max_model_len=True)
    layout = fit(shrinking, capacity)
    assert (layout.max_model_len, layout.groups[0].pages) == (160, 11)
    assert "max_model_len is 160 instead of 512" in shrunk(shrinking, layout)
    assert "cpu_memory_utilization (now 0.5)" in shrunk(shrinking, layout)
    with pytest.raises(ConfigError, match=r"max_model_len=512 needs .* set max_model_len to 160 or less"):
        fit(spec, capacity)
    with pytest.raises(ConfigError, match="raise kv_cache_memory_bytes"):
        fit(with_(spec, kv_cache_memory_bytes=16 * 100 * 11), capacity)
    with pytest.raises(ConfigError, match="num_gpu_blocks_override=5 has room for 64"):
        fit(with_(spec, num_pages=5), capacity)
    assert fit(with_(shrinking, num_pages=5), capacity).max_model_len == 64


def test_never_below_one_page(spec):
    shrinking = with_(spec, fit_max_model_len=True)
    assert fit(shrinking, Capacity(2 * 1600, [FULL])).max_model_len == 16
    for free in (2 * 1600 - 1, 0, -5):
        with pytest.raises(ConfigError, match="does not hold one page of 16 tokens"):
            fit(shrinking, Capacity(free, [FULL]))
    with pytest.raises(ConfigError, match="num_gpu_blocks_override=1 leaves no room"):
        fit(with_(shrinking, num_pages=1), Capacity(10**9, [FULL]))
    assert fit(with_(spec, max_model_len=5), Capacity(2 * 1600, [FULL])).max_model_len == 5


def test_a_model_without_paged_state_needs_no_pages(spec):
    assert fit(spec, Capacity(0, [])).groups == []


states = st.lists(
    st.one_of(
        st.builds(
            StateSpec,
            st.sampled_from([1, 100, 4096]),
            st.sampled_from([Retention(), Retention(window=2), Retention(window=100, sink=4), Retention(chunk=64)]),
        ),
        st.builds(StateSpec, st.just(0), st.just(RECURRENT), st.sampled_from([1, 10_000, 5_000_000])),
    ),
    min_size=1,
    max_size=6,
)


def holds_longest(layout: Layout) -> bool:
    """Whether the pages hold the longest sequence when it runs alone; page 0 is nobody's."""
    groups, longest = layout.groups, layout.max_model_len
    return all(most_held(group.spec.retention, longest, group.page_size) < group.pages for group in groups)


@settings(max_examples=200)
@given(states=states, free=st.integers(0, 10**9), wanted=st.integers(1, 100_000), seqs=st.integers(1, 300))
def test_any_memory_is_used_well_or_refused(states, free, wanted, seqs):
    run = with_(SPEC, max_model_len=wanted, fit_max_model_len=True, max_num_seqs=seqs)
    try:
        layout = fit(run, Capacity(free, states))
    except ConfigError:
        smallest = sum(s.page_bytes(16) * 2 for s in states)
        assert free < smallest or wanted < 16
        return
    assert spent(layout) <= free
    assert holds_longest(layout)
    # What is left over would not make one more page in every group.
    assert free - spent(layout) < sum(g.spec.page_bytes(g.page_size) * g.layers for g in layout.groups)


def test_few_large_states_leave_room_for_as_many_sequences_as_fit(spec):
    state = StateSpec(0, RECURRENT, 1_000_000)
    wide = with_(spec, max_model_len=100_000, max_num_seqs=1000)
    attention, recurrent = fit(wide, Capacity(100_000_000, [FULL, *[state] * 4])).groups
    # A sequence of 2,048 tokens takes 128 pages of 1,600 bytes and two states of 4 MB each; one more is for others. The
    # longest takes 10 MB alone.
    assert 18 <= recurrent.pages <= 26
    assert attention.pages >= 6251 and spent(fit(wide, Capacity(100_000_000, [FULL, *[state] * 4]))) <= 100_000_000
    few = fit(with_(wide, max_num_seqs=4), Capacity(100_000_000, [FULL, *[state] * 4])).groups
    assert few[1].pages >= 13 and few[0].pages > attention.pages


def test_recurrent_state_costs_the_same_whatever_the_length(spec):
    state = StateSpec(0, RECURRENT, 50_000)
    layout = fit(with_(spec, max_model_len=1600), Capacity(10_000_000, [FULL, state, state, FULL]))
    attention, recurrent = layout.groups
    assert (recurrent.spec, recurrent.layers) == (state, 2)
    # 16 tokens of two layers of 100 bytes each; two layers of one state each.
    assert spent(layout) == attention.pages * 3200 + recurrent.pages * 100_000 <= 10_000_000
    assert holds_longest(layout) and layout.max_model_len == 1600 and recurrent.pages > 2
    with pytest.raises(ConfigError, match="does not hold one page"):
        fit(with_(spec, fit_max_model_len=True), Capacity(2 * 3200 + 2 * 100_000 - 1, [FULL, state, state, FULL]))


def test_groups_say_what_they_hold():
    assert str(GroupLayout(FULL, 3, 16, 33)) == "33 pages of 16 tokens"
    assert str(GroupLayout(StateSpec(0, RECURRENT, 2_100_000), 36, 16, 9)) == "9 recurrent states of 75.6 MB"
