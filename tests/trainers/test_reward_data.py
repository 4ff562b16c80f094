"""Rows of reward models: every form becomes the sequences that it means, and what can't be learned is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmreason.trainers.reward_arguments import RewardData, RewardOptions
from mmreason.trainers.reward_data import head_of, load_reward_rows, prepare_reward, told
from mmreason.types import ConfigError, DataError
from tests.trainers.reward_rows import dataset, example, pair, said, tokenizer

WORDS = tokenizer()


def prepared(rows: list[dict[str, Any]], head: Any = "preference", on_bad_row: str = "error", **changes: Any) -> Any:
    return prepare_reward(dataset(rows), WORDS, head, RewardOptions(**changes), on_bad_row)


def texts(row: Any) -> list[str]:
    return [WORDS.decode(sequence.ids) for sequence in row.sequences]


def test_a_pair_is_two_whole_conversations() -> None:
    rows, dropped = prepared([pair("a", "gold", "sand", margin=0.5), pair("b", "oak", "tin")])
    assert not dropped and len(rows) == 2
    row = rows[0]
    begin = "<|user|>bring something<|end|><|assistant|>"
    assert texts(row) == [f"{begin}gold<|end|>", f"{begin}sand<|end|>"]
    assert (row.ranks, row.margin, rows[1].margin, row.weight, rows[~0].weight) == ((0, 1), 0.5, 0.0, 1.0, 0.0)
    assert rows.lengths == [2 * max(len(s.ids) for s in rows[i].sequences) for i in range(2)]
    assert "2 rows for a preference head, 4 sequences" in told("training", rows, {"bad_pair": 3})
    assert prepared([pair("a", "gold", "sand", margin=0.5)], use_margin=False)[0][0].margin == 0.0


def test_rankings_with_ties_as_the_builder_writes_them(tmp_path: Path) -> None:
    """Through `mmreason build preferences form=rankings` and the loader."""
    from data_builders.preferences import main as build

    source = [{"prompt": "which?", "chosen": one, "rejected": other} for one, other in
              (("best", "good"), ("good", "bad"), ("fine", "bad"), ("best", "fine"))]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in source))
    assert build([
        f"source={tmp_path}/pairs.jsonl", "group_by=prompt", "form=rankings", "decontaminate=[]", f"out={tmp_path}/out",
    ]) == 0  # fmt: skip
    data = RewardData(dataset_name=str(tmp_path / "out"), eval_samples=0)
    train, _ = load_reward_rows(data, 0, lambda _: None)
    assert head_of(train, "auto", data.dataset_name) == "preference"
    (row,) = prepare_reward(train, WORDS, "preference", RewardOptions(), "error")[0]
    ranked = {text.split("<|assistant|>")[1].removesuffix("<|end|>"): rank
              for text, rank in zip(texts(row), row.ranks, strict=True)}  # fmt: skip
    assert ranked == {"best": 0, "good": 1, "fine": 1, "bad": 2}


def test_plain_rows_with_a_ranking_and_a_margin(tmp_path: Path) -> None:
    rows = [{"prompt": "which?", "chosen": "a", "rejected": "b", "margin": 1.5, "id": "x"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, _ = load_reward_rows(RewardData(str(tmp_path / "pairs.jsonl"), eval_samples=0), 0, lambda _: None)
    assert prepare_reward(train, WORDS, "preference", RewardOptions(), "error")[0][0].margin == 1.5


def test_outcomes_and_steps() -> None:
    answers = [example("a", completion=said("gold"), label=True), example("b", completion=said("sand"), label=False)]
    rows, _ = prepared(answers, "outcome")
    assert [(rows[i].labels, rows[i].places == (len(rows[i].sequences[0].ids) - 1,)) for i in range(2)] == [
        ((1.0,), True), ((0.0,), True)]  # fmt: skip
    steps = ["first gold", "then sand", "gold"]
    rows, _ = prepared([example("a", completions=steps, labels=[True, False, False])], "process")
    row = rows[0]
    read = [WORDS.decode(row.sequences[0].ids[: place + 1]).split("<|assistant|>")[1] for place in row.places]
    assert read == ["first gold", "first gold\nthen sand", "first gold\nthen sand\ngold"]
    assert row.labels == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "smolvlm", "mmreason"])
def test_steps_end_where_they_do_behind_pictures_too(kind: str, tmp_path: Path) -> None:
    from mmreason.models.loading import load_processor
    from mmreason.trainers.arguments import ModelArguments
    from tests.pictures import ask, cell, picture, save_seeing

    processor = load_processor(ModelArguments(model_name_or_path=save_seeing(kind, tmp_path)))
    row = example("a", completions=["one two", "three"], labels=[True, False])
    row |= {"prompt": ask("look", 2), "images": [cell(picture(40, 50, 1)), cell(picture(70, 30, 2))]}
    rows, _ = prepare_reward(dataset([row]), processor, "process", RewardOptions(), "error")
    ids = rows[0].sequences[0].ids
    ends = [processor.tokenizer.decode(ids[: place + 1]) for place in rows[0].places]
    assert ends[0].endswith("one two") and ends[1].endswith("one two\nthree")
    assert rows.image_counts == [2]


def test_process_rows_of_the_builder_keep_their_columns() -> None:
    """What `mmreason build cot form=process` writes is canonical, and TRL's stepwise form; both are read alike."""
    from mmreason.data.formats import FORMATS

    row = {"prompt": "1+1?", "completion": "a\nb", "completions": ["a", "b"], "labels": [True, False], "label": False,
           "answer": "2", "id": "x", "source": "s", "meta": {}}  # fmt: skip
    for name in ("canonical", "stepwise"):
        found = FORMATS[name].parse(row, 0)
        assert (found["completions"], found["labels"]) == (["a", "b"], [True, False])


def test_the_head_goes_by_the_rows() -> None:
    assert head_of(dataset([pair("a", "x", "y")]), "auto", "set") == "preference"
    assert head_of(dataset([example("a", completion=said("x"), label=True)]), "auto", "set") == "outcome"
    steps = example("a", completions=["x"], labels=[True], completion=said("x"), label=True)
    assert head_of(dataset([steps]), "auto", "set") == "process"
    assert head_of(dataset([steps]), "outcome", "set") == "outcome"
    with pytest.raises(DataError, match="set: no row says which answer is better or right"):
        head_of(dataset([example("a", completion=said("x"))]), "auto", "set")


RANKED = [{"completion": said("x"), "rank": 0}, {"completion": said("y"), "rank": 0}]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("preference", pair("p7", "gold", "gold"), "row p7: bad_pair.*both are.*gold"),
    ("preference", example("p7", completion=said("x")), "row p7: missing_pair"),
    ("preference", pair("p7", "gold", "sand", margin="much"), "row p7: bad_pair.*'margin' is 'much'"),
    ("preference", example("p7", meta={"ranking": RANKED}), "row p7: bad_pair.*2 completions of one rank"),
    ("preference", example("p7", meta={"ranking": [{"completion": said("x")}]}), "row p7: .*{completion, rank}"),
    ("preference", example("p7", meta={"ranking": [RANKED[0], RANKED[0] | {"rank": 1}]}), "stands at two ranks"),
    ("preference", pair("p7", "gold", " "), "row p7: .*rejected"),
    ("preference", pair("p7", "gold", "sand " * 300), r"row p7: too_long.*rejected: \d+ tokens, max_length is 256"),
    ("outcome", example("p7", completion=said("x")), "row p7: missing_label"),
    ("process", example("p7", completions=["a", "b"], labels=[True]), "row p7: bad_label.*2 steps, 1 labels"),
    ("process", example("p7", completion=said("x")), "row p7: missing_completion"),
]


@pytest.mark.parametrize(("head", "row", "message"), BAD, ids=[message[:30] for *_, message in BAD])
def test_bad_rows_are_named_or_counted(head: str, row: dict[str, Any], message: str) -> None:
    good = {"preference": pair("ok", "gold", "sand"), "outcome": example("ok", completion=said("x"), label=True),
            "process": example("ok", completions=["a"], labels=[True])}[head]  # fmt: skip
    with pytest.raises(DataError, match=message):
        prepared([good, row], head, max_length=256)
    rows, dropped = prepared([row, good], head, "drop", max_length=256)
    assert len(rows) == 1 and sum(dropped.values()) == 1
    with pytest.raises(DataError, match="none of 1 rows is left"):
        prepared([row], head, "drop", max_length=256)


def test_long_rows_are_dropped_whole() -> None:
    rows, dropped = prepared([pair("a", "gold", "sand " * 300), pair("b", "oak", "tin")], truncation="drop",
                             max_length=64)  # fmt: skip
    assert len(rows) == 1 and dropped == {"too_long": 1} and len(rows.sequences) == 2


def test_pictures_need_a_model_that_sees() -> None:
    from tests.pictures import ask, cell, picture

    row = pair("a", "gold", "sand") | {"prompt": ask("look", 1), "images": [cell(picture(30, 30))]}
    with pytest.raises(ConfigError, match="reads text only, but the row has 1 image"):
        prepared([row])


def test_options_that_mean_nothing_here_are_refused() -> None:
    for options in (RewardOptions(max_completion_length=7), RewardOptions(center_rewards_coefficient=-1.0)):
        with pytest.raises(ConfigError, match=r"max_completion_length|center_rewards_coefficient"):
            options.check()
    with pytest.raises(ConfigError, match="eval_num_generations has no meaning"):
        RewardData(eval_num_generations=9).check()


def test_real_pairs(shared_data: Path) -> None:
    """hh-rlhf's transcripts: the two sides differ in their last answer alone."""
    data = RewardData(str(shared_data / "preference" / "hh_harmless_1k.jsonl"), max_train_samples=60, eval_samples=10)
    train, held = load_reward_rows(data, 0, lambda _: None)
    assert len(train) == 50 and len(held["held_out"]) == 10
    rows, _ = prepare_reward(train, WORDS, "preference", RewardOptions(max_length=None), "drop")
    assert len(rows) >= 45
    for number in range(len(rows)):
        one, other = texts(rows[number])
        assert one != other and one.rsplit("<|assistant|>", 1)[0] == other.rsplit("<|assistant|>", 1)[0]
