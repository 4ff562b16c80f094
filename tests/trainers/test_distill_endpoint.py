"""Log-probabilities that rows bring of an endpoint: those of a model, packed as texts, come back as its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmreason.clients.packed_logprobs import pack_logprobs
from mmreason.clients.types import TokenLogprob
from mmreason.data.schema import to_dataset
from mmreason.data.supervised import prepare_supervised
from mmreason.models.tiny import tiny_tokenizer
from mmreason.trainers.distill_arguments import TeacherOptions
from mmreason.trainers.distill_endpoint import rows_teacher
from mmreason.types import ConfigError, DataError
from tests.trainers.test_distill import fresh_accelerate as fresh_accelerate
from tests.trainers.test_distill import losses, student, teacher_model, trained

TOKENIZER = tiny_tokenizer()
K = 5


def example(i: int, text: str, **meta: Any) -> dict[str, Any]:
    prompt, completion = [{"role": "user", "content": f"{i}?"}], [{"role": "assistant", "content": text}]
    return {"prompt": prompt, "completion": completion, "id": f"r{i}", "source": "s", "meta": meta}


def told(model: Any, row: Any, *, end: bool = True) -> list[TokenLogprob]:
    """What a server says of a row's learned tokens: texts, and the K likeliest at each place."""
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0].double(), -1)
    places = [p for p in range(1, len(row.ids)) if row.weights[p]]
    out = []
    for place in places if end else places[:-1]:
        top = logps[place - 1].topk(K)
        pairs = tuple(
            (TOKENIZER.decode([i]), lp) for i, lp in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
        out.append(TokenLogprob(TOKENIZER.decode([row.ids[place]]), logps[place - 1, row.ids[place]].item(), pairs))
    return out


def built(model: Any, *, end: bool = True) -> Any:
    """(the rows as Examples with their log-probabilities, as the student reads them)."""
    plain = [example(i, text) for i, text in enumerate(("17 apples", "so 42", "it is 3"))]
    columns = ("prompt", "completion", "id", "source", "meta")
    rows, _ = prepare_supervised(to_dataset(plain, columns), TOKENIZER)  # type: ignore[arg-type]
    made = [
        one | {"meta": {"logprobs": pack_logprobs(told(model, rows[i], end=end), K)}} for i, one in enumerate(plain)
    ]
    return to_dataset(made, columns), rows  # type: ignore[arg-type]


class AsciiTeacher:
    """A decoder that only likes tokens which are whole characters, as texts can name them."""

    def __new__(cls) -> Any:
        model = teacher_model(scale=1.0)
        head = model.lm_head.weight.detach().clone()
        bias = torch.full((head.shape[0],), -30.0)
        bias[[i for i in range(len(TOKENIZER)) if "�" not in TOKENIZER.decode([i])]] = 0.0
        model.lm_head = torch.nn.Linear(head.shape[1], head.shape[0])
        with torch.no_grad():
            model.lm_head.weight.copy_(head)
            model.lm_head.bias.copy_(bias)
        return model


def test_a_model_and_what_was_packed_of_it_teach_the_same(tmp_path: Path) -> None:
    model = AsciiTeacher()
    train, rows = built(model)
    teacher = rows_teacher(TeacherOptions("rows"), train, rows, K, TOKENIZER)
    found = teacher.said(range(3))
    for row, one in enumerate(found):
        expected = told(model, rows[row])
        for place, there in enumerate(expected):
            assert one.label_logps[place] == pytest.approx(there.logprob, rel=1e-5)
            known = {
                TOKENIZER.decode([i]): lp for i, lp in zip(one.ids[place], one.logps[place], strict=True) if i >= 0
            }
            want = dict(there.top) | {there.token: there.logprob}
            assert set(known) <= set(want) and len(known) == K
            assert all(lp == pytest.approx(want[text], rel=1e-5) for text, lp in known.items())
            assert np.all(np.diff(one.logps[place]) <= 1e-6)


def test_a_server_that_leaves_the_end_out(tmp_path: Path) -> None:
    """Nothing is known there, so nothing is compared there."""
    train, rows = built(AsciiTeacher(), end=False)
    teacher = rows_teacher(TeacherOptions("rows"), train, rows, K, TOKENIZER)
    from mmreason.trainers.distill_store import TeacherStore

    key = {"teacher": "r", "tokenizer": "x", "data": "d", "k": K, "temperature": 1.0}
    stores = [TeacherStore(tmp_path / "kept", key, 3)]
    plain = {"teacher_logits": "stored", "top_k": K, "per_device_train_batch_size": 3, "max_steps": 60}
    trainer = trained(
        tmp_path / "run", student(), [teacher], rows, stores=stores, learning_rate=1e-2, optim="adamw_torch", **plain
    )
    row = rows[0]  # its end is learned from the row itself
    with torch.no_grad():
        ends = torch.softmax(trainer.model.eval()(input_ids=torch.tensor([row.ids])).logits[0, -2], -1)
    assert ends[row.ids[-1]] > 0.5
    (one, *_) = rows_teacher(TeacherOptions("rows"), train, rows, K, TOKENIZER).said(range(3))
    assert (one.ids[-1] == -1).all() and (one.ids[:-1, 0] >= 0).all()


def test_rows_that_were_written_otherwise_are_named() -> None:
    train, rows = built(AsciiTeacher())
    shifted = train.select([1, 0, 2]).remove_columns("id").add_column("id", ["r0", "r1", "r2"])
    with pytest.raises(DataError, match=r"row r0: its log-probabilities are not of its tokens"):
        rows_teacher(TeacherOptions("rows"), shifted, rows, K, TOKENIZER).said(range(3))
    bare = train.remove_columns("meta").add_column("meta", [{"a": 1}] * 3)
    with pytest.raises(ConfigError, match="row r0 has no log-probabilities in meta"):
        rows_teacher(TeacherOptions("rows"), bare, rows, K, TOKENIZER)


def test_one_of_two_teachers(tmp_path: Path) -> None:
    """Rows that bring one teacher's words, and a model beside them: the same as both models, k tokens each."""
    from mmreason.trainers.distill_store import TeacherStore

    first, second = AsciiTeacher(), teacher_model(seed=5)
    train, rows = built(first)
    key = {"tokenizer": "x", "data": "d", "k": K, "temperature": 1.0}
    plain = {"teacher_logits": "stored", "top_k": K, "max_steps": 3, "per_device_train_batch_size": 3}
    stores = [TeacherStore(tmp_path / "kept" / str(i), key | {"teacher": i}, 3) for i in range(2)]
    teacher = rows_teacher(TeacherOptions("rows"), train, rows, K, TOKENIZER)
    mixed = trained(tmp_path / "mixed", student(), [teacher, second], rows, stores=stores, **plain)
    stores = [TeacherStore(tmp_path / "models" / str(i), key | {"teacher": i}, 3) for i in range(2)]
    models = trained(tmp_path / "models", student(), [first, second], rows, stores=stores, **plain)
    # where a row's own token is not among the k likeliest, an endpoint tells it in the place of the k-th
    assert losses(tmp_path / "mixed") == pytest.approx(losses(tmp_path / "models"), rel=2e-2)
    assert mixed.state.global_step == models.state.global_step == 3
