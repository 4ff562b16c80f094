"""load_rewards: names, dotted paths, files, parameters; every mistake named."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmreason.rewards import REWARDS, BoundReward, load_rewards
from mmreason.types import ConfigError

USER_FILE = '''
def word_reward(completions, word="so", weight=1.0, **kwargs):
    """Ten lines are enough: a share of completions that hold a word."""
    return [weight * float(word in c) for c in completions]

class Counting:
    def __init__(self, step=1):
        self.step = step
    def __call__(self, completions, **kwargs):
        return [self.step] * len(completions)

NOT_CALLABLE = 3
'''


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    path = tmp_path / "my_rewards.py"
    path.write_text(USER_FILE)
    return str(path)


def test_registry_names_load_with_their_own_metric_names() -> None:
    needs: dict[str, Any] = {
        "cosine_length": {"max_length": 9},
        "soft_overlong": {"max_length": 9, "soft_punish_cache": 3},
    }
    names = [name for name in REWARDS if name != "reward_model"]  # which looks for a model when it is loaded
    loaded = load_rewards([{"name": name, **needs.get(name, {})} for name in names])
    assert [reward.__name__ for reward in loaded] == [f"{name}_reward" for name in names]
    assert load_rewards("accuracy")[0].__name__ == "accuracy_reward"


def test_parameters_are_fixed_against_columns() -> None:
    (reward,) = load_rewards([{"name": "repetition", "ngram_size": 2}])
    assert reward(completion_ids=[[5, 5, 5, 5, 5]], max_penalty=["a column"], ngram_size=["a column"]) == [-0.75]


def test_file_function_with_parameters_and_alias(user_file: str) -> None:
    plain, tuned = load_rewards(
        [f"{user_file}:word_reward", {"name": f"{user_file}:word_reward", "word": "no", "weight": 2, "as": "noes"}]
    )
    assert (plain.__name__, tuned.__name__) == ("word_reward", "noes")
    assert plain(completions=["so", "no"]) == [1.0, 0.0] and tuned(completions=["so", "no"]) == [0.0, 2.0]


def test_classes_functions_and_dotted_paths(user_file: str) -> None:
    (made,) = load_rewards([{"name": f"{user_file}:Counting", "step": 4}])
    assert made(completions=["a", "b"]) == [4, 4] and made.__name__ == "Counting"

    def mine(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    assert load_rewards([mine]) == [mine] and load_rewards(mine) == [mine]
    (dotted,) = load_rewards(["mmreason.rewards.format.format_reward"])
    assert isinstance(dotted, BoundReward) and dotted.params["style"] == "think_answer"
    (partial,) = load_rewards([{"name": functools.partial(mine), "as": "p"}])
    assert partial.__name__ == "p"


def test_bound_rewards_can_be_pickled(user_file: str) -> None:
    loaded = load_rewards([{"name": "repetition", "ngram_size": 2}, {"name": f"{user_file}:word_reward", "word": "x"}])
    for reward in loaded:
        again = pickle.loads(pickle.dumps(reward))
        assert again.__name__ == reward.__name__ and again.params == reward.params


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("acuracy", "unknown reward 'acuracy'.*Did you mean 'accuracy'"),
        ("", "a reward is a name"),
        (3, "a reward is a name"),
        ({"max_length": 3}, "has no 'name'"),
        ({"name": "repetition", "ngram": 3}, "no parameter 'ngram'.*Did you mean 'ngram_size'"),
        ({"name": "cosine_length"}, "needs max_length"),
        ("mmreason.rewards.format.format_rward", "Did you mean 'format_reward'"),
        ("no_such_module_xyz.reward", "can't import no_such_module_xyz: ModuleNotFoundError"),
        ("nowhere/rewards.py:mine", "reward file nowhere/rewards.py does not exist"),
    ],
)
def test_mistakes(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_rewards([entry])


def test_mistakes_in_files(user_file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no parameter 'wrd'.*Did you mean 'word'"):
        load_rewards([{"name": f"{user_file}:word_reward", "wrd": "x"}])
    with pytest.raises(ConfigError, match="Did you mean 'word_reward'"):
        load_rewards([f"{user_file}:word_rewrd"])
    with pytest.raises(ConfigError, match="NOT_CALLABLE' is no function but"):
        load_rewards([f"{user_file}:NOT_CALLABLE"])
    with pytest.raises(ConfigError, match="can't be made"):
        load_rewards([{"name": f"{user_file}:Counting", "steps": 1}])
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="can't be loaded: ZeroDivisionError"):
        load_rewards([f"{broken}:x"])


def test_two_rewards_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two rewards are called 'repetition_reward'.*as: other_name"):
        load_rewards(["repetition", {"name": "repetition", "ngram_size": 4}])
    names = [r.__name__ for r in load_rewards(["repetition", {"name": "repetition", "ngram_size": 4, "as": "rep4"}])]
    assert names == ["repetition_reward", "rep4"]
