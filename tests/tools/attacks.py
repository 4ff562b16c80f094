"""Programs that try to get out of the sandbox, and what must hold after each. Standard library only: it also runs under
an interpreter without this project's packages, as another user.

A program prints `held WHAT …` for every door it found shut and `ESCAPED WHAT …` for one it got through.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmreason.tools._cell.seccomp import _CONDITIONAL, NUMBERS
from mmreason.tools._cell.system import MACHINE
from mmreason.tools.sandbox import Limits, Run, Sandbox

PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, function, *arguments, **options):
    try:
        result = function(*arguments, **options)
    except BaseException as error:
        print("held", what, type(error).__name__, error)
        return None
    print("ESCAPED", what, repr(result)[:200])
    return result
def raw(what, number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    print("held" if result < 0 else "ESCAPED", what, result, os.strerror(ctypes.get_errno()))
"""
COLUMN = 0 if MACHINE == "x86_64" else 1
CALLS = {name: numbers[COLUMN] for name, numbers in NUMBERS.items() if numbers[COLUMN] is not None}
REFUSED = {name: number for name, number in CALLS.items() if name not in _CONDITIONAL}


@dataclass(frozen=True)
class Attack:
    """A hostile program.

    Attributes:
        ends: the statuses with which it may end.
        held: fewest doors that it must report shut: it really tried.
        limits: changes to the limits of the test.
        nested: only where a program may have several processes.
        then: a second program, run after it, which must find nothing of it.
        machine: only on this processor.
    """

    name: str
    code: str
    ends: tuple[str, ...] = ("ok",)
    held: int = 0
    limits: dict[str, Any] = field(default_factory=dict)
    nested: bool = False
    then: str = ""
    machine: str = ""
    checks: tuple[str, ...] = ()


def attacks(world: World) -> list[Attack]:
    """All of them, aimed at the things of this world."""
    outside = [
        str(world.secret_file), "/etc/passwd", "/etc/shadow", "/etc/hostname", str(Path.home()), "/root", "/home",
        "/proc/1/environ", "/proc/self/environ", "/proc/self/mem", "/proc/self/maps", "/proc/version", "/sys/kernel",
        "/var/log", "/boot", str(world.project / "README.md"), str(world.project),
    ]  # fmt: skip
    read = f"""
def read(path):
    if os.path.isdir(path):
        return os.listdir(path)
    with open(path, "rb") as file:
        return file.read(100)
for path in {outside!r}:
    attempt("read " + path, read, path)
"""
    library = str(Path(os.__file__).parent)
    places = [str(world.folder), "/", "/etc", "/usr/lib", "/dev/shm", "/dev", "/var/tmp", library]
    write = f"""
def write(path):
    with open(path, "w") as file:
        file.write("here")
for path in {places!r}:
    attempt("write below " + path, write, path + "/planted")
    attempt("mkdir below " + path, os.mkdir, path + "/planted")
attempt("overwrite", write, {str(world.secret_file)!r})
for access in (0, 3): attempt("open to empty", os.open, {str(world.secret_file)!r}, access | os.O_TRUNC)
attempt("truncate", os.truncate, {str(world.secret_file)!r}, 0)
attempt("unlink", os.unlink, {str(world.secret_file)!r})
attempt("rename", os.rename, {str(world.secret_file)!r}, "mine")
attempt("chmod", os.chmod, os.__file__, 0o777)
attempt("append to the library", open, os.__file__, "a")
"""
    return [
        Attack("endless loop", "while True: pass", ("timeout",)),
        Attack("sleeps", "import time; time.sleep(1000)", ("timeout",)),
        Attack(
            "ignores all signals",
            "import signal\nfor number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): print('held', number)\nprint('ready', flush=True)\nwhile True: pass",
            ("timeout",),
            held=1,
        ),
        Attack("stops itself", "import os\nos.kill(os.getpid(), 19)\nwhile True: pass", ("timeout",)),
        # With time enough on a busy machine for the memory to be what runs out.
        Attack("10 GB at once", "x = bytearray(10 * 2**30)", ("memory",), limits={"wall_s": 10.0}),
        Attack("memory bit by bit", "x = []\nwhile True: x.append(bytearray(2**20))", ("memory",),
               limits={"wall_s": 10.0}),
        Attack("10 GB mapped", PRELUDE + "import mmap\nattempt('mmap', mmap.mmap, -1, 10 * 2**30)", held=1),
        Attack("raises its limits", PRELUDE + """
import resource
for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE"):
    kind = getattr(resource, name)
    low, high = resource.getrlimit(kind)
    attempt(name, resource.setrlimit, kind, (high + 1, high + 1))
attempt("prlimit of another", resource.prlimit, HOST, resource.RLIMIT_NOFILE, (1, 1))
""".replace("HOST", str(world.pid)), held=6),
        Attack("fork bomb", PRELUDE + """
import multiprocessing, subprocess
attempt("fork", os.fork)
attempt("spawn", os.posix_spawn, "/bin/sh", ["sh"], {})
attempt("subprocess", subprocess.run, ["ls"])
attempt("multiprocessing", multiprocessing.Process(target=print).start)
""", held=4),
        Attack("fork bomb where it may fork", """
import os
while True:
    try: os.fork()
    except OSError: pass
""", ("timeout",), limits={"processes": 8}, nested=True),
        Attack("a daemon that outlives it", """
import os, time
for _ in range(2):
    if os.fork():
        break
    os.setsid()
else:
    while True: time.sleep(0.01)
""", limits={"processes": 4}, nested=True),
        Attack("many threads", PRELUDE + """
import threading, time
threading.stack_size(2**16)
started = 0
try:
    for _ in range(5000):
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        started += 1
except RuntimeError as error:
    print("held", started, error, flush=True)
if started > 64: print("ESCAPED", started)
os._exit(0)
""", held=1),
        Attack("network", PRELUDE + """
import socket
families = {"INET": 2, "INET6": 10, "UNIX": 1, "NETLINK": 16, "PACKET": 17, "VSOCK": 40, "ALG": 38, "BLUETOOTH": 31}
for name, family in families.items():
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        attempt(f"{name} {kind}", socket.socket, family, kind)
attempt("connect", socket.create_connection, ("127.0.0.1", PORT), 1)
attempt("datagram pair", socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
left, right = socket.socketpair()
attempt("connect a stream of a pair", left.connect, ABSTRACT)
attempt("pass on", left.bind, "\\0abstract")
attempt("resolve", socket.gethostbyname, "example.org")
import urllib.request
attempt("urllib", urllib.request.urlopen, "http://127.0.0.1:PORT", None, 1)
""".replace("PORT", str(world.port)).replace("ABSTRACT", repr(world.abstract)), held=29),
        Attack("reads the machine's files", PRELUDE + read, held=len(outside)),
        Attack("reads through links", PRELUDE + read.replace("for path in", "for path in map(link, ").replace(
            "]:", "]):") .replace("def read", """
def link(path):
    name = path.replace("/", "_") + str(len(os.listdir(".")))
    os.symlink(path, name)
    return name
def read""", 1), held=len(outside)),
        Attack("links of its own folder", PRELUDE + f"""
os.symlink({str(world.folder)!r}, "link")
os.makedirs("a/b")
os.symlink({str(world.secret_file)!r}, "a/b/secret")
attempt("hard link", os.link, os.__file__, "library")
attempt("write through", open, "a/b/secret", "w")
""", held=2),
        Attack("writes outside its folder", PRELUDE + write, held=8 + 2 * len(places)),
        Attack("walks up", PRELUDE + """
os.chdir("..")
attempt("write in the parent", open, "planted", "w")
for _ in range(20):
    os.chdir("..")
attempt("read /etc", os.listdir, "etc")
attempt("read passwd", open, "etc/passwd")
""", held=3),
        Attack("devices", PRELUDE + """
for name in ("mem", "kmem", "kmsg", "tty", "console", "sda", "vda", "fuse", "kvm", "ptmx", "net/tun", "loop-control"):
    attempt(name, open, "/dev/" + name, "rb")
attempt("mknod", os.mknod, "disk", 0o60600, os.makedev(254, 0))
import fcntl
attempt("TIOCSTI", fcntl.ioctl, 0, 0x5412, b"x")
""", held=14),
        Attack("changes devices", PRELUDE + """
for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
    attempt("chmod", os.chmod, path, 0o666)
    attempt("utime", os.utime, path)
""", held=6),
        Attack("asks devices and files", PRELUDE + """
import fcntl, socket, struct
pair = socket.socketpair()
room = ctypes.create_string_buffer(1024)
attempt("interfaces", fcntl.ioctl, pair[0], 0x8912, struct.pack("iP", 1024, ctypes.addressof(room)))
library = open(os.__file__)
attempt("flags of a file", fcntl.ioctl, library, 0x80086601, bytes(8))
attempt("change the flags of a file", fcntl.ioctl, library, 0x40086602, bytes(8))
attempt("where it lies on the disk", fcntl.ioctl, library, 0xC020660B, bytes(32))
attempt("lease", fcntl.fcntl, library, 1024, fcntl.F_RDLCK)
attempt("watch", fcntl.fcntl, os.open(os.path.dirname(os.__file__), os.O_RDONLY), 1026, 2)
""", held=6),
        Attack("signals through a descriptor", PRELUDE + f"""
import fcntl, socket, struct
print("ESCAPED" if libc.prctl(1, 0, 0, 0, 0) == 0 else "held", "its end with the cell")
pair = socket.socketpair()
for pid in ({world.pid}, os.getppid() or 2, -2):
    attempt(f"owner {{pid}}", fcntl.fcntl, pair[0], 8, pid)
    attempt(f"owner {{pid}}, structured", fcntl.fcntl, pair[0], 15, struct.pack("ii", 1, pid))
    attempt(f"owner {{pid}} by ioctl", fcntl.ioctl, pair[0], 0x8901, struct.pack("i", pid))
attempt("which signal", fcntl.fcntl, pair[0], 10, 9)
""", held=11),
        Attack("kills", PRELUDE + f"""
import signal
for pid in ({world.pid}, os.getppid() or 2, -1, 2, -2):
    if pid == -1: attempt(f"kill {{pid}}", os.kill, pid, signal.SIGKILL)
    else: attempt(f"kill {{pid}}", os.kill, pid, 0)
for name in ("tkill", "rt_sigqueueinfo", "pidfd_open"):
    raw(name, {CALLS!r}[name], {world.pid}, 9, 0, 0)
""", held=8),
        Attack("system calls that are refused", PRELUDE + f"""
for name, number in {REFUSED!r}.items():
    raw(name, number, 0, 0, 0, 0, 0, 0)
""", held=len(REFUSED)),
        Attack("system calls newer than the filter", PRELUDE + """
for number in (472, 480, 500, 511, 600, 1000):
    raw(number, number, 0, 0, 0)
""", held=6),
        Attack("namespaces", PRELUDE + f"""
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
    raw(f"unshare {{flag:x}}", {CALLS["unshare"]}, flag)
    raw(f"clone {{flag:x}}", {CALLS["clone"]}, flag | 17, 0, 0, 0, 0)
raw("clone3", {CALLS["clone3"]}, 0, 0)
attempt("chroot", os.chroot, ".")
""", held=18),
        Attack("namespaces where it may fork", PRELUDE + f"""
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000):
    raw(f"clone {{flag:x}}", {CALLS["clone"]}, flag | 17, 0, 0, 0, 0)
""", held=7, limits={"processes": 4}, nested=True),
        Attack("the other numbers of x86-64", PRELUDE + """
print("held for now", flush=True)
raw("x32", 0x40000000 + 41, 2, 1, 0)
""", ("killed",), held=1, machine="x86_64"),
        Attack("32-bit system calls", PRELUDE + """
import mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))  # getpid by int 0x80
print("held for now", flush=True)
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print("ESCAPED", function())
""", ("killed",), held=1, machine="x86_64"),
        Attack("becomes root", PRELUDE + """
for name in ("setuid", "setgid", "seteuid", "setegid"):
    if os.getuid() == 0: print("held already, without rights"); continue
    attempt(name, getattr(os, name), 0)
attempt("setgroups", os.setgroups, [0])
attempt("chown", os.chown, ".", 12345, 12345)
libc.prctl(38, 0, 0, 0, 0)
print("held" if libc.prctl(39, 0, 0, 0, 0) == 1 else "ESCAPED", "no new privileges")
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)(*[1] * 6)
libc.capget(header, sets)
for value in sets: print("ESCAPED" if value else "held", "capabilities", value)
""", held=13),
        Attack("executes", PRELUDE + f"""
PYTHON = {os.path.realpath(sys.executable)!r}
script = os.open("script", os.O_CREAT | os.O_WRONLY, 0o777)
os.write(script, b"#!/bin/sh\\necho ESCAPED\\n")
os.close(script)
for path in ("./script", "/bin/sh", "/usr/bin/python3", PYTHON, "/lib64/ld-linux-x86-64.so.2"):
    attempt(path, os.execv, path, [path])
attempt("system", lambda: os.system("echo ESCAPED") and 1 / 0)
raw("memfd", {CALLS["memfd_create"]}, 0, 0)
""", held=7),
        Attack("huge output", "while True: print('x' * 1000)", ("output",)),
        Attack("huge output past Python", "import os\nwhile True: os.write(2, b'x' * 65536)", ("output",)),
        Attack("floods its descriptors", """
import os
while True:
    for descriptor in range(16):
        try: os.write(descriptor, b"x" * 4096)
        except OSError: pass
""", ("output", "timeout")),
        Attack("fills the disk", PRELUDE + """
def fill():
    for number in range(10_000):
        with open(f"file{number}", "wb") as file:
            for _ in range(64): file.write(bytes(2**20))
attempt("fill", fill)
attempt("sparse", os.truncate, "file0", 2**40)
""", ("ok", "killed", "timeout")),
        Attack("fills the table of files", PRELUDE + """
def fill():
    for number in range(200_000): os.mkdir(f"folder{number}")
attempt("fill", fill)
""", ("ok", "killed", "timeout")),
        Attack("takes the disk at once", PRELUDE + """
large = os.open("large", os.O_CREAT | os.O_RDWR)
result = libc.fallocate(large, 1, ctypes.c_long(0), ctypes.c_long(2**30))
print("held" if result < 0 and os.fstat(large).st_blocks * 512 < 2**26 else "ESCAPED", result)
""", held=1),
        Attack("writes files without a name", """
import os
for _ in range(40):
    file = os.open("file", os.O_CREAT | os.O_RDWR)
    os.unlink("file")
    try:
        for _ in range(4): os.write(file, bytes(2**20))
    except OSError: pass
""", ("ok", "killed")),
        Attack("folders that can't be read", """
import os
os.mkdir("dark", 0o300)
for number in range(40):
    try: open(f"dark/{number}", "wb").write(bytes(2**20))
    except OSError: pass
""", ("ok", "killed")),
        Attack("folders without end", """
import os
try:
    for _ in range(900):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    for number in range(40): open(str(number), "wb").write(bytes(2**20))
except OSError: pass
""", ("ok", "killed")),
        Attack("ends by a signal without a name", "import os\nos.kill(os.getpid(), 40)", ("ok", "killed")),
        Attack("crashes", "import ctypes; ctypes.string_at(0)", ("killed",)),
        Attack("recursion without end", "import sys; sys.setrecursionlimit(10**9)\nf = lambda x: f(str(f(x)))\nf(1)",
               ("killed", "memory", "error", "timeout")),
        Attack("aborts", "import os; os.abort()", ("killed",)),
        Attack("looks for secrets", PRELUDE + """
print(dict(os.environ))
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
position = 0
while environ and environ[position]:
    print(environ[position]); position += 1
print(sys.argv, sys.orig_argv, sys.path)
import gc
print([value for value in gc.get_objects() if isinstance(value, dict) and "api_key" in value])
"""),
        Attack("open descriptors", PRELUDE + """
import stat
for descriptor in range(4096):
    try: kind = os.fstat(descriptor).st_mode
    except OSError: continue
    print("held" if stat.S_ISFIFO(kind) and descriptor < 5 else "ESCAPED", descriptor, oct(kind))
""", held=5),
        Attack("forges its verdict", """
import os
for descriptor in range(5):
    for line in (b'{"walls": "up"}', b'{"status": "ok", "exit": 0}', b'{"check": 0, "failure": null}',
                 b'{"token": "", "check": 0, "failure": null}', b'{"token": null, "check": 0, "failure": null}'):
        try: os.write(descriptor, line + b"\\n")
        except OSError: pass
os._exit(0)
""", checks=("assert False",)),
        Attack("asks for its checks too early", """
import json, os, select
os.write(4, b'{"status": "ok", "error": "", "exit": 0}\\n')
if select.select([3], [], [], 0.2)[0]:
    more = json.loads(os.read(3, 65536))
    for number in range(len(more["checks"])):
        os.write(4, json.dumps({"token": more["token"], "check": number, "failure": None}).encode() + b"\\n")
os._exit(0)
""", checks=("assert False",)),
        Attack("reports brackets", "import os\nos.write(4, b'[' * 50_000 + b'\\n' + b'{\"a\":' * 20_000 + b'\\n')"),
        Attack("reports without end", "import os\nwhile True: os.write(4, b'{}\\n' * 10_000)", ("output",)),
        Attack("reports empty lines", "import os\nwhile True: os.write(4, b'\\n' * 4096)", ("output",)),
        Attack("an error that is hard to name", """
class Kind(type): __name__ = property(lambda kind: 1 / 0)
class Text(str):
    def __format__(self, how): os._exit(0)
    def __getitem__(self, place): return self
class Hostile(Exception, metaclass=Kind): __str__ = lambda self: Text("held")
print("held", flush=True)
raise Hostile
""", ("error",), held=1, checks=("assert False",)),
        Attack("leaves before its checks", "import os; os._exit(0)", checks=("assert False",)),
        Attack("an exit handler", "import atexit, os; atexit.register(os._exit, 0)", checks=("assert False",)),
        Attack("leaves politely before its checks", "raise SystemExit(0)", checks=("assert False",)),
        Attack("leaves in its checks", "import os\ndef f(): os._exit(0)", checks=("assert f() == 1", "assert False")),
        Attack("closes everything", "import os\nos.closerange(0, 4096)\nwhile True: pass", ("timeout",)),
        Attack("endless exit handler", "import atexit\n@atexit.register\ndef f():\n    while True: pass", ("timeout",)),
        Attack("waits on a pipe of its own", "import os\nos.mkfifo('pipe')\nopen('pipe').read()", ("timeout",)),
        Attack("reads more than there is", "import sys, os\nprint(sys.stdin.read())\nprint(os.read(0, 100))"),
        Attack("no Python at all", "\x00\x01\x02", ("compile_error",)),
        Attack("a program of brackets", "(" * 100_000, ("compile_error", "killed", "memory", "output")),
        Attack("what it leaves: modules", """
import builtins, json, math, sys, os
builtins.print = None
json.dumps = math.sqrt = lambda *a: "ESCAPED"
sys.modules["statistics"] = json
sys.path.insert(0, "/scratch")
open("colorsys.py", "w").write("print('ESCAPED')")
os.environ["PLANTED"] = "ESCAPED"
""", then="import json, math, os, statistics, colorsys\nprint(json.dumps(1), math.sqrt(4), statistics.mean([1]), "
             "os.environ.get('PLANTED'), os.listdir('.'))"),
        Attack("what it leaves: files and shared memory", PRELUDE + f"""
for path in ("planted", "/tmp/planted", "/dev/shm/planted", "/scratch/planted"):
    try: open(path, "w").write("here")
    except OSError: pass
raw("shmget", {CALLS["shmget"]}, 1234, 4096, 0o1666)
raw("semget", {CALLS["semget"]}, 1234, 1, 0o1666)
raw("msgget", {CALLS["msgget"]}, 1234, 0o1666)
""", held=3, then="""
import os
for path in (".", "/tmp", "/dev/shm", "/scratch"):
    try:
        if "planted" in os.listdir(path): print("ESCAPED", path)
    except OSError: pass
"""),
    ]  # fmt: skip


class World:
    """The things of the machine that attacks aim at: a secret file, listening sockets, this process."""

    SECRET = "s3cret-of-the-host"

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder, self.project, self.pid = folder, project, os.getpid()
        self.secret_file = folder / "secret.txt"
        self.secret_file.write_text(self.SECRET)
        self.secret_file.chmod(0o666)
        folder.chmod(0o777)
        os.environ["HOST_API_KEY"] = self.SECRET
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.abstract = f"\0mmreason-test-{self.pid}"
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(self.abstract)
        self.unix.listen()
        for listener in (self.tcp, self.unix):
            listener.setblocking(False)

    def close(self) -> None:
        self.tcp.close()
        self.unix.close()
        os.environ.pop("HOST_API_KEY", None)

    def faults(self) -> list[str]:
        """What of it was touched."""
        found = []
        if self.secret_file.read_text() != self.SECRET or self.secret_file.stat().st_mode & 0o777 != 0o666:
            found.append("the secret file was changed")
        if [path.name for path in self.folder.iterdir()] != ["secret.txt"]:
            found.append(f"files in the folder: {list(self.folder.iterdir())}")
        for listener in (self.tcp, self.unix):
            try:
                listener.accept()
            except BlockingIOError:
                continue
            found.append(f"a connection to {listener}")
        return found


def survive(sandbox: Sandbox, attack: Attack, world: World, limits: Limits) -> tuple[list[str], Run]:
    """Run an attack; returns what doesn't hold after it, and its run."""
    given = Limits(**{name: getattr(limits, name) for name in limits.__slots__} | attack.limits)
    started = time.monotonic()
    run = sandbox.run(attack.code, checks=attack.checks, limits=given)
    seconds = time.monotonic() - started
    faults = world.faults()
    said = run.stdout + run.stderr
    if "ESCAPED" in said or world.SECRET in said:
        lines = [line for line in said.splitlines() if "ESCAPED" in line or world.SECRET in line]
        faults.append("escaped: " + "; ".join(lines))
    if run.status not in attack.ends:
        faults.append(f"it ended with {run.status} ({run.error}), not {' or '.join(attack.ends)}")
    if said.count("held") < attack.held:
        faults.append(f"it tried only {said.count('held')} of {attack.held} doors")
    if seconds > given.wall_s + 2:
        faults.append(f"it took {seconds:.1f} s")
    if any(verdict is None for verdict in run.checks):
        faults.append("a check counts as passed")
    if attack.then:
        second = sandbox.run(attack.then, limits=limits)
        if second.status != "ok" or "ESCAPED" in second.stdout:
            faults.append(f"the next program found something: {second}")
    after = sandbox.run("print(6 * 7)", limits=limits)
    if after.stdout != "42\n":
        faults.append(f"the next program failed: {after}")
    return faults, run
