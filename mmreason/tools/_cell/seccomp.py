"""The system calls a program in the sandbox may not make, as a seccomp filter (a BPF program).

The filter is the inner wall: namespaces and Landlock keep files and processes apart, this keeps the kernel's rarely
used doors shut, and alone decides about processes, programs and sockets. It names what is refused rather than what is
allowed, because allocators and thread libraries change the harmless calls they make with every version; numbers newer
than this file are refused as unknown.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mmreason.tools._cell.system import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    CLONE_THREAD,
    MACHINE,
    checked,
    prctl,
)

_NAMESPACES = (
    CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWTIME | CLONE_NEWUSER
    | CLONE_NEWUTS
)  # fmt: skip
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # the other calling convention of x86-64: same kernel, other numbers
FIRST_UNKNOWN = 472
"""Numbers from here on are newer than this file."""

# name: (number on x86-64, number on AArch64); None where the machine has no such call.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "get_robust_list": (274, 100),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "prlimit64": (302, 261), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # new processes and programs
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221),
    "execveat": (322, 281),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458), "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "userfaultfd": (323, 282), "fanotify_init": (300, 262),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_setup": (206, 0), "io_submit": (209, 2), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "settimeofday": (164, 170), "adjtimex": (159, 171), "vhangup": (153, 58), "seccomp": (317, 277),
    "prctl": (157, 167), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    # the machine's disks: waits for everything that any process has written
    "sync": (162, 81), "syncfs": (306, 267),
    # memory that no limit of a process counts, and what outlives a process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # the same objects by their numbers, which are small and need no get
    "shmctl": (31, 195), "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192), "msgctl": (71, 187),
    "msgsnd": (69, 189), "msgrcv": (70, 188),
    # sockets
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "setsockopt": (54, 208),  # buffers of megabytes in the kernel, filters of packets
    # devices, and flags of open files
    "ioctl": (16, 29), "fcntl": (72, 25),
}  # fmt: skip
METADATA: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "open": (2, None), "openat": (257, 56),
    "openat2": (437, 437), "fallocate": (285, 47),
}  # fmt: skip
"""What Landlock doesn't keep from files that can only be read. Refused where no read-only mounts stand before it."""

_CONDITIONAL = (
    "prlimit64", "kill", "tgkill", "fork", "vfork", "clone", "clone3", "socketpair", "ioctl", "fcntl", "prctl",
    "open", "openat", "openat2", "fallocate",
)  # fmt: skip
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. All others are refused: among them are the ones that type
# into a terminal, list network interfaces, change the flags of files that can only be read, and send signals.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# F_SETOWN, F_SETSIG and F_SETOWN_EX send any signal to any process of the same user; F_SETLEASE and F_NOTIFY hold up or
# watch other processes' files; F_SETPIPE_SZ takes from what the user's other processes may have in pipes.
_FCNTLS = (8, 10, 15, 1024, 1026, 1031)
# PR_SET_PDEATHSIG, PR_SET_DUMPABLE: how a program ends with its cell, and how the cell sees what it has written.
_PRCTLS = (1, 4)
_O_ACCESS, _O_TRUNC = 0o3, 0o1000
_AF_UNIX, _SOCK_STREAM = 1, 1

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """One call: refused with an errno, or allowed where an argument has one of some values (or, inverted, refused).

    Attributes:
        name: the call.
        error: errno that the program sees.
        tests: (argument, mask, values) that must all hold for the call to be allowed; none: always refused.
        inverted: the one test's values are those that are refused.
    """

    name: str
    error: int = errno.EPERM
    tests: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    inverted: bool = False


def rules(processes: int, own_pid: int | None) -> list[Rule]:
    """What is refused.

    Args:
        processes: how many processes the program may have; with 1 it can't fork, threads it may start.
        own_pid: where the program shares namespaces with others, the one process it may send signals to; None where
            it is alone in its own.
    """
    whole = 0xFFFFFFFF
    found = [Rule(name) for name in NUMBERS if name not in _CONDITIONAL]
    found.append(Rule("clone3", errno.ENOSYS))  # its flags lie behind a pointer; libc then takes clone
    if processes == 1:
        found += [Rule("fork"), Rule("vfork"), Rule("clone", tests=((0, CLONE_THREAD, (CLONE_THREAD,)),))]
    else:
        found.append(Rule("clone", tests=((0, _NAMESPACES, (0,)),)))
    found.append(Rule("prlimit64", tests=((0, whole, (0,)),)))
    # Streams only: a datagram socket could still send to a path.
    found.append(Rule("socketpair", tests=((0, whole, (_AF_UNIX,)), (1, 0xF, (_SOCK_STREAM,)))))
    found.append(Rule("ioctl", errno.ENOTTY, tests=((1, whole, _IOCTLS),)))
    found.append(Rule("fcntl", tests=((1, whole, _FCNTLS),), inverted=True))
    found.append(Rule("prctl", tests=((0, whole, _PRCTLS),), inverted=True))
    if own_pid is not None:
        found += [Rule(name) for name in METADATA if name not in _CONDITIONAL]
        # Before its third version Landlock lets a file be emptied that may only be read: not by an open for writing.
        emptied = tuple(range(4)) + tuple(_O_TRUNC | access for access in (1, 2))
        for place, name in ((1, "open"), (2, "openat")):
            found.append(Rule(name, tests=((place, _O_TRUNC | _O_ACCESS, emptied),)))
        found.append(Rule("openat2", errno.ENOSYS))  # its flags lie behind a pointer
        found.append(Rule("fallocate", errno.EOPNOTSUPP))  # takes a disk at once, past the limit of a file's size
        found += [Rule("kill", tests=((0, whole, (own_pid, 0)),)), Rule("tgkill", tests=((0, whole, (own_pid,)),))]
    return found


def program(wanted: Sequence[Rule], machine: str = MACHINE) -> list[Instruction]:
    """The BPF program: (code, jump if true, jump if false, constant) each.

    Raises:
        OSError: a machine whose system calls are not known here.
    """
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}")
    column = list(_ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL_PROCESS)]
    code += [(_AT_LEAST, 0, 1, FIRST_UNKNOWN), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for rule in wanted:
        number = (NUMBERS | METADATA)[rule.name][column]
        if number is not None:
            body = _body(rule)
            code += [(_EQUAL, 0, len(body), number), *body]
    code.append((_RETURN, 0, 0, _ALLOW))
    return code


def _body(rule: Rule) -> list[Instruction]:
    """What happens once the number is that of the rule; always ends in a return."""
    refuse = (_RETURN, 0, 0, _ERRNO | rule.error)
    allow = (_RETURN, 0, 0, _ALLOW)
    if not rule.tests:
        return [refuse]
    code: list[Instruction] = []
    for argument, mask, values in rule.tests:
        # Low halves only: the kernel reads all the arguments that are tested here as 32-bit values.
        code += [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask)]
        for position, value in enumerate(values):
            code.append((_EQUAL, len(values) - position, 0, value))
        code.append(allow if rule.inverted else refuse)
    return [*code, refuse if rule.inverted else allow]


def install(code: Sequence[Instruction]) -> None:
    """Put the filter on this process and its children, for good. Needs `no_new_privileges` before. Raises OSError."""
    packed = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *instruction) for instruction in code))

    class FilterProgram(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    holder = FilterProgram(len(code), ctypes.addressof(packed))
    checked(prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(holder)), "PR_SET_SECCOMP")
