"""The commands that README and docs show: found in their code blocks, read by the parsers that a user meets, and run.

Every line of a ```bash block is a command, and `read` knows each kind of them: one it doesn't know is an error, so
that none goes unchecked. A block whose first line is a comment with a file name ("# my_run.yaml"), or with
`title="rows.jsonl"` behind the fence, is that file; the commands of its page find it in their working folder.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from tests import processes
from tests.recipes.launch import ROOT, environment

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```[ \t]*$", re.S | re.M)
_FILE_NAME = re.compile(r"# ([\w.-]+\.(?:yaml|py))$")
# Not part of what a reader has: results of runs, caches, the environment (it is found by PATH).
_NOT_LINKED = ("outputs", "data", "build", "site", "shared")
# Added to a launch that is run: two updates on a few problems instead of a training.
SMALL = [
    "--max_steps", "2", "--per_device_train_batch_size", "16", "--eval_samples", "8", "--max_train_samples", "512",
    "--word_problems", "{level: 2, style: mixed, n: 512, n_test: 16, n_unseen: 16}",
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced code block. line: of its first line of code. title: the file that it says it is."""

    page: Path
    line: int
    language: str
    body: str
    title: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The name that its title or its first line gives it."""
        if self.title is not None:
            return self.title
        named = _FILE_NAME.fullmatch(self.body.split("\n", 1)[0])
        return named[1] if named else None


@dataclass(frozen=True)
class Command:
    """One command of a ```bash block, without its comment."""

    page: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        title = re.search(r'\btitle="([\w.-]+)"', match[2])
        line = text[: match.start(3)].count("\n") + 1
        found.append(Block(page, line, match[1], match[3], title[1] if title else None))
    return found


def commands(page: Path) -> list[Command]:
    """The commands of a page's ```bash blocks; a line that ends in a backslash goes on in the next one."""
    found = []
    for block in blocks(page):
        if block.language != "bash":
            continue
        body = block.body.replace("\\\n", " \n")  # joined below; the line numbers stay
        start, held = block.line, ""
        for number, (line, original) in enumerate(zip(body.splitlines(), block.body.splitlines(), strict=True)):
            start = start if held else block.line + number
            held += line
            if original.endswith("\\"):
                continue
            text = re.split(r"(?:^|\s\s)#", held)[0].strip()
            held = ""
            if text:
                found.append(Command(page, start, " ".join(text.split())))
    return found


def all_commands() -> list[Command]:
    return [command for page in PAGES for command in commands(page)]


def sandbox(page: Path, folder: Path) -> Path:
    """A working folder for a page's commands: the checkout's files as links, the page's own files, no outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in ROOT.iterdir():
        if entry.name not in _NOT_LINKED and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    for block in blocks(page):
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.body, encoding="utf-8")
    return folder


# --------------------------------------------------------------------------------------------------------------------
# Reading: does the program that it calls take it?


class UnknownCommandError(AssertionError):
    """A kind of command that nothing here checks."""


def read(command: Command, folder: Path) -> None:
    """Let the program that a command calls read it, without its effects.

    Args: folder: the page's sandbox.
    Raises: UnknownCommandError for a program that isn't in READERS; what the program's parser raises.
    """
    words = command.words
    reader = READERS.get(words[0])
    if reader is None:
        raise UnknownCommandError(f"{command.place}: say in tests/commands.py how {words[0]!r} is checked")
    with contextlib.chdir(folder):
        reader(words[1:])


def _make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, equals, _ = word.partition("=")
        if equals:
            assert re.search(rf"^# .*\b{name}\b", makefile, re.M), f"the Makefile names no variable {name}"
        else:
            assert re.search(rf"^{re.escape(name)}:", makefile, re.M), f"the Makefile has no target {name}"
    assert words


def _accelerate(words: list[str]) -> None:
    launch = launch_arguments(words)
    assert launch.config_file is None or Path(launch.config_file).is_file(), launch.config_file
    recipe_options(launch.training_script, launch.training_script_args)


def launch_arguments(words: list[str]) -> Any:
    """What accelerate's own parser makes of `launch …`; it refuses options that it doesn't know."""
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch", f"accelerate {words[0]}: only launch is read"
    return launch_command_parser().parse_args(words[1:])


def recipe_options(script: str, arguments: list[str]) -> dict[str, Any]:
    """The options with which a recipe would run, by its own main and `--print_config`. Raises ConfigError."""
    assert Path(script).parent.name == "recipes" and (ROOT / script).is_file(), f"no recipe {script}"
    module = importlib.import_module(f"recipes.{Path(script).stem}")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            module.main([*arguments, "--print_config"])
    except SystemExit as end:
        assert end.code == 0
    return dict(yaml.safe_load(printed.getvalue()))


def _sbatch(words: list[str]) -> None:
    (script,) = [word for word in words if word.endswith(".sbatch")]
    subprocess.run(["bash", "-n", script], check=True)
    before, after = words[: words.index(script)], words[words.index(script) + 1 :]
    assert all(flag in ("--nodes", "--job-name", "--time") for flag in before[::2]) and len(before) % 2 == 0, before
    # What follows goes to the recipe; its YAML is the script's default.
    text = Path(script).read_text(encoding="utf-8")
    (config,) = re.findall(r'^config="\$\{CONFIG:-(.+?)\}"$', text, re.M)
    (recipe,) = set(re.findall(r"recipes/\w+\.py", text))
    recipe_options(recipe, ["--config", config, *after])


def _source(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


def _mmreason(words: list[str]) -> None:
    from mmreason.cli.main import make_parser

    if words[0] == "ask" and "--help" not in words:
        ask_options(words[1:])
    elif words[0] == "compose" and "--help" not in words:
        from mmreason.cli.compose import ComposeConfig
        from mmreason.config import parse_config

        parse_config((ComposeConfig,), words[1:])
    elif words[0] == "student" and "--help" not in words:
        student_options(words[1:])
    elif words[0] == "canary" and "--help" not in words:
        canary_options(words[1:])
    elif words[0] == "show" and "--help" not in words:
        show_options(words[1:])
    elif words[0] == "doctor" and "--help" not in words:
        doctor_options(words[1:])
    elif words[0] == "build" and len(words) > 2 and options_class(words[1]) is not None and words[2] != "replay":
        from data_builders.building.command import parse_options

        parse_options(options_class(words[1]), words[2:], words[1], "")
    elif words[0] == "adapters":
        from mmreason.cli.adapters import make_parser as adapters_parser

        adapters_parser().parse_args(words[1:])
    else:
        make_parser().parse_args(words)


def ask_options(arguments: list[str]) -> dict[str, Any]:
    """The options with which `mmreason ask` would run. Raises ConfigError."""
    from mmreason.cli.ask import parse_arguments

    return {key: value for part in parse_arguments(arguments) for key, value in asdict(part).items()}


def canary_options(arguments: list[str]) -> dict[str, Any]:
    """The options with which `mmreason canary` would run. Raises ConfigError."""
    from mmreason.cli.canary import parse_arguments

    return asdict(parse_arguments(arguments))


def student_options(arguments: list[str]) -> dict[str, Any]:
    """The options with which `mmreason student` would run. Raises ConfigError."""
    from mmreason.cli.student import parse_arguments

    return asdict(parse_arguments(arguments))


def show_options(arguments: list[str]) -> dict[str, Any]:
    """The options with which `mmreason show` would run. Raises ConfigError."""
    from mmreason.cli.show import parse_arguments

    return asdict(parse_arguments(arguments))


def doctor_options(arguments: list[str]) -> dict[str, Any]:
    """The options with which `mmreason doctor` would run, its recipe's read, too. Raises ConfigError."""
    from mmreason.cli.doctor import parse_arguments, read_recipe

    config = parse_arguments(arguments)
    if config.recipe_config is not None:
        read_recipe(config.recipe_config)
    return asdict(config)


def adapters_options() -> set[str]:
    """The names of the options of all actions of `mmreason adapters`."""
    from mmreason.cli.adapters import make_parser

    (actions,) = [dict(action.choices) for action in make_parser()._actions if isinstance(action.choices, dict)]
    return {action.dest for each in actions.values() for action in each._actions if action.option_strings}


def builder_options() -> set[str]:
    """The names of the options of all builders that run as docs/builders.md says."""
    from data_builders.building.build import BuildOptions

    for path in (ROOT / "data_builders").glob("[!_]*.py"):
        importlib.import_module(f"data_builders.{path.stem}")
    kinds: list[type[BuildOptions]] = [BuildOptions]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {f.name for kind in kinds for f in fields(kind)}


def options_class(builder: str) -> Any:
    """The options of a builder that runs as docs/builders.md says; None for another one, or a file."""
    from data_builders.building import BuildOptions

    if builder.endswith(".py") or builder.startswith("-"):
        return None
    module = importlib.import_module(f"data_builders.{builder}")
    kinds = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, BuildOptions)]
    return next((kind for kind in kinds if kind is not BuildOptions), None)


def _export(words: list[str]) -> None:
    """`export NAME=VALUE` of a variable that the code reads."""
    (name,) = (word.partition("=")[0] for word in words)
    assert any(name in path.read_text(encoding="utf-8") for path in (ROOT / "mmreason").rglob("*.py")), name


def _trl(words: list[str]) -> None:
    assert words[0] == "vllm-serve", f"trl {words[0]}: only vllm-serve is read"
    from trl.scripts.vllm_serve import make_parser as serve_parser

    _, rest = serve_parser().parse_args_and_config(args=words[1:], return_remaining_strings=True)
    assert not rest, f"trl vllm-serve doesn't know {rest}"


def _vllm(words: list[str]) -> None:
    """`vllm serve MODEL …`; tests/models/test_vllm_serve.py runs it."""
    assert words[0] == "serve", f"vllm {words[0]}: only serve is read"
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    make_arg_parser(FlexibleArgumentParser()).parse_args(words[1:])  # an unknown option ends it


def _pip(words: list[str]) -> None:
    """`pip install -c FILE -e ".[extras]"`."""
    assert words[:2] == ["install", "-c"] and words[3] == "-e", words
    assert Path(words[2]).is_file()
    (extras,) = re.findall(r"^\.\[([\w,-]+)\]$", words[4])
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known), f"pyproject.toml has the extras {', '.join(known)}"


def _ci_run(words: list[str]) -> None:
    assert not words and os.access(ROOT / ".ci" / "run", os.X_OK)


READERS: dict[str, Callable[[list[str]], None]] = {
    "make": _make,
    "accelerate": _accelerate,
    "sbatch": _sbatch,
    "source": _source,
    "mmreason": _mmreason,
    "export": _export,
    "trl": _trl,
    "vllm": _vllm,
    "pip": _pip,
    ".ci/run": _ci_run,
}


# --------------------------------------------------------------------------------------------------------------------
# Running


def to_run(command: Command, folder: Path) -> list[str] | None:
    """The words with which a command is run on a machine without GPU and network; None where it can't be.

    A launch runs if it starts CPU processes and neither its model nor its data come from the hub.
    """
    words = command.words
    if words[:2] == ["mmreason", "ask"] and "--help" not in words:
        return None  # its server isn't there; tests/cli/test_ask.py runs it on one of its own
    if words[:2] == ["mmreason", "build"] and (
        "--config" in words or ("--dry_run" not in words and any("teacher" in word for word in words))
    ):
        return None  # its teacher, or what it reads, isn't there; tests/data_builders run each on their own
    if words[:2] == ["mmreason", "compose"] and not is_local(words[words.index("--decoder") + 1]):
        return None
    if words[:2] == ["mmreason", "student"] and not is_local(words[words.index("--from") + 1]):
        return None
    if words[:2] == ["mmreason", "canary"] and "--help" not in words:
        return None  # it is about a trained model; tests/cli/test_canary.py runs it on a tiny one
    if words[:2] in (["mmreason", "doctor"], ["mmreason", "show"]):
        return words if all(is_local(word) for word in words[2:] if "/" in word) else None
    if words[:2] == ["mmreason", "adapters"]:
        return None  # it is about trained adapters; tests/cli/test_adapters.py runs it on tiny ones
    if words[0] == "mmreason":
        return words
    if words[0] != "accelerate":
        return None
    with contextlib.chdir(folder):
        launch = launch_arguments(words[1:])
        if launch.config_file is not None and not yaml.safe_load(Path(launch.config_file).read_text()).get("use_cpu"):
            return None
        options = recipe_options(launch.training_script, launch.training_script_args)
    local = all(options[key] is None or is_local(options[key]) for key in ("model_name_or_path", "dataset_name"))
    return [*words, *SMALL, *_small_stages(options)] if local else None


def _small_stages(options: dict[str, Any]) -> Iterator[str]:
    """Flags that cut the first stages of ReFT and RLHF to two steps, and what a teacher writes to some texts."""
    if "teacher_samples" in options:
        yield from ("--max_train_samples", "64")
    for stage in ("sft", "reward_model"):
        if isinstance(options.get(stage), dict):
            small = options[stage] | {"max_steps": 2, "per_device_train_batch_size": 16}
            yield from (f"--{stage}", json.dumps(small | ({"eval_samples": 8} if stage == "reward_model" else {})))


def is_local(name: str) -> bool:
    """Does a model's or data set's name mean something that lies here, or that an earlier command writes?"""
    return (ROOT / name).exists() or name.split("/")[0] in ("outputs", "data")


@functools.lru_cache(maxsize=1)
def variables() -> tuple[tuple[str, str], ...]:
    """The environment in which commands run: this interpreter's programs first, nothing from the hub."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return tuple((environment() | {"PATH": programs, "CUDA_VISIBLE_DEVICES": ""}).items())


def run(words: list[str], folder: Path, caches: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command in its sandbox as it stands in the page, on a machine where accelerate was never configured.

    Args: caches: takes the place of the user's caches.
    """
    env = dict(variables()) | {"HF_HOME": str(caches / "hf"), "XDG_CACHE_HOME": str(caches)}
    if words[:2] == ["accelerate", "launch"]:  # the same program, in the form that tests/processes.py knows
        words = [sys.executable, *processes.LAUNCH, *words[2:]]
    return processes.run(words, cwd=folder, env=env, timeout=timeout, often=True)


def inline_code(page: Path) -> Iterator[str]:
    """The `code` spans of a page's running text, each on one line."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
