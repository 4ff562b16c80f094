"""Teachers and students that see, with other towers and other numbers of picture tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.data.schema import to_dataset
from mmreason.data.supervised import prepare_supervised
from mmreason.trainers.distill_arguments import OURS, DistillOptions
from mmreason.types import ConfigError
from tests.models.parts import HF_SIGLIP, TIMM_VIT, compose, save_decoder
from tests.pictures import ask, cell, picture
from tests.trainers.test_distill import fresh_accelerate as fresh_accelerate
from tests.trainers.test_distill import losses

MLP = {"kind": "mlp"}
FEWER = {"kind": "pixel_shuffle", "factor": 2}  # 4 tokens for a picture, not 16


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("decoder"))


def examples() -> Any:
    rows = [
        {"prompt": ask(f"{i}?", images), "completion": [{"role": "assistant", "content": f"thing {i} is {i * 7}"}],
         "images": [cell(picture(40 + i, 36, seed=9 * i + n)) for n in range(images)], "id": f"r{i}", "source": "s"}
        for i, images in enumerate((1, 2, 0, 1))
    ]  # fmt: skip
    return to_dataset(rows, ("prompt", "completion", "images", "id", "source"))  # type: ignore[arg-type]


def trained(folder: Path, student: Any, teacher: Any, *, own: bool = True, **changes: Any) -> Any:
    """One step on four rows; student and teacher are (model, processor)."""
    from mmreason.trainers.distill import DistillTrainer
    from mmreason.trainers.distill_teacher import LocalTeacher
    from mmreason.trainers.sft import trl_config

    args = DistillOptions(
        output_dir=str(folder), use_cpu=True, gradient_checkpointing=False, optim="sgd", learning_rate=0.0, max_steps=1,
        per_device_train_batch_size=4, logging_steps=1, max_completion_length=5, teachers=[{"path": "t"}], **changes,
    )  # fmt: skip
    args.check()
    rows, theirs = (prepare_supervised(examples(), processor)[0] for _, processor in (student, teacher))
    local = LocalTeacher(args.all_teachers()[0], teacher[0].eval(), theirs if own else None, teacher[1].tokenizer)
    trainer = DistillTrainer(
        student[0], args, trl_config(args, OURS), rows, student[1], teachers=[local], weights=args.weights_of
    )
    assert trainer.fit()
    return trainer


def test_another_tower_with_fewer_tokens_gives_the_loss_that_is_written_down(decoder: str, tmp_path: Path) -> None:
    """Each model reads the pictures in its own way; the answers' tokens are the same."""
    student, teacher = compose(TIMM_VIT, MLP, decoder), compose(HF_SIGLIP, FEWER, decoder, seed=5)
    total, count = 0.0, 0
    rows = [prepare_supervised(examples(), processor)[0] for _, processor in (student, teacher)]
    assert len(rows[0][0].ids) == len(rows[1][0].ids) + 12
    for i in range(4):
        logps = []
        for (model, _), each in zip((student, teacher), rows, strict=True):
            row = each[i]
            inputs = {} if row.visual is None else row.visual.inputs
            with torch.no_grad():
                out = model(input_ids=torch.tensor([row.ids]), **inputs).logits[0].double()
            learned = [p - 1 for p in range(1, len(row.ids)) if row.weights[p]]
            logps.append(torch.log_softmax(out, -1)[learned])
        q, p = logps
        total, count = total + (p.exp() * (p - q)).sum().item(), count + len(p)
    trained(tmp_path, student, teacher)
    assert losses(tmp_path) == [pytest.approx(total / count, rel=1e-4)]


def test_what_pictures_become_is_learned(decoder: str, tmp_path: Path) -> None:
    """Nothing between a model and itself; something between towers, whose tokens are averaged to as many."""
    layers = {"hidden": 0.0, "features": 1.0}
    same = [compose(TIMM_VIT, MLP, decoder) for _ in range(2)]
    trained(tmp_path / "same", same[0], same[1], own=False, mode="white_box", layers=layers)
    assert losses(tmp_path / "same", "distill/features") == [pytest.approx(0, abs=1e-6)]
    student, teacher = compose(TIMM_VIT, MLP, decoder), compose(HF_SIGLIP, FEWER, decoder, seed=5)
    trained(tmp_path / "other", student, teacher, mode="white_box", layers=layers)
    embedded = []
    for model, processor in (student, teacher):
        rows, _ = prepare_supervised(examples(), processor)
        each = []
        for i in (0, 1, 3):
            row = rows[i]
            assert row.visual is not None
            with torch.no_grad():
                out = model(input_ids=torch.tensor([row.ids]), **row.visual.inputs, output_hidden_states=True)
            each.append(out.hidden_states[0][0][[t == processor.image_token_id for t in row.ids]])
        embedded.append(each)
    apart = [
        (one.view(len(other), 4, -1).mean(1) - other).square().mean().item()
        for one, other in zip(*embedded, strict=True)
    ]
    assert losses(tmp_path / "other", "distill/features") == [pytest.approx(sum(apart) / 3, rel=1e-4)]


def test_the_students_answers_keep_their_pictures(decoder: str, tmp_path: Path) -> None:
    student, teacher = compose(TIMM_VIT, MLP, decoder), compose(HF_SIGLIP, FEWER, decoder, seed=5)
    trainer = trained(tmp_path, student, teacher, mode="on_policy")
    (loss,) = losses(tmp_path)
    assert loss > 0 and trainer.state.global_step == 1


def test_terms_between_all_tokens_want_the_same_tokens(decoder: str, tmp_path: Path) -> None:
    student, teacher = compose(TIMM_VIT, MLP, decoder), compose(HF_SIGLIP, FEWER, decoder, seed=5)
    with pytest.raises(ConfigError, match="reads pictures in other tokens"):
        trained(tmp_path, student, teacher, mode="white_box", layers={"attention": 1.0})


def test_features_want_eyes_on_both_sides(tmp_path: Path) -> None:
    from tests.trainers.test_distill import student, teacher_model, untrained

    with pytest.raises(ConfigError, match="both have to see"):
        untrained(tmp_path, student(), [teacher_model()], mode="white_box", layers={"features": 1.0})


def test_a_blind_teacher_is_refused(decoder: str, tmp_path: Path) -> None:
    from mmreason.data.loss_spans import LAST_TURN
    from mmreason.models.tiny import save_tiny
    from mmreason.trainers.arguments import DataArguments
    from mmreason.trainers.distill_data import load_teachers

    _, processor = compose(TIMM_VIT, MLP, decoder)
    rows, _ = prepare_supervised(examples(), processor)
    blind = save_tiny(tmp_path / "blind", tokenizer=processor.tokenizer)
    args = DistillOptions(teacher_model_name_or_path=blind)
    with pytest.raises(ConfigError, match="takes no images, and rows have some"):
        load_teachers(args, processor, examples(), rows, LAST_TURN, DataArguments(), lambda _: None)
