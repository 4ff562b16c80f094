"""Distillation against a float64 loop, whatever the batch, the chunks, and whether the teacher is or was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmreason.losses.distill import DIVERGENCES
from mmreason.trainers.distill_arguments import OURS, DistillOptions, LayerOptions, Schedule, TeacherOptions
from mmreason.trainers.distill_loss import confidence_weights, farthest
from mmreason.trainers.distill_store import RowLogps, TeacherStore, rows_digest
from mmreason.types import ConfigError, DataError, MMReasonError
from tests.losses.test_distill import literal
from tests.trainers.sft_rows import ListedRows, random_rows

ROWS = random_rows(24, seed=3)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def student(**changes: Any) -> Any:
    from mmreason.models.tiny import tiny_decoder

    return tiny_decoder(seed=4, **changes)


def teacher_model(seed: int = 9, scale: float = 6.0, **changes: Any) -> Any:
    """A random decoder that is sure of something."""
    from mmreason.models.tiny import tiny_decoder

    model = tiny_decoder("s", seed=seed, **changes)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(scale)
    return model


def untrained(output_dir: Path, model: Any, teachers: Sequence[Any], rows: Any = None, **changes: Any) -> Any:
    from mmreason.models.tiny import tiny_tokenizer
    from mmreason.trainers.distill import DistillTrainer
    from mmreason.trainers.distill_teacher import LocalTeacher
    from mmreason.trainers.sft import trl_config

    stores, weights = changes.pop("stores", ()), changes.pop("weights", None)
    settings: dict[str, Any] = {
        "output_dir": str(output_dir), "use_cpu": True, "gradient_checkpointing": False, "optim": "sgd",
        "learning_rate": 0.2, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1,
        "per_device_train_batch_size": 4, "logging_steps": 1, "max_completion_length": 6,
        "teachers": [{"path": f"teacher {i}"} for i in range(max(1, len(teachers)))],
    }  # fmt: skip
    args = DistillOptions(**settings | changes)
    args.check()
    made = [
        LocalTeacher(o, m.eval()) if isinstance(m, torch.nn.Module) else m
        for o, m in zip(args.all_teachers(), teachers, strict=False)
    ]
    return DistillTrainer(
        model,
        args,
        trl_config(args, OURS),
        ListedRows(ROWS) if rows is None else rows,
        tiny_tokenizer(),
        teachers=made,
        stores=stores,
        weights=weights or args.weights_of,
    )


def trained(*args: Any, **changes: Any) -> Any:
    trainer = untrained(*args, **changes)
    assert trainer.fit()
    return trainer


def losses(folder: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def same_weights(one: Any, other: Any, atol: float) -> None:
    for (name, want), (_, got) in zip(one.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert torch.allclose(want, got, atol=atol, rtol=0), name


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_first_loss_is_the_one_that_is_written_down(kind: str, tmp_path: Path) -> None:
    """Σ weight · ((1-α) nll + α T² D) / Σ weight over all rows' tokens, in float64, token by token."""
    trainer = trained(
        tmp_path, student(), [teacher_model()], divergence=kind, beta=0.3, temperature=2.0, alpha=0.7,
        per_device_train_batch_size=12, gradient_accumulation_steps=2,
    )  # fmt: skip
    assert trainer.state.global_step == 1
    models, total, weight = (student().double(), teacher_model().double()), 0.0, 0.0
    for row in ROWS:
        with torch.no_grad():
            mine, theirs = (one(input_ids=torch.tensor([row.ids])).logits[0] for one in models)
        for place in range(1, len(row.ids)):
            if row.weights[place]:
                p, q = (torch.softmax(logits[place - 1] / 2.0, -1).tolist() for logits in (theirs, mine))
                nll = -torch.log_softmax(mine[place - 1], -1)[row.ids[place]].item()
                total += row.weights[place] * (0.3 * nll + 0.7 * 4.0 * literal(p, q, kind, 0.3))
                weight += row.weights[place]
    assert losses(tmp_path) == [pytest.approx(total / weight, rel=1e-5)]


BATCHES: dict[str, dict[str, Any]] = {
    "1x8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "padding-free": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "padding_free": True},
    "chunks of 5": {"per_device_train_batch_size": 8, "logits_chunk_size": 5},
}


@pytest.mark.parametrize("batch", BATCHES)
def test_neither_batch_nor_chunks_change_ten_steps(batch: str, tmp_path: Path) -> None:
    """Against one batch whose logits are there as a whole, made by the model itself."""
    plain = {"per_device_train_batch_size": 8, "logits_chunk_size": None, "max_steps": 10}
    whole = trained(tmp_path / "whole", student(), [teacher_model()], **plain)
    other = trained(
        tmp_path / "other", student(), [teacher_model()], **plain | {"logits_chunk_size": 256} | BATCHES[batch]
    )
    assert other.teachers[0].head_alone is True and whole.teachers[0].head_alone is None
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "whole"), abs=2e-5)
    same_weights(whole, other, 5e-6)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


def store(folder: Path, rows: Any, **key: Any) -> TeacherStore:
    made = {"teacher": "t", "tokenizer": "x", "data": rows_digest(rows), "k": 2000, "temperature": 1.0}
    return TeacherStore(folder, made | key, len(rows))


def test_twenty_steps_offline_are_online(tmp_path: Path) -> None:
    """The teacher runs once before the first step, and k covers the vocabulary."""
    plain = {"max_steps": 20, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    online = trained(tmp_path / "online", student(), [teacher_model()], **plain)
    kept = store(tmp_path / "kept", ListedRows(ROWS))
    offline = trained(
        tmp_path / "offline", student(), [teacher_model()], teacher_logits="stored", top_k=2000, stores=[kept], **plain
    )
    assert losses(tmp_path / "offline") == pytest.approx(losses(tmp_path / "online"), abs=1e-5)
    same_weights(online, offline, 2e-6)
    again = trained(  # without the teacher
        tmp_path / "again", student(), [], teacher_logits="stored", top_k=2000, stores=[kept], **plain
    )
    same_weights(offline, again, 0.0)


def test_a_student_that_is_its_teacher_loses_nothing(tmp_path: Path) -> None:
    layers = {
        "hidden": 1.0,
        "attention": 1.0,
        "relations": 1.0,
        "embedding": 1.0,
        "relational": 1.0,
        "relation_heads": 2,
    }
    trained(tmp_path, student(), [student()], mode="white_box", layers=layers)
    for name in ("loss", "distill/divergence", *(f"distill/{name}" for name in layers if name != "relation_heads")):
        assert losses(tmp_path, name) == [pytest.approx(0, abs=1e-6)], name
    assert losses(tmp_path, "distill/agreement") == [1.0]
    for layer in (1, 2):
        assert losses(tmp_path, f"cka/{layer}-{layer}") == [pytest.approx(1)]


def test_layers_are_learned_through_projections(tmp_path: Path) -> None:
    """A student of another width; what was added to it does not reach the final model."""
    trainer = trained(
        tmp_path,
        student(),
        [teacher_model(scale=1.0)],
        mode="white_box",
        max_steps=30,
        optim="adamw_torch",
        learning_rate=3e-3,
        per_device_train_batch_size=24,
        layers={"hidden": 1.0, "map": "last"},
    )
    found = losses(tmp_path, "distill/hidden")
    assert found[-1] < 0.7 * found[0]
    trainer.save_final(tmp_path / "final", trainer.processing_class)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "final" / "model.safetensors").keys() == {
        name for name in student().state_dict() if name != "lm_head.weight"
    }


def test_layers_come_in_one_after_another(tmp_path: Path) -> None:
    trainer = trained(
        tmp_path,
        student(),
        [teacher_model(scale=1.0)],
        mode="white_box",
        max_steps=4,
        layers={"hidden": 1.0, "progressive": 0.5},
    )
    trained(
        tmp_path / "embedding",
        student(),
        [teacher_model(scale=1.0)],
        mode="white_box",
        layers={"hidden": 0, "embedding": 1.0, "progressive": 0.5},
    )
    active = trainer.white_box.active
    assert [active(p) for p in (0.0, 0.49, 0.5, 1.0)] == [[(1, 2)], [(1, 2)], [(1, 2), (2, 3)], [(1, 2), (2, 3)]]
    found = losses(tmp_path, "distill/hidden")
    assert len(found) == 4 and all(np.isfinite(found))


def test_confidence_weights_leave_a_bad_teacher_out(tmp_path: Path) -> None:
    """A teacher that is sure of the wrong tokens: with fixed weights it counts half, by confidence hardly at all."""
    good, bad = teacher_model(scale=4.0), teacher_model(scale=4.0)
    bad.lm_head.weight = torch.nn.Parameter(bad.lm_head.weight.detach().roll(1, 0))
    rows = [  # what the good teacher itself would say
        replace(row, ids=_greedy(good, row.ids[:3], 12), weights=[0.0] * 3 + [1.0] * 12) for row in ROWS[:8]
    ]
    plain = {"max_steps": 30, "per_device_train_batch_size": 8, "optim": "adamw_torch", "learning_rate": 1e-2}
    far = {}
    for name, teachers in {"alone": [good], "fixed": [good, bad], "confidence": [good, bad]}.items():
        weighting = "confidence" if name == "confidence" else "fixed"
        trainer = trained(tmp_path / name, student(), teachers, ListedRows(rows), teacher_weighting=weighting, **plain)
        far[name] = _divergence(trainer.model, good, rows)
    assert far["confidence"] == pytest.approx(far["alone"], rel=0.1) and far["fixed"] > 2 * far["alone"]


def _greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def _divergence(model: Any, teacher: Any, rows: Sequence[Any]) -> float:
    total = 0.0
    for row in rows:
        with torch.no_grad():
            q, p = (torch.log_softmax(one(input_ids=torch.tensor([row.ids])).logits[0], -1) for one in (model, teacher))
        total += (p.exp() * (p - q)).sum(-1)[2:-1].mean().item()
    return total / len(rows)


def test_weights_by_confidence_and_by_distance() -> None:
    nll = torch.tensor([[0.5, 2.0], [1.0, 1.0], [3.0, 0.1]])
    given = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 0.0]])
    found = confidence_weights(given, nll)
    e = np.exp
    assert found[0].tolist() == pytest.approx([e(-0.5) / (e(-0.5) + e(-2)), e(-2) / (e(-0.5) + e(-2))])
    assert found[1].tolist() == pytest.approx([0.25, 0.75]) and found[2].tolist() == [0.0, 0.0]
    weights = farthest(torch.tensor([0.1, 5.0, 2.0, 9.0]), torch.tensor([1.0, 1.0, 2.0, 0.0]), 0.5)
    assert weights.tolist() == pytest.approx([0.0, 4 / 3, 8 / 3, 0.0])


def test_on_policy_steps_learn_from_the_students_own_answers(tmp_path: Path) -> None:
    """Every row is answered anew by the weights of its step; the loss is the divergence over those tokens."""
    trainer = untrained(tmp_path, student(), [teacher_model()], mode="on_policy", learning_rate=0.0, max_steps=2)
    seen: list[Any] = []
    collate = trainer.collate
    trainer.collate = lambda bins: seen.append(bins) or collate(bins)
    assert trainer.fit()
    rows = [one.row for bins in seen for bin_ in bins for one in bin_]
    assert len(rows) == 8 and any(row.ids not in [known.ids for known in ROWS] for row in rows)
    total, count = [0.0, 0.0], [0.0, 0.0]
    models = student().double(), teacher_model().double()
    for number, row in enumerate(rows):
        original = next(known for known in ROWS if known.row_id == row.row_id)
        start = next(i for i, weight in enumerate(original.weights) if weight)
        assert row.ids[:start] == original.ids[:start] and row.weights == [0.0] * start + [1.0] * (len(row.ids) - start)
        with torch.no_grad():
            q, p = (torch.log_softmax(one(input_ids=torch.tensor([row.ids])).logits[0], -1) for one in models)
        total[number // 4] += (p.exp() * (p - q)).sum(-1)[start - 1 : -1].sum().item()
        count[number // 4] += len(row.ids) - start
    assert losses(tmp_path) == pytest.approx([t / c for t, c in zip(total, count, strict=True)], rel=1e-4)


def test_lambda_says_how_many_steps_are_on_policy(tmp_path: Path) -> None:
    trainer = untrained(tmp_path, student(), [teacher_model()], mode="on_policy", lmbda=0.3, max_steps=400)
    found = []
    for step in range(400):
        trainer.state.global_step = step
        found.append(trainer._is_on_policy())
    assert 0.2 < sum(found) / 400 < 0.4


def test_rows_of_which_a_teacher_says_nan_are_named_and_left_out(tmp_path: Path, capfd: Any) -> None:
    rows = [replace(row, ids=[*row.ids[:-1], 7] if i == 2 else [t if t != 7 else 8 for t in row.ids], row_id=f"row-{i}")
            for i, row in enumerate(ROWS[:4])]  # fmt: skip
    rows[2] = replace(rows[2], ids=[7, *rows[2].ids[1:]])
    broken = teacher_model()
    broken.model.embed_tokens = torch.nn.Embedding.from_pretrained(broken.model.embed_tokens.weight.detach().clone())
    with torch.no_grad():
        broken.model.embed_tokens.weight[7] = float("nan")
    broken.lm_head.weight = torch.nn.Parameter(teacher_model().lm_head.weight.detach().clone())
    trainer = trained(tmp_path / "skip", student(), [broken], ListedRows(rows))
    assert "gave NaN for 1 rows of step 1: row-2" in capfd.readouterr().out
    assert losses(tmp_path / "skip", "distill/skipped_rows") == [1.0]
    assert np.isfinite(losses(tmp_path / "skip")).all()
    moved = [
        not torch.equal(one, other)
        for one, other in zip(trainer.model.parameters(), student().parameters(), strict=True)
    ]
    assert all(torch.isfinite(one).all() for one in trainer.model.parameters()) and any(moved)
    for changes in ({"top_k": 8}, {"hard_share": 0.5}):
        again = trained(tmp_path / str(changes), student(), [broken], ListedRows(rows), **changes)
        assert all(torch.isfinite(one).all() for one in again.model.parameters()), changes
    silent = trained(  # one that has no weight may say anything
        tmp_path / "silent", student(), [teacher_model(), broken], ListedRows(rows), weights=lambda _: (1.0, 0.0)
    )
    assert all(torch.isfinite(one).all() for one in silent.model.parameters())
    assert losses(tmp_path / "silent", "distill/skipped_rows") == []
    with pytest.raises(MMReasonError, match="row-2"):
        trained(tmp_path / "white", student(), [broken], ListedRows(rows), mode="white_box")
    with pytest.raises(MMReasonError, match="row-2"):
        trained(tmp_path / "error", student(), [broken], ListedRows(rows), on_teacher_nan="error")


def test_rows_are_drawn_by_the_gap(tmp_path: Path) -> None:
    """Gaps are the mean divergence of each row before the first step; drawn rows have the chances that they give."""
    from mmreason.trainers.distill_gap import GapOrder, read_gaps

    models = student().double(), teacher_model().double()
    expected = []
    for row in ROWS:
        with torch.no_grad():
            q, p = (torch.log_softmax(one(input_ids=torch.tensor([row.ids])).logits[0], -1) for one in models)
        far = (p.exp() * (p - q)).sum(-1)[:-1]
        weights = torch.tensor(row.weights[1:], dtype=torch.float64)
        expected.append(((far * weights).sum() / weights.sum()).item())
    trainer = untrained(tmp_path, student(), [teacher_model()], sample_by_gap=2.0)
    order = trainer.order = trainer._sampler.order = GapOrder(len(ROWS), 0, 2.0)
    assert trainer.fit()
    assert read_gaps(tmp_path, len(ROWS)) == pytest.approx(expected, rel=1e-4)
    counts = np.bincount(order.take(0, 24 * 800), minlength=24) / (24 * 800)
    chances = np.array(expected) ** 2 / np.sum(np.array(expected) ** 2)
    assert np.abs(counts - chances).max() < 0.01 and np.argmax(counts) == np.argmax(chances)
    again = GapOrder(len(ROWS), 0, 2.0)
    again.gaps = read_gaps(tmp_path, len(ROWS))
    assert again.take(30, 50) == order.take(30, 50)


# ---- what is kept of a teacher


def kept_rows(count: int, seed: int = 0) -> list[RowLogps]:
    draw = np.random.default_rng(seed)
    return [
        RowLogps(draw.integers(0, 99, (n, 3)).astype("int32"), draw.normal(size=(n, 3)).astype("float32"),
                 draw.normal(size=n).astype("float32"))
        for n in draw.integers(0, 5, count)
    ]  # fmt: skip


def test_a_store_gives_back_what_was_written_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mmreason.trainers.distill_store.PART_ROWS", 4)
    rows, asked = kept_rows(10), []
    key = {"teacher": "t", "tokenizer": "x", "data": "d", "k": 3, "temperature": 1.0}

    def compute(part: range) -> list[RowLogps]:
        asked.append(part)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [rows[i] for i in part]

    filling = {"is_main": True, "broadcast": lambda value: value}
    with pytest.raises(KeyboardInterrupt):
        TeacherStore(tmp_path, key, 10).fill(compute, **filling)  # type: ignore[arg-type]
    (tmp_path / "000001.npz").write_bytes(b"half a fi")  # as if the kill had come while writing without care
    second = TeacherStore(tmp_path, key, 10)
    second.fill(compute, **filling)  # type: ignore[arg-type]
    assert asked == [range(4), range(4, 8), range(4, 8), range(8, 10)]
    for row, want in enumerate(rows):
        got = second[row]
        for name in ("ids", "logps", "label_logps"):
            assert np.array_equal(getattr(got, name), getattr(want, name)), (row, name)
    path = tmp_path / "000002.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"000002.npz.*checksum"):
        TeacherStore(tmp_path, key, 10)[9]


@pytest.mark.parametrize("changed", ["teacher", "tokenizer", "data", "k", "temperature"])
def test_a_store_of_something_else_is_refused_saying_what(changed: str, tmp_path: Path) -> None:
    key = {"teacher": "t", "tokenizer": "x", "data": "d", "k": 3, "temperature": 1.0}
    TeacherStore(tmp_path, key, 4).write(range(4), kept_rows(4))
    told = {"teacher": "another teacher", "tokenizer": "another tokenizer", "data": "other rows",
            "k": "another top_k", "temperature": "another temperature"}[changed]  # fmt: skip
    with pytest.raises(ConfigError, match=told):
        TeacherStore(tmp_path, key | {changed: "other"}, 4).check()
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"manifest.json: these are not this run's"):
        TeacherStore(tmp_path, key, 4).check()


# ---- options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "soft", "teachers": None}, "needs a teacher"),
        ({"teachers": [{"pfad": "x"}]}, "unknown setting 'pfad'"),
        ({"teachers": [{"weight": 1}]}, "needs path"),
        ({"teachers": [{"path": "x", "weight": -1}]}, "at least 0"),
        ({"teachers": [{"path": "x"}], "teacher_model_name_or_path": "y"}, "name all of them in teachers"),
        ({"temperature": 0}, "temperature"),
        ({"alpha": {"start": 0, "end": 2}}, "between 0 and 1"),
        ({"alpha": {"start": 0}}, "needs end"),
        ({"divergence": "jsd", "beta": 1.0}, "between 0 and 1"),
        ({"mode": "on_policy", "packing": True}, "leave out packing"),
        ({"mode": "on_policy", "teacher_logits": "stored"}, "stored is for mode: soft"),
        ({"teacher_logits": "stored", "temperature": {"start": 2, "end": 1}}, "one temperature"),
        ({"layers": {"hidden": 1}}, "needs mode: white_box"),
        ({"mode": "white_box", "layers": {"hiden": 1}}, "unknown setting 'hiden'.*hidden"),
        ({"mode": "white_box", "teachers": [{"path": "x"}, {"path": "y"}]}, "one teacher"),
        ({"hard_share": 0}, "hard_share"),
        ({"mode": "hard", "hard_share": 0.5}, "of which mode: hard has none"),
        ({"alpha": float("nan")}, "alpha"),
        ({"sample_by_gap": float("nan")}, "sample_by_gap"),
        ({"temperature": {"start": "a", "end": 1}}, "temperature.start='a' must be a number"),
        ({"teachers": [{"path": "x", "sources": ["a"]}]}, "must be a mapping"),
        ({"teachers": [{"path": "x", "dtype": "flot32"}]}, "dtype='flot32'"),
        ({"teachers": [{"path": "rows"}], "teacher_logits": "stored", "temperature": 2}, "at temperature 1"),
        ({"mode": "white_box", "layers": {"relation_heads": 0}}, "relation_heads"),
        ({"mode": "on_policy", "loss_on": {"reasoning": 0.0}}, "leave loss_on out"),
        ({"sample_by_gap": 1.0, "packing": True}, "leave out packing"),
        ({"teacher_alignment": "spans", "temperature": 2.0}, "temperature 1"),
        ({"teacher_alignment": "spans", "mode": "on_policy"}, "is for mode: soft"),
        ({"mode": "reinforce", "teachers": None}, "needs the teacher that samples"),
        ({"mode": "hard", "teachers": [{"path": "x"}, {"path": "y"}]}, "one teacher that writes"),
        ({"mode": "hard", "teacher_samples": 3}, "above it for several samples"),
        ({"mode": "step_by_step"}, "leave the teacher out"),
        ({"mode": "proxy"}, "makes its own teacher"),
        ({"mode": "proxy", "teachers": None}, "needs proxy"),
        (
            {"mode": "proxy", "teachers": None, "proxy": {"model_name_or_path": "x", "max_step": 3}},
            "proxy: .*max_steps",
        ),
    ],
)
def test_options_that_can_not_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillOptions(**{"teachers": [{"path": "x"}]} | changes).check()


def test_layer_maps_out_of_range(tmp_path: Path) -> None:
    for wrong in ([1, 2], [], [["a", 1]]):
        with pytest.raises(ConfigError, match="uniform, last or pairs"):
            untrained(tmp_path, student(), [teacher_model()], mode="white_box", layers={"map": wrong})
    with pytest.raises(ConfigError, match="attends to nothing"):
        untrained(tmp_path, student(), [teacher_model()], mode="white_box", layers={"map": [[0, 0]], "attention": 1.0})
    with pytest.raises(ConfigError, match="the teacher has no layer 9"):
        untrained(tmp_path, student(), [teacher_model()], mode="white_box", layers={"map": [[1, 9]]})


def test_schedules_and_weights() -> None:
    schedule = Schedule.parse({"start": 4, "end": 1, "over": 0.5}, "temperature")
    assert [schedule.at(step, 100) for step in (0, 25, 50, 99)] == [4, 2.5, 1, 1]
    assert Schedule.parse(2, "temperature").at(50, 100) == 2
    options = DistillOptions(teachers=[{"path": "a", "weight": 3}, {"path": "b", "sources": {"maths": 1}}])
    assert options.weights_of("maths") == [0.75, 0.25] and options.weights_of("law") == [1.0, 0.0]
    assert TeacherOptions("a", sources={"x": 2}).weight_of("y") == 0
    assert LayerOptions.parse({"map": "last"}).hidden == 1.0


def test_rows_that_no_teacher_speaks_for_are_learned_whatever_hard_share_is(tmp_path: Path) -> None:
    """All of their tokens count, beside the share of the others."""
    only_a = {"weights": lambda source: (1.0,) if source == "a" else (0.0,)}
    trained(tmp_path, student(), [teacher_model()], per_device_train_batch_size=24, hard_share=0.1, **only_a)
    nll = 0.0
    for row in ROWS:
        if row.source == "b":
            with torch.no_grad():
                logps = torch.log_softmax(student()(input_ids=torch.tensor([row.ids])).logits[0], -1)
            nll -= sum(w * logps[p - 1, row.ids[p]].item() for p, w in enumerate(row.weights) if p and w)
    total = sum(sum(row.weights[1:]) for row in ROWS)
    assert losses(tmp_path)[0] >= nll / total > 1
    with pytest.raises(ConfigError, match="none has a weight above 0"):
        untrained(tmp_path / "none", student(), [teacher_model()], weights=lambda _: (0.0,))


def test_a_teachers_rows_are_found_by_their_names() -> None:
    """Rows that the student's length limit dropped are no reason to take a neighbour's."""
    from mmreason.trainers.distill_rows import PickedRows

    class Named(ListedRows):
        def __init__(self, rows: Any) -> None:
            super().__init__(rows)
            self.row_ids = [row.row_id for row in rows]

    whole = Named([replace(ROWS[i], row_id=name) for i, name in enumerate("aabcd")])
    picked = PickedRows(whole, ["a", "a", "c", "d"], "t")
    assert [picked[i].ids for i in range(4)] == [ROWS[i].ids for i in (0, 1, 3, 4)] and len(picked) == 4
    with pytest.raises(ConfigError, match="row e: the teacher t has no rendering"):
        PickedRows(whole, ["a", "e"], "t")


# ---- another tokenizer


def test_a_teacher_with_another_tokenizer_is_compared_in_spans(tmp_path: Path) -> None:
    """The first loss, written out: for each stretch of text, its probability against that of anything else."""
    from mmreason.data.schema import to_dataset
    from mmreason.data.spans import align
    from mmreason.data.supervised import prepare_supervised
    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer
    from mmreason.trainers.distill import DistillTrainer
    from mmreason.trainers.distill_teacher import LocalTeacher
    from mmreason.trainers.sft import trl_config

    said = ["the apples are 17", "25 pears are left", "so it is 42 in all"]
    examples = [
        {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": text}],
         "id": f"r{i}", "source": "s"}
        for i, text in enumerate(said)
    ]  # fmt: skip
    data = to_dataset(examples, ("prompt", "completion", "id", "source"))  # type: ignore[arg-type]
    mine, theirs = tiny_tokenizer(), tiny_tokenizer(said * 9, vocab_size=320)
    rows, own = (prepare_supervised(data, tokenizer)[0] for tokenizer in (mine, theirs))
    model, teacher = student(), tiny_decoder("s", vocab_size=len(theirs), seed=9)
    args = DistillOptions(
        output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=False, max_steps=1, logging_steps=1,
        per_device_train_batch_size=3, teachers=[{"path": "other"}], teacher_alignment="spans", alpha=0.9,
    )  # fmt: skip
    args.check()
    local = LocalTeacher(args.all_teachers()[0], teacher, own, theirs)
    trainer = DistillTrainer(model, args, trl_config(args, OURS), rows, mine, teachers=[local], weights=args.weights_of)
    expected, weight = 0.0, 0.0
    for i in range(3):
        probabilities, learned = [], []
        for one, row in ((student(), rows[i]), (teacher, own[i])):
            with torch.no_grad():
                logps = torch.log_softmax(one(input_ids=torch.tensor([row.ids])).logits[0].double(), -1)
            places = [p for p in range(1, len(row.ids)) if row.weights[p]]
            probabilities.append([logps[p - 1, row.ids[p]].item() for p in places])
            learned.append([row.ids[p] for p in places])
        spans = align(learned[0], learned[1], (mine, theirs), "row")
        for place, number in enumerate(spans[0]):
            q, p = (
                float(np.exp(sum(lp for lp, n in zip(each, numbers, strict=True) if n == number)))
                for each, numbers in zip(probabilities, spans, strict=True)
            )
            expected += 0.1 * -probabilities[0][place] + 0.9 * literal([p, 1 - p], [q, 1 - q], "forward_kl", 0.5)
            weight += 1
    assert trainer.fit()
    assert losses(tmp_path) == [pytest.approx(expected / weight, rel=1e-4)]
