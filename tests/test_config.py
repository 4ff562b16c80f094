"""mmreason.config: YAML and command line to dataclasses, wrong input named, the same result as TRL's parser."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmreason.config import parse_config, save_config, to_yaml
from mmreason.types import ConfigError
from tests.timing import allowed


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Config:
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate.", "group": "Optimiser"})
    max_steps: int = -1
    bf16: bool = True
    use_vllm: bool = False
    name: str = "run"
    folder: Path = Path("outputs")
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    colour: Colour = Colour.RED
    beta: float | None = None
    scale_rewards: bool | Literal["group", "batch"] = "group"
    report_to: str | list[str] | None = None
    reward_funcs: list[str | dict[str, Any]] = field(default_factory=lambda: ["accuracy"])
    reward_weights: list[float] | None = None
    model_kwargs: dict[str, Any] | None = None
    offsets: dict[str, int] = field(default_factory=dict)


@dataclass
class Required:
    model: str
    steps: int = 3


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def parse_yaml(folder: Path, text: str, *flags: str) -> Config:
    return parse_config(Config, ["--config", write(folder, text), *flags])


def test_defaults_yaml_command_line_in_that_order(tmp_path: Path) -> None:
    cfg = parse_yaml(tmp_path, "# a comment\nlearning_rate: 1e-5\nmax_steps: 7\n", "--max_steps", "9")
    assert cfg == Config(learning_rate=1e-5, max_steps=9)
    assert parse_config(Config, []) == Config()


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("learning_rate: 1e-6", "learning_rate", 1e-6),  # a string in YAML 1.1
        ("learning_rate: 3", "learning_rate", 3.0),
        ("learning_rate: '2e-3'", "learning_rate", 2e-3),
        ("learning_rate: .inf", "learning_rate", math.inf),
        ("max_steps: 1e3", "max_steps", 1000),
        ("max_steps: 1_000", "max_steps", 1000),
        ("bf16: no", "bf16", False),
        ("bf16: 'true'", "bf16", True),
        ("name: 007", "name", "007"),  # an octal number in YAML 1.1
        ("name: no", "name", "no"),
        ("name: 2024-01-01", "name", "2024-01-01"),
        ("name: ''", "name", ""),
        ("folder: a/b", "folder", Path("a/b")),
        ("eval_strategy: no", "eval_strategy", "no"),  # false in YAML 1.1
        ("colour: blue", "colour", Colour.BLUE),
        ("beta: null", "beta", None),
        ("beta: 0", "beta", 0.0),
        ("scale_rewards: false", "scale_rewards", False),
        ("scale_rewards: batch", "scale_rewards", "batch"),
        ("report_to: null", "report_to", None),
        ("report_to: 'null'", "report_to", "null"),
        ("report_to: [a, b]", "report_to", ["a", "b"]),
        ("reward_funcs: [accuracy, {name: cosine, max_length: 5e2}]", "reward_funcs", None),
        ("reward_weights: [1, 0.5]", "reward_weights", [1.0, 0.5]),
        ("model_kwargs: {lr: 1e-3, on: yes, x: [1, null]}", "model_kwargs", {"lr": 1e-3, "on": True, "x": [1, None]}),
        ("offsets: {a: 1}", "offsets", {"a": 1}),
        ("base: &b {a: 1}", "offsets", None),
    ],
)
def test_yaml_values(tmp_path: Path, text: str, name: str, expected: Any) -> None:
    if text.startswith("base"):
        with pytest.raises(ConfigError, match="unknown key 'base'"):
            parse_yaml(tmp_path, text)
        return
    if expected is None and name == "reward_funcs":
        expected = ["accuracy", {"name": "cosine", "max_length": 500.0}]
    value = getattr(parse_yaml(tmp_path, text), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        (["--learning-rate", "-1e-3"], "learning_rate", -1e-3),
        (["--learning_rate=2e-6"], "learning_rate", 2e-6),
        (["--beta", "0"], "beta", 0.0),
        (["--beta", "None"], "beta", None),
        (["--use_vllm"], "use_vllm", True),
        (["--bf16", "false"], "bf16", False),
        (["--no_bf16"], "bf16", False),
        (["--no-bf16"], "bf16", False),
        (["--name", "None"], "name", "None"),  # not optional, so it is a text
        (["--name", "007"], "name", "007"),
        (["--name", "a: {b"], "name", "a: {b"),
        (["--name", ""], "name", ""),
        (["--reward_funcs", "a", "b"], "reward_funcs", ["a", "b"]),
        (["--reward_funcs", "[a, b]"], "reward_funcs", ["a", "b"]),
        (["--reward_funcs", "a", '{"name": "b", "x": 1e-3}'], "reward_funcs", ["a", {"name": "b", "x": 1e-3}]),
        (["--reward_funcs"], "reward_funcs", []),
        (["--reward_weights", "-1", "0.5"], "reward_weights", [-1.0, 0.5]),
        (["--reward_weights", "None"], "reward_weights", None),
        (["--report_to", "tensorboard"], "report_to", "tensorboard"),
        (["--report_to", "tensorboard", "wandb"], "report_to", ["tensorboard", "wandb"]),
        (["--scale_rewards"], "scale_rewards", True),
        (["--scale_rewards", "group"], "scale_rewards", "group"),
        (["--model_kwargs", '{"a": {"b": [1, 2.5]}}'], "model_kwargs", {"a": {"b": [1, 2.5]}}),
        (["--max_steps", "1", "--max_steps", "2"], "max_steps", 2),
    ],
)
def test_command_line_values(flags: list[str], name: str, expected: Any) -> None:
    value = getattr(parse_config(Config, flags), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bf16: true\nlearning_rat: 1", r"run\.yaml:2: unknown key 'learning_rat' \(did you mean learning_rate\?\)"),
        ("learning-rate: 1", r"run\.yaml:1: unknown key 'learning-rate' \(did you mean learning_rate\?\)"),
        ("max_steps: 1\nmax_steps: 2", r"run\.yaml:2: duplicate key 'max_steps' \(first given in line 1\)"),
        ("model_kwargs:\n  a: 1\n  a: 2", r"run\.yaml:3: duplicate key 'a'"),
        ("max_steps: 1.5", r"run\.yaml:1: max_steps: expected whole number, got '1.5'"),
        ("max_steps: many", r"max_steps: expected whole number, got 'many'"),
        ("max_steps: null", r"max_steps: expected whole number, got null"),
        ("max_steps: .inf", r"max_steps: expected whole number"),
        ("learning_rate: [1]", r"learning_rate: expected number, got a list"),
        ("bf16: maybe", r"bf16: expected true/false, got 'maybe'"),
        (
            "reward_funcs: accuracy",
            r"reward_funcs: expected list of text or mapping, got 'accuracy'; write \[accuracy\]",
        ),
        ("reward_weights: [1, x]", r"reward_weights: expected"),
        ("offsets: {a: b}", r"offsets: expected whole number, got 'b'"),
        ("eval_strategy: step", r"expected \{no,steps,epoch\}, got 'step' \(did you mean steps\?\)"),
        ("colour: gren", r"colour: expected \{red,blue\}, got 'gren'"),
        ("name: !!python/name:os.system", r"run\.yaml:1: the YAML tag .* is not allowed"),
        ("model_kwargs: &a {x: *a}", r"run\.yaml:1: a YAML anchor that contains itself"),
        ("a: b: c", r"run\.yaml:1: not valid YAML"),
        ("bf16: true\nname: [a", r"run\.yaml:\d: not valid YAML"),
        ("- a\n- b", r"expected `key: value` lines"),
        ("? [a]\n: 1", r"run\.yaml:1: a key must be a plain word"),
        ("env: [a]", r"env: expected mapping"),
        ("name: \x00", r"run\.yaml: not valid YAML"),
    ],
)
def test_wrong_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(tmp_path, text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "1"], r"unknown option --learning_rat \(did you mean --learning_rate\?\)"),
        (["--no_learning_rate"], "unknown option --no_learning_rate"),
        (["--learning_rate"], r"--learning_rate: expected one value \(number\), got none"),
        (["--learning_rate", "1", "2"], "--learning_rate: expected one value"),
        (["--bf16", "maybe"], "--bf16: expected true/false, got 'maybe'"),
        (["--no_bf16", "true"], "--no_bf16 takes no value"),
        (["run.yaml"], "a config file is given with --config run.yaml"),
        (["--config"], "--config: expected one path, got none"),
        (["--model_kwargs", "{a"], "--model_kwargs: not readable as JSON or YAML"),
        (["--model_kwargs", '{"a": 1, "a": 2}'], "--model_kwargs: duplicate key 'a'"),
        (["--model_kwargs", "a"], "--model_kwargs: expected mapping or null, got 'a'"),
        (["--max_steps", "x", "--nam", "y"], r"--max_steps: .*\n?.*--nam "),
    ],
)
def test_wrong_command_line_is_named(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Config, flags)


def test_missing_file_names_a_near_one(tmp_path: Path) -> None:
    near = write(tmp_path, "max_steps: 1", "qwen.yaml")
    with pytest.raises(ConfigError, match=r"no such file: .*qwem\.yaml \(did you mean .*qwen\.yaml\?\)"):
        parse_config(Config, ["--config", near.replace("qwen", "qwem")])
    with pytest.raises(ConfigError, match="can't read"):
        parse_config(Config, ["--config", str(tmp_path)])


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(tmp_path, "max_step: 1\nbf16: maybe\n", "--nam", "x")
    assert len(str(caught.value).splitlines()) == 3


def test_required_fields_and_several_dataclasses() -> None:
    required, config = parse_config((Required, Config), ["--model", "m", "--max_steps", "4"])
    assert (required, config) == (Required("m"), Config(max_steps=4))
    with pytest.raises(ConfigError, match="model has no value: give --model"):
        parse_config(Required, [])


def test_the_programmer_is_told_of_clashes() -> None:
    @dataclass
    class Twin:
        steps: int = 1

    @dataclass
    class Reserved:
        config: str = ""

    with pytest.raises(TypeError, match="both Required and Twin have a field 'steps'"):
        parse_config((Required, Twin), [])
    with pytest.raises(TypeError, match="taken by the parser's own flag"):
        parse_config(Reserved, [])
    with pytest.raises(TypeError, match="wants dataclasses"):
        parse_config(int, [])


@dataclass
class Checked:
    eps: float = 0.2

    def __post_init__(self) -> None:
        if self.eps < 0:
            raise ValueError(f"eps must be at least 0, got {self.eps}")


def test_what_post_init_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="eps must be at least 0, got -1.0"):
        parse_config(Checked, ["--eps", "-1"])


@dataclass
class WithEnv:
    env: dict[str, str] = field(default_factory=dict)
    steps: int = 1


def test_env_sets_environment_variables_as_trl_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MMR_TEST_A", "MMR_TEST_B"):
        monkeypatch.setenv(name, "before")
    parse_yaml(tmp_path, "env: {MMR_TEST_A: 1, MMR_TEST_B: no}")
    assert (os.environ["MMR_TEST_A"], os.environ["MMR_TEST_B"]) == ("1", "no")
    kept = parse_config(WithEnv, ["--config", write(tmp_path, "env: {MMR_TEST_A: 2}")])
    assert kept.env == {"MMR_TEST_A": "2"}
    assert "MMR_TEST_A: '2'" in to_yaml(kept)
    parse_config(WithEnv, ["--env", "{MMR_TEST_A: 3}"])
    assert os.environ["MMR_TEST_A"] == "3"


def test_merge_keys(tmp_path: Path) -> None:
    text = "model_kwargs: &base {a: 1, b: 2}\noffsets: {<<: *base, b: 3}\n"
    assert parse_yaml(tmp_path, text).offsets == {"a": 1, "b": 3}


def test_help_shows_groups_defaults_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(Config, ["--help"], prog="train.py", description="Trains.")
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert out.startswith("usage: train.py")
    for part in ("Trains.", "Optimiser:", "Config:", "Peak learning rate. (default: 1.0e-06)", "{no,steps,epoch}"):
        assert part in out
    assert "--bf16, --no_bf16" in out
    for name in (f.name for f in dataclasses.fields(Config)):
        assert f"--{name}" in out


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(Config, ["--print_config", "--beta", "0.04", "--colour", "blue"])
    assert caught.value.code == 0
    assert parse_yaml(tmp_path, capsys.readouterr().out) == Config(beta=0.04, colour=Colour.BLUE)


def test_save_config_is_atomic_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.yaml"
    save_config(Config(max_steps=3), path, header="python train.py --config config.yaml")
    assert path.read_text(encoding="utf-8").startswith("# python train.py")
    assert parse_config(Config, ["--config", str(path)]) == Config(max_steps=3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()

    with pytest.raises(yaml.YAMLError):
        save_config(Config(model_kwargs={"bad": object()}), path)
    assert parse_config(Config, ["--config", str(path)]) == Config(max_steps=3)
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


finite = st.floats(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
configs = st.builds(
    Config,
    learning_rate=finite,
    max_steps=st.integers(),
    bf16=st.booleans(),
    use_vllm=st.booleans(),
    name=st.text(),
    folder=st.text().map(Path),
    eval_strategy=st.sampled_from(["no", "steps", "epoch"]),
    colour=st.sampled_from(Colour),
    beta=st.none() | finite,
    scale_rewards=st.booleans() | st.sampled_from(["group", "batch"]),
    report_to=st.none() | st.text() | st.lists(st.text(), max_size=3),
    reward_funcs=st.lists(st.text() | st.dictionaries(st.text(), plain, max_size=2), max_size=3),
    reward_weights=st.none() | st.lists(finite, max_size=3),
    model_kwargs=st.none() | st.dictionaries(st.text(), plain, max_size=3),
    offsets=st.dictionaries(st.text(), st.integers(), max_size=3),
)


@pytest.mark.parametrize(
    "text", ["0E0", "1e-6", "1E5", "-1e3", "1_0e1", "1.5", "no", "007", "1:30", "0x1", ".inf", "~"]
)
def test_a_text_that_looks_like_something_else_stays_a_text(tmp_path: Path, text: str) -> None:
    cfg = Config(name=text, model_kwargs={"value": text, text: "value", "list": [text]})
    save_config(cfg, tmp_path / "config.yaml")
    assert parse_config(Config, ["--config", str(tmp_path / "config.yaml")]) == cfg


@settings(max_examples=150, deadline=None)
@given(cfg=configs)
def test_every_config_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, cfg: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    save_config(cfg, path)
    assert parse_config(Config, ["--config", str(path)]) == cfg


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_is_a_config_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8"))
    try:
        assert isinstance(parse_config(Config, ["--config", str(path)]), Config)
    except ConfigError as error:
        assert "any.yaml" in str(error)


@dataclass
class Common:
    """A dataclass that both parsers take."""

    learning_rate: float = 1e-6
    max_steps: int = -1
    bf16: bool | None = None
    use_vllm: bool = False
    name: str = "run"
    beta: float | None = None
    loss_type: Literal["grpo", "dapo"] = "dapo"
    reward_weights: list[float] | None = None
    names: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", []),
        ("learning_rate: 1.0e-5\nmax_steps: 4\nuse_vllm: true\nname: x", []),
        ("max_steps: 4\nnames: [a, b]", ["--max_steps", "5", "--names", "c", "d"]),
        ("reward_weights: [1.0, 0.5]\nloss_type: grpo\nbeta: 0.0", ["--beta", "0.04"]),
        ("use_vllm: true", ["--use_vllm", "false", "--bf16", "true", "--reward_weights", "1", "2"]),
        ("env: {MMR_TEST_TRL: 1}", ["--no_use_vllm", "--learning_rate", "3e-4", "--name", "a b"]),
    ],
)
def test_same_as_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, flags: list[str]) -> None:
    from trl import TrlParser

    @dataclass
    class TrlCommon(Common):
        # TrlParser adds --no_… only to flags that are true by default; elsewhere the two agree on the spelling.
        pass

    monkeypatch.setenv("MMR_TEST_TRL", "")
    argv = ["--config", write(tmp_path, text or "max_steps: -1"), *flags]
    ours = parse_config(Common, argv)
    env_ours = os.environ["MMR_TEST_TRL"]
    (theirs,) = TrlParser([TrlCommon]).parse_args_and_config([f for f in argv if f != "--no_use_vllm"])
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert env_ours == os.environ["MMR_TEST_TRL"]


def test_help_is_quick_and_light(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from mmreason.config import parse_config\n"
        "@dataclass\n"
        "class C:\n"
        "    steps: int = 1\n"
        "try:\n"
        "    parse_config(C)\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'trl', 'numpy', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n",
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, env=environment)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "--steps" in done.stdout
    assert min(seconds) < allowed(0.5)
