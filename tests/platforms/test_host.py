"""The machine as its files show it, laid out in a folder."""

from pathlib import Path

import pytest

from quire.platforms.host import Host, group_limit_bytes, look

pytestmark = pytest.mark.plain


def lay(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return look(root)


@pytest.mark.parametrize(
    ("file", "vendor"),
    [
        ("proc/driver/nvidia/version", "NVIDIA"),
        ("dev/nvidiactl", "NVIDIA"),
        ("dev/nvhost-gpu", "NVIDIA"),
        ("dev/kfd", "AMD"),
    ],
)
def test_drivers(tmp_path: Path, file: str, vendor: str) -> None:
    assert lay(tmp_path, {file: ""}).gpu_vendors == (vendor,)


@pytest.mark.parametrize(("slot", "found"), [("0000:00:02.0", ()), ("0000:03:00.0", ("Intel",))])
def test_intel_cards_but_not_the_display_part_of_a_processor(tmp_path: Path, slot: str, found: tuple[str, ...]) -> None:
    node = tmp_path / "sys/class/drm/renderD128"
    node.mkdir(parents=True)
    (node / "device").symlink_to(tmp_path / "pci" / slot)
    assert lay(tmp_path, {f"pci/{slot}/vendor": "0x8086\n"}).gpu_vendors == found


def test_processor(tmp_path: Path) -> None:
    text = (
        "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nmodel name\t: other\n"
    )
    host = lay(tmp_path, {"proc/cpuinfo": text})
    assert host.cpu == "AMD EPYC"
    assert host.cpu_flags == {"fpu", "avx2", "avx512f"}


def test_the_limit_of_a_container_is_the_memory(tmp_path: Path) -> None:
    assert lay(tmp_path, {"sys/fs/cgroup/memory.max": f"{1 << 29}\n"}).memory_bytes == 1 << 29
    assert lay(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"}).memory_bytes > 1 << 29


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/system.slice/quire.service", "system.slice/quire.service/memory.max"),
        ("0::/system.slice/quire.service/deeper", "system.slice/memory.max"),
        ("9:cpu:/other\n4:memory:/own", "memory/own/memory.limit_in_bytes"),
        # A container without a namespace for groups is told the host's path, and sees its own group as the root.
        ("4:memory:/docker/abc", "memory/memory.limit_in_bytes"),
    ],
)
def test_the_limit_of_a_service_and_of_what_is_around_it(group: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    files = {"proc/self/cgroup": f"{group}\n", f"sys/fs/cgroup/{file}": f"{1 << 29}\n"}
    assert lay(tmp_path, files).memory_bytes == group_limit_bytes(tmp_path) == 1 << 29


def test_an_empty_machine_is_a_machine(tmp_path: Path) -> None:
    host = look(tmp_path)
    assert host.cpu
    assert host.memory_bytes > 0
    assert host.gpu_vendors == ()


@pytest.mark.parametrize(("value", "hidden"), [("", True), ("-1", True), ("0", False), (None, False)])
def test_hidden_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, hidden: bool) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert look(tmp_path).gpus_hidden is hidden


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    assert not look(tmp_path).has_compiler


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (["cc"], None, False),
        (["gcc"], None, True),
        (["clang"], None, True),
        (["cc", "gcc"], "cc", True),
        (["gcc"], "gcc -pthread", False),
    ],
)
def test_compilers_are_those_that_triton_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], asked: str | None, found: bool
) -> None:
    for name in names:
        (tmp_path / name).touch(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if asked is not None:
        monkeypatch.setenv("CC", asked)
    assert look(tmp_path / "root").has_compiler is found
