"""The filter of system calls: its numbers against the kernel's headers, its program against a reading of its rules."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmreason.tools._cell import landlock
from mmreason.tools._cell.seccomp import FIRST_UNKNOWN, METADATA, NUMBERS, Instruction, Rule, program, rules

ALL = NUMBERS | METADATA
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED, KILLED = "allowed", "killed"


def headers(*names: str) -> str:
    for name in names:
        for folder in ("/usr/include/x86_64-linux-gnu", "/usr/include"):
            path = Path(folder) / name
            if path.is_file():
                return path.read_text()
    pytest.skip(f"no kernel headers ({names[0]})")


@pytest.mark.parametrize(
    ("column", "files", "pattern"),
    [
        (0, ("asm/unistd_64.h",), r"#define __NR_(\w+)\s+(\d+)"),
        (1, ("asm-generic/unistd.h",), r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
    ],
)
def test_numbers_are_the_kernels(column: int, files: tuple[str, ...], pattern: str) -> None:
    known = {name: int(number) for name, number in re.findall(pattern, headers(*files))}
    checked = 0
    for name, numbers in ALL.items():
        if name in known:
            assert numbers[column] == known[name], name
            checked += 1
        else:  # not on this machine, or newer than the headers
            assert numbers[column] is None or numbers[column] > max(known.values()) - 20 or name == "file_setattr", name
    assert checked > 90
    assert max(number for number in known.values() if number < 1000) < FIRST_UNKNOWN


def run(code: list[Instruction], number: int, arguments: list[int], machine: str) -> str | int:
    """A literal BPF machine for the few instructions used; the errno, "allowed" or "killed"."""
    words = {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}
    words |= {0: number, 4: ARCHITECTURES[machine]}
    register, position = 0, 0
    while True:
        operation, if_true, if_false, constant = code[position]
        position += 1
        if operation == 0x20:
            register = words[constant]
        elif operation == 0x54:
            register &= constant
        elif operation in (0x15, 0x35):
            holds = register == constant if operation == 0x15 else register >= constant
            position += if_true if holds else if_false
        else:
            assert operation == 0x06
            action = constant & 0xFFFF0000
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}.get(action, constant & 0xFFFF)


def expected(wanted: list[Rule], number: int, arguments: list[int], machine: str) -> str | int:
    """The rules read one by one."""
    column = list(ARCHITECTURES).index(machine)
    if machine == "x86_64" and number >= 0x40000000:
        return KILLED
    if number >= FIRST_UNKNOWN:
        return errno.ENOSYS
    for rule in wanted:
        if ALL[rule.name][column] == number:
            fits = all((arguments[a] & mask & 0xFFFFFFFF) in values for a, mask, values in rule.tests)
            return ALLOWED if rule.tests and fits != rule.inverted else rule.error
    return ALLOWED


@given(
    number=st.one_of(
        st.integers(0, 600), st.sampled_from([57, 56, 220, 53, 199, 62, 129, 16, 29, 302, 234]), st.just(0x40000029)
    ),
    arguments=st.lists(
        st.one_of(st.integers(0, 20), st.sampled_from([0x10000, 0x10000000, 0x3D0F00, 77, 0x5412, 2**32 + 1, 2**63])),
        min_size=6, max_size=6,
    ),
    machine=st.sampled_from(list(ARCHITECTURES)),
    processes=st.sampled_from([1, 4]),
    own_pid=st.sampled_from([None, 77]),
)  # fmt: skip
def test_the_program_does_what_the_rules_say(
    number: int, arguments: list[int], machine: str, processes: int, own_pid: int | None
) -> None:
    wanted = rules(processes, own_pid)
    assert run(program(wanted, machine), number, arguments, machine) == expected(wanted, number, arguments, machine)


def test_another_architecture_is_killed() -> None:
    assert run(program(rules(1, None), "x86_64"), 39, [0] * 6, "aarch64") == KILLED


def test_what_programs_need_is_allowed() -> None:
    """read, write, mmap, futex, openat, clone of a thread, socketpair of streams, kill of itself, exit_group."""
    code = program(rules(1, 77), "x86_64")
    for number, arguments in (
        (0, []), (1, []), (9, []), (202, []), (257, []), (56, [0x3D0F00]), (53, [1, 0x80801]), (62, [77, 9]), (231, []),
    ):  # fmt: skip
        assert run(code, number, [*arguments, *[0] * 6][:6], "x86_64") == ALLOWED, number


def test_a_machine_that_is_not_known() -> None:
    with pytest.raises(OSError, match="no list of system calls for riscv64"):
        program(rules(1, None), "riscv64")


def test_landlock_version() -> None:
    assert landlock.version() >= 0
