"""The documentation: every command, path and setting in it holds, and the site builds from it without a network."""

from __future__ import annotations

import ast
import dataclasses
import re
import runpy
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmreason.types import ConfigError
from tests.commands import (
    PAGES,
    ROOT,
    Block,
    Command,
    UnknownCommandError,
    adapters_options,
    all_commands,
    ask_options,
    blocks,
    builder_options,
    canary_options,
    commands,
    doctor_options,
    inline_code,
    options_class,
    read,
    recipe_options,
    run,
    sandbox,
    show_options,
    student_options,
    to_run,
)

COMMANDS = all_commands()
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}
FILES = {path.name for path in ROOT.iterdir() if path.is_file()}
# Folders that runs and builders write.
WRITTEN = ("outputs", "data", "evaluations", "rollouts", "site")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --------------------------------------------------------------------------------------------------------------------
# Commands


def test_there_are_commands() -> None:
    texts = {command.text for command in COMMANDS}
    assert {
        "make demo",
        "make test",
        "accelerate launch recipes/grpo_math.py",
        "accelerate launch recipes/sft.py",
    } <= texts
    assert {"mmreason report outputs/demo", "mmreason env"} <= texts and len(texts) > 25


def test_no_fence_escapes() -> None:
    """Blocks are found at the start of a line only: one inside a list would go unchecked."""
    for page in PAGES:
        fences = re.findall(r"^.*```.*$", page.read_text(encoding="utf-8"), re.M)
        assert len(fences) == 2 * len(blocks(page)), name(page)
        assert all(block.language in ("bash", "yaml", "python", "json", "") for block in blocks(page)), name(page)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_it_is_understood(command: Command, tmp_path: Path) -> None:
    read(command, sandbox(command.page, tmp_path))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("curl example.org", UnknownCommandError),
        ("make domo", AssertionError),
        ("make setup PROFIL=cpu", AssertionError),
        ("accelerate launch recipes/grpo_math.py --max_step 3", ConfigError),
        ("accelerate launch recipes/grpo_math.py --config recipes/configs/grpo_math/none.yaml", ConfigError),
        (
            "accelerate launch --config_fil recipes/accelerate/cpu.yaml recipes/grpo_math.py",
            (SystemExit, AssertionError),
        ),
        ("accelerate launch --config_file recipes/accelerate/none.yaml recipes/grpo_math.py", AssertionError),
        ("accelerate launch recipes/none.py", AssertionError),
        ("sbatch recipes/slurm/grpo_math.sbatch --learning_rat 1", ConfigError),
        ("mmreason repot outputs/demo", SystemExit),
        ("trl vllm-serve --model X --dtyqe bfloat16", AssertionError),
        ('pip install -c constraints.txt -e ".[vlm]"', AssertionError),
        ("source .venv/bin/activat", AssertionError),
    ],
)
def test_what_is_wrong_is_found(text: str, error: Any, tmp_path: Path) -> None:
    with pytest.raises(error):
        read(Command(ROOT / "README.md", 1, text), sandbox(ROOT / "README.md", tmp_path))


def test_commands_are_found_whole(tmp_path: Path) -> None:
    page = ROOT / "docs" / "no_such_page.md"
    text = "text\n\n```bash\n# why\nmake demo   # a comment\naccelerate launch \\\n    recipes/sft.py\n```\n"
    block = Block(page, 4, "bash", text.split("```bash\n")[1].removesuffix("```\n"))
    copy = tmp_path / "page.md"
    copy.write_text(text, encoding="utf-8")
    assert blocks(copy) == [Block(copy, block.line, "bash", block.body)]
    found = [(command.line, command.text) for command in commands(copy)]
    assert found == [(5, "make demo"), (6, "accelerate launch recipes/sft.py")]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two steps of the demo."""
    page = ROOT / "docs" / "grpo.md"
    folder = sandbox(page, tmp_path_factory.mktemp("small_run"))
    words = to_run(Command(page, 1, "accelerate launch recipes/grpo_math.py --output_dir outputs/demo"), folder)
    assert words is not None
    done = run(words, folder, caches(tmp_path_factory))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "outputs" / "demo"


def caches(factory: pytest.TempPathFactory) -> Path:
    """One folder for what the commands of all pages cache."""
    return factory.getbasetemp() / "caches"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_it_runs(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """The commands of a page in order, as far as a CPU without a network can run them; trainings for two steps."""
    folder = sandbox(page, tmp_path / "checkout")
    elsewhere = {command.text for other in PAGES[: PAGES.index(page)] for command in commands(other)}
    ran = 0
    for number, command in enumerate(commands(page), 1):
        words = to_run(command, folder)
        if words is None:
            continue
        written = [str(path.relative_to(folder)) for path in expected_files(words, folder)]
        later = " ".join(other.text for other in commands(page)[number:])
        if words[0] == "accelerate" and command.text in elsewhere and not any(path in later for path in written):
            continue
        if words[:2] == ["mmreason", "report"] and not (folder / words[2]).exists():
            shutil.copytree(request.getfixturevalue("small_run"), folder / words[2])
            (folder / words[2] / "report.html").unlink(missing_ok=True)
        done = run(words, folder, caches(tmp_path_factory))
        assert done.returncode == 0, f"{command.place}: {command.text}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        ran += 1
        for path in written:
            assert (folder / path).exists(), f"{command.place}: {command.text} wrote no {path}"
        if words[0] == "accelerate":
            measured = "Held out:" if "recipes/pretrain.py" in words else "after (step 2)"
            assert measured in done.stdout, done.stdout[-1500:]
    if not ran:
        pytest.skip("every command of this page needs a GPU, the hub or hours, or runs for an earlier page")


def expected_files(words: list[str], folder: Path) -> Iterator[Path]:
    """What a command says it writes."""
    if words[:2] == ["mmreason", "report"]:
        yield folder / words[2] / "report.html"
    elif words[:2] == ["mmreason", "build"] and len(words) > 2 and "--dry_run" not in words:
        named = [word.removeprefix("out=") for word in words if word.startswith("out=")]
        named += [words[words.index("--out") + 1]] if "--out" in words else []
        files = ["train.parquet", "test.parquet", "manifest.json"]
        if words[2].endswith(".py") or options_class(words[2]) is not None:
            files = ["train-00000.parquet", "README.md", "manifest.json"]
        yield from (folder / out / file for out in named for file in files)
    elif words[0] == "accelerate":
        script = next(i for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py"))
        recipe = Path(words[script]).stem
        out = folder / recipe_options(words[script], words[script + 1 :])["output_dir"]
        out = out / "ppo" if recipe in ("reft", "rlhf") else out  # their last stage
        files = ["config.yaml", "run.json", "metrics.jsonl", "report.html", "checkpoint-2"]
        files += ["evaluation.json"] if recipe != "pretrain" else []
        files += ["evaluations"] if recipe not in ("pretrain", "reward_model") else []
        if recipe in ("ppo", "reft", "rlhf"):
            files += ["rollouts/rollout-000001.parquet"]  # both steps take theirs from it
        else:
            files += ["rollouts/rollout-000002.parquet" if recipe.startswith("grpo") else "final"]
        yield from (out / file for file in files)


@pytest.mark.slow
def test_going_on_finds_the_run_finished(
    tmp_path: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """docs/resume.md says so of the same command run again."""
    page = ROOT / "docs" / "resume.md"
    folder = sandbox(page, tmp_path / "checkout")
    shutil.copytree(small_run, folder / "outputs" / "demo")
    words = to_run(Command(page, 1, "accelerate launch recipes/grpo_math.py --output_dir outputs/demo"), folder)
    assert words is not None
    done = run(words, folder, caches(tmp_path_factory))
    assert done.returncode == 0 and "this run is finished" in done.stdout, done.stdout + done.stderr[-2000:]


# --------------------------------------------------------------------------------------------------------------------
# Settings, code, paths and names


def recipe_of(page: Path) -> str:
    if page.stem in ("pretrain", "reft", "reward_model", "preference", "distill"):
        return f"recipes/{page.stem}.py"
    return "recipes/sft.py" if page.stem in ("sft", "mixtures", "masks") else "recipes/grpo_math.py"


YAML_BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.place)
def test_settings_are_read(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmreason.rewards import load_rewards

    monkeypatch.chdir(sandbox(block.page, tmp_path))
    (tmp_path / "block.yaml").write_text(block.body, encoding="utf-8")
    if block.page.stem.startswith("build"):
        assert set(yaml.safe_load(block.body)) <= builder_options()
        return
    if block.page.stem == "endpoints":
        options = ask_options(["prompts.jsonl", "--out", "replies.jsonl", "--config", "block.yaml"])
    else:
        options = recipe_options(recipe_of(block.page), ["--config", "block.yaml"])
    for key, value in yaml.safe_load(block.body).items():
        assert options[key] == value or str(options[key]) == str(value), key
    load_rewards(options.get("reward_funcs") or [])


PYTHON_BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.place)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script for TRL needs the hub: test_from_trl.py runs it on other data."""
    if block.file_name == "trl_gsm8k.py":
        ast.parse(block.body)
        return
    (tmp_path / "block.py").write_text(block.body, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "block.py"))


def spans() -> list[tuple[str, str]]:
    return [(name(page), span) for page in PAGES for span in inline_code(page)]


def test_paths_exist() -> None:
    looked, missing = 0, []
    for page, span in spans():
        for word in span.split():
            path = word.split("=")[-1].rstrip(",;")
            first = path.split("/")[0]
            if first in WRITTEN or (first not in TOP and path not in FILES) or ("/" not in path and path not in FILES):
                continue
            looked += 1
            if not any(ROOT.glob(path)):
                missing.append(f"{page}: {path}")
    assert looked > 40 and not missing, missing


def test_links_of_pages_outside_the_site() -> None:
    """Those between the pages of the site are checked when it is built."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name(page)}: {target}"


def known_options() -> dict[str, set[str]]:
    """Recipe -> the names of its options."""
    return {path.name: set(recipe_options(f"recipes/{path.name}", [])) for path in (ROOT / "recipes").glob("[!_]*.py")}


def test_flags_exist() -> None:
    """Each `--flag` of the running text belongs to a recipe, to its parser, to accelerate, to a command, or to vLLM."""
    from accelerate.commands.launch import launch_command_parser

    known = set().union(*known_options().values()) | {"config", "print_config", "help", "watch"}
    known |= set(
        ask_options(["prompts.jsonl", "--out", "replies.jsonl", "--base_url", "http://localhost:1", "--model", "m"])
    )
    known |= set(canary_options(["--model", "m", "--dataset", "d"])) | set(doctor_options(["d"]))
    known |= set(show_options(["d", "--model", "m"])) | adapters_options() | builder_options()
    known |= {"from", *student_options(["--from", "m", "--out", "o", "--layers", "1"])}
    known |= {option.lstrip("-") for action in launch_command_parser()._actions for option in action.option_strings}
    served = find_spec("vllm") is not None
    if served:
        from vllm.engine.arg_utils import AsyncEngineArgs

        known |= {field.name for field in dataclasses.fields(AsyncEngineArgs)} | {"lora_modules"}
    pages = [(page, span) for page, span in spans() if served or page != "docs/vllm.md"]
    found = ((page, flag) for page, span in pages for flag in re.findall(r"--([a-z][\w-]*)", span))
    used = {(page, flag.replace("-", "_")) for page, flag in found}
    unknown = {(page, flag) for page, flag in used if flag.removeprefix("no_") not in known}
    assert len(used) > 8 and not unknown, unknown


def test_the_first_page_lists_all_others() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \[[^\]]+\]\((\w+\.md)\) \|", text, re.M))
    nav = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)) - {"index.md"}
    assert listed == pages == nav, (pages - listed, pages ^ nav)


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    used = {(page, span.split()[1]) for page, span in spans() if re.match(r"make [a-z]", span)}
    missing = [(page, target) for page, target in used if not re.search(rf"^{target}:", makefile, re.M)]
    assert len(used) > 5 and not missing, missing


def test_settings_in_the_text_are_read(tmp_path: Path) -> None:
    """`key: value` in running text is what a YAML may hold."""
    options, looked = known_options(), 0
    for page, span in spans():
        match = re.fullmatch(r"([a-z_0-9]+): (.+)", span)
        if match is None:
            continue
        if page.startswith("docs/build") and match[1] in builder_options():
            continue
        first = ("grpo_math.py", "sft.py", "pretrain.py")
        names = [*first, *sorted(options.keys() - set(first))]
        recipe = next((r for r in names if match[1] in options[r]), None)
        assert recipe is not None, f"{page}: `{span}` is an option of no recipe"
        (tmp_path / "span.yaml").write_text(span, encoding="utf-8")
        recipe_options(f"recipes/{recipe}", ["--config", str(tmp_path / "span.yaml")])
        looked += 1
    assert looked > 15


# Names in code font that look like options and are none.
OTHER_NAMES = """
    get_peft_model get_training_chat_template
    reasoning_content held_out warm_start word_problems unseen_templates bare_share no_repeat_ngram_size
    solution_type frac_reward_zero_std code_failure to_json from_pretrained boxed_is_right bad_gold mean_token_accuracy
    grad_norm reward_std in_a_row
    entropy_coef sync_ref_model num_ppo_epochs attention_dropout router_jitter_noise
"""


def names_in_code() -> set[str]:
    """What the packages define that the pages about them speak of: functions, parameters, fields, literal words."""
    package, found = ROOT / "mmreason", set()
    modules = (
        "objective_arguments",
        "selection",
        "value_tracker",
        "reward_arguments",
        "reward_metrics",
        "preference_arguments",
        "distill_arguments",
    )
    options = tuple(f"trainers/{name}.py" for name in modules)
    for folder in (*options, "tools", "clients", "prompting", "data", "models", "_adapters.py", "../data_builders"):
        for path in [package / folder] if folder.endswith(".py") else (package / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    found.add(node.name)
                elif isinstance(node, ast.arg):
                    found.add(node.arg)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.add(node.target.id)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def test_names_exist() -> None:
    """A name with underscores in code font is an option of ours or of TRL's, a reward, a metric or in the code."""
    from mmreason.data.formats import FORMATS
    from mmreason.losses.policy import LOSS_TYPES
    from mmreason.rewards.registry import REWARDS

    known = set().union(*known_options().values()) | set(REWARDS) | set(FORMATS) | set(LOSS_TYPES)
    known |= builder_options() | set(OTHER_NAMES.split()) | {"resume_from_checkpoint"} | names_in_code()
    pages = [(page, span) for page, span in spans() if page != "CONTRIBUTING.md"]  # which speaks of names in the code
    used = {(page, span) for page, span in pages if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", span)}
    unknown = sorted((page, span) for page, span in used if span not in known)
    assert len(used) > 40 and not unknown, unknown


def test_the_table_of_launch_files_is_complete() -> None:
    text = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.yaml)` \| (.*?) \|", text, re.M)
    paths = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}
    assert sorted(file for file, _ in rows) == sorted(paths)
    for file, processes in rows:
        if file != "multi_node.yaml":
            assert int(processes.split()[0].rstrip(",")) == paths[file]["num_processes"], file
        assert ("CPU" in processes) == paths[file]["use_cpu"], file


def test_the_table_of_formats_is_complete() -> None:
    from mmreason.data.formats import FORMATS

    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = text[text.index("| format |") :].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.M))
    assert sorted(rows) == sorted(FORMATS)
    for name, said in rows.items():
        columns = [column for column in re.findall(r"`([\w -]+)`", said) if column != "column_map"]
        if name not in ("generic", "hh_rlhf"):  # which look at what the cells hold
            assert FORMATS[name].detect(frozenset(columns), [dict.fromkeys(columns, "#### 72")]), f"{name}: {columns}"


def test_every_builder_is_shown() -> None:
    from mmreason.cli.build import list_builders

    table = (ROOT / "docs" / "builders.md").read_text(encoding="utf-8").split("## Running one")[0]
    shown = {command.words[2] for command in COMMANDS if command.text.startswith("mmreason build ")}
    shown = {word for word in shown if word[0] != "-" and not word.endswith(".py")}
    listed = set(re.findall(r"`(\w+)`", table))
    assert set(list_builders(ROOT)) == shown == listed, (shown ^ listed, set(list_builders(ROOT)) ^ listed)


def test_every_variable_of_set_up_is_listed() -> None:
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([A-Z_]+)", text, re.M))
    read_there = set()
    for path in sorted((ROOT / ".ci").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
                read_there.add(ast.literal_eval(node.args[0]))
    assert {"PROFILE", "TORCH_INDEX_URL", "VLLM", "PYTHON"} <= listed <= read_there | {"PYTHON"}, read_there
