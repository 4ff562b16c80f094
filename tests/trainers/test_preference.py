"""The preference trainer against TRL's trainers and a literal float64 loop: losses, gradients, references, pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmreason.losses import preference as losses
from mmreason.models.tiny import tiny_tokenizer
from mmreason.trainers.arguments import ModelArguments
from mmreason.trainers.preference_data import PairRows, prepare_pairs
from mmreason.trainers.preference_reference import ReferenceStore
from tests.pictures import ask
from tests.trainers.preference_rows import (
    dataset,
    decoder,
    flat,
    literal_logps,
    options,
    pair_rows,
    picture_pairs,
    say,
    text_pairs,
    trained,
    untrained,
)

ROWS = pair_rows(text_pairs(8))
ALL = ["dpo", "robust", "hinge", "ipo", "bco", "simpo", "orpo", "sft"]
SMOOTH = {"robust": {"label_smoothing": 0.1}}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Any:
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def literal_loss(names: list[str], weights: list[float], rows: PairRows, model: Any, reference: Any) -> Tensor:
    """The step over all rows, one by one in float64."""
    total, nll, tokens = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for i in range(len(rows)):
        logps = literal_logps(model, rows[i])
        with torch.no_grad():
            ref = [one.sum() for one in literal_logps(reference, rows[i])]
        ratios = [one.sum() - other for one, other in zip(logps, ref, strict=True)]
        means = [one.mean() for one in logps]
        nll, tokens = nll - logps[0].sum(), tokens + len(logps[0])
        found = {
            "dpo": lambda r=ratios: losses.dpo_loss(*r, beta=0.1),
            "robust": lambda r=ratios: losses.robust_dpo_loss(*r, beta=0.1, label_smoothing=0.1),
            "hinge": lambda r=ratios: losses.hinge_loss(*r, beta=0.1),
            "ipo": lambda r=ratios, p=logps: losses.ipo_loss(
                *(x / len(y) for x, y in zip(r, p, strict=True)), beta=0.1
            ),
            "bco": lambda r=ratios: losses.bco_pair_loss(*r, beta=0.1),
            "simpo": lambda m=means: losses.simpo_loss(*m, beta=0.1, gamma=0.5),
            "orpo": lambda m=means: 0.1 * losses.odds_ratio_loss(*m),
        }
        for name, weight in zip(names, weights, strict=True):
            if name in found:
                total = total + weight * found[name]() / len(rows)
    for name, weight in zip(names, weights, strict=True):
        if name in ("sft", "orpo"):
            total = total + weight * nll / tokens
    return total


def first_step(folder: Path, rows: PairRows, seed: int = 4, **changes: Any) -> tuple[float, Tensor]:
    """(loss, gradient) of a first SGD step at learning rate 1."""
    model = decoder(seed)
    before = flat(model)
    trainer = trained(folder, model, rows, learning_rate=1.0, **changes)
    return metrics(folder)[0]["loss"], before - flat(trainer.model)


def with_reference(names: list[str]) -> dict[str, Any]:
    return {"reference": decoder(9)} if options(Path(), loss=names).needs_reference else {}


@pytest.mark.parametrize("names", [*([name] for name in ALL), ["dpo", "bco", "sft"]], ids="+".join)
def test_a_step_is_the_literal_loop(names: list[str], tmp_path: Path) -> None:
    weights = [0.8, 0.2, 1.0][: len(names)]
    given = {"loss": names, "loss_weights": weights, **SMOOTH.get(names[0], {}), **with_reference(names)}
    loss, gradient = first_step(tmp_path, ROWS, per_device_train_batch_size=8, **given)
    model = decoder().double()
    want = literal_loss(names, weights, ROWS, model, decoder(9).double())
    want.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert loss == pytest.approx(want.item(), abs=1e-5)
    assert (gradient - wanted).norm() / wanted.norm() <= 1e-5


@pytest.mark.parametrize("names", [["dpo", "sft"], ["orpo"]], ids="+".join)
def test_how_a_step_is_cut_changes_nothing(names: list[str], tmp_path: Path) -> None:
    """8 × 1, 2 × 4 and checkpointed: one loss and one gradient."""
    cuts: dict[str, dict[str, Any]] = {
        "8x1": {"per_device_train_batch_size": 8},
        "2x4": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        "checkpointed": {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    }
    found = {k: first_step(tmp_path / k, ROWS, loss=names, **with_reference(names), **cut) for k, cut in cuts.items()}
    loss, want = found.pop("8x1")
    for name, (other, gradient) in found.items():
        assert other == pytest.approx(loss, abs=1e-5), name
        assert (gradient - want).norm() / want.norm() <= 1e-5, name


# ---- TRL


def trl_dpo(rows: PairRows, loss_type: list[str], folder: Path, **settings: Any) -> tuple[float, Tensor]:
    """(loss, gradient) of TRL's DPOTrainer on the same token ids, in one micro-batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = decoder()
    columns: dict[str, list[Any]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for i in range(len(rows)):
        pair = rows[i]
        start = next(k for k, weight in enumerate(pair.first.weights) if weight)
        columns["prompt_ids"].append(pair.first.ids[:start])
        columns["chosen_ids"].append(pair.first.ids[start:])
        columns["rejected_ids"].append(pair.second.ids[start:])
    config = DPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", beta=0.1,
        per_device_train_batch_size=len(rows), loss_type=loss_type, max_length=None, **settings,
    )  # fmt: skip
    trainer = DPOTrainer(
        model, decoder(9), config, train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    batch = trainer.data_collator([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).double()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("dpo", "sigmoid"), ("hinge", "hinge"), ("robust", "robust"), ("bco", "bco_pair"), ("sft", "sft")],
)
def test_as_trls_dpo_trainer(ours: str, theirs: str, tmp_path: Path) -> None:
    more = SMOOTH.get(ours, {})
    want, wanted = trl_dpo(ROWS, [theirs], tmp_path / "trl", **more)
    given = with_reference([ours]) | {"loss": ours, "per_device_train_batch_size": 8}
    loss, gradient = first_step(tmp_path / "ours", ROWS, **more, **given)
    assert loss == pytest.approx(want, abs=1e-5)
    assert (gradient - wanted).norm() / wanted.norm() <= 1e-5


def trl_paired(rows: PairRows, kind: str, folder: Path) -> tuple[float, Tensor]:
    """(loss, gradient) of TRL's CPO (SimPO) or ORPO trainer's own forward pass and loss on the same token ids."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    model = decoder()
    pairs = [rows[i] for i in range(len(rows))]
    width = max(len(row.ids) for pair in pairs for row in (pair.first, pair.second))
    batch: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        sides = [pair.first if side == "chosen" else pair.second for pair in pairs]
        # ORPO's likelihood there is that of the prompt, too: what counts here is all but the first token.
        ids = [row.ids + [0] * (width - len(row.ids)) for row in sides]
        mask = [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in sides]
        labels = [
            [token if weight else -100 for token, weight in zip(row.ids, row.weights, strict=True)]
            + [-100] * (width - len(row.ids))
            for row in sides
        ]
        batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"] = torch.tensor(ids), torch.tensor(mask)
        batch[f"{side}_labels"] = torch.tensor(labels)
    cls: Any = CPOTrainer if kind == "simpo" else ORPOTrainer
    trainer = cls.__new__(cls)
    vars(trainer).update(
        is_encoder_decoder=False, label_pad_token_id=-100, pad_token_id=0, aux_loss_enabled=False, beta=0.1,
        simpo_gamma=0.5, cpo_alpha=0.0, alpha=0.0, loss_type="simpo", label_smoothing=0.0, padding_value=0,
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda value: value),
    )  # fmt: skip
    loss, _ = trainer.get_batch_loss_metrics(model, batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).double()


@pytest.mark.parametrize("kind", ["simpo", "orpo"])
def test_as_trls_cpo_and_orpo_trainers(kind: str, tmp_path: Path) -> None:
    """TRL's ORPO takes the likelihood of the prompt too, so prompts here are of one token, which nothing predicts."""
    from dataclasses import replace

    rows = pair_rows(text_pairs(6, seed=3))
    real = [rows[i] for i in range(len(rows))]

    class Bare(PairRows):
        def __getitem__(self, index: int) -> Any:
            pair = real[index]
            start = next(k for k, weight in enumerate(pair.first.weights) if weight)
            first, second = (
                replace(row, ids=row.ids[start - 1 :], weights=row.weights[start - 1 :])
                for row in (pair.first, pair.second)
            )
            return replace(pair, first=first, second=second)

    rows.__class__ = Bare
    want, wanted = trl_paired(rows, kind, tmp_path)
    loss, gradient = first_step(tmp_path / "ours", rows, loss=kind, per_device_train_batch_size=6)
    assert loss == pytest.approx(want, abs=1e-5)
    assert (gradient - wanted).norm() / wanted.norm() <= 1e-5


# ---- KTO


def test_kto_is_the_literal_loop(tmp_path: Path) -> None:
    """Pairs and single completions; the baseline is the mean over other prompts' completions, without gradient."""
    examples = text_pairs(4, seed=5)
    for i, example in enumerate(examples[2:]):
        example["completion"], example["label"] = example.pop("chosen"), i == 0
        del example["rejected"]
    rows = pair_rows(examples, unpaired=True)
    assert rows.labels == [True, False, True, False, True, False]
    settings = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    loss, gradient = first_step(
        tmp_path, rows, loss="kto", reference=decoder(9), per_device_train_batch_size=6, **settings
    )
    model, reference = decoder().double(), decoder(9).double()
    ratios: list[list[Tensor]] = [[], []]
    for i in range(len(rows)):
        with torch.no_grad():
            ref = literal_logps(reference, rows[i])
        for side, (mine, other) in enumerate(zip(literal_logps(model, rows[i]), ref, strict=True)):
            ratios[side].append(mine.sum() - other.sum())
    baseline = torch.stack(ratios[1]).mean().clamp(min=0).detach()
    want = losses.kto_loss(torch.stack(ratios[0]), torch.tensor(rows.labels), baseline, beta=0.1, **settings).mean()
    want.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert loss == pytest.approx(want.item(), abs=1e-5)
    assert (gradient - wanted).norm() / wanted.norm() <= 1e-5


def test_ktos_baseline_takes_answers_to_other_questions() -> None:
    rows = pair_rows(text_pairs(3, seed=6), unpaired=True)
    tokenizer = tiny_tokenizer()
    for i in range(len(rows)):
        pair = rows[i]
        start = next(k for k, weight in enumerate(pair.first.weights) if weight)
        assert pair.second.ids[:start] == pair.first.ids[:start] and not any(pair.second.weights[:start])
        own = tokenizer.decode(pair.first.ids[start:])
        other = {tokenizer.decode(rows[k].first.ids[start:]) for k in (2 * (i // 2), 2 * (i // 2) + 1)}
        assert tokenizer.decode(pair.second.ids[start:]) not in other | {own}


def test_ktos_baseline_keeps_max_length() -> None:
    """A long prompt and the long completion of another row fit with their own, not with each other."""
    examples = text_pairs(3, seed=6)
    examples[0]["prompt"] = ask("one " * 30)
    examples[2]["chosen"] = examples[2]["rejected"] = say("two " * 30)
    for i, example in enumerate(examples):
        example["completion"], example["label"] = example.pop("chosen"), i == 0
        del example["rejected"]
    free = pair_rows(examples, unpaired=True)
    limit = max(len(free[i].first.ids) for i in range(3))
    assert len(free[0].second.ids) > limit, "nothing would have to be cut"
    rows, _ = prepare_pairs(dataset(examples), tiny_tokenizer(), unpaired=True, max_length=limit)
    assert rows.partners == free.partners and rows[1] == free[1] and rows[2] == free[2]
    cut, whole = rows[0].second, free[0].second
    assert len(cut.ids) == len(cut.weights) == limit and sum(cut.weights) >= 1
    assert cut.ids == whole.ids[:limit] and cut.weights == whole.weights[:limit]
    assert rows.lengths.tolist() == [len(rows[i].first.ids) + len(rows[i].second.ids) for i in range(3)]
    assert rows.digest() != free.digest()

    # With a prompt that leaves no room one token stays: a mean over no tokens would be no baseline.
    rows.max_length = 1
    start = next(place for place, weight in enumerate(whole.weights) if weight)
    assert rows[0].second.ids == whole.ids[: start + 1] and rows[0].second.weights[-1] == 1


def test_as_trls_kto_trainer(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = pair_rows(text_pairs(4, seed=7), unpaired=True)
    config = KTOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        beta=0.1, per_device_train_batch_size=len(rows), max_length=None,
    )  # fmt: skip
    text = [{"prompt": "a", "completion": c, "label": c == "b"} for c in "bc"]
    trainer = KTOTrainer(
        decoder(), decoder(9), config, train_dataset=Dataset.from_list(text), processing_class=tiny_tokenizer()
    )
    examples = []
    for i in range(len(rows)):
        pair = rows[i]
        start = next(k for k, weight in enumerate(pair.first.weights) if weight)
        examples.append({"prompt_ids": pair.first.ids[:start], "completion_ids": pair.first.ids[start:],
                         "KL_completion_ids": pair.second.ids[start:], "label": pair.label})  # fmt: skip
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(examples)))
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).double()
    found, gradient = first_step(
        tmp_path / "ours", rows, loss="kto", reference=decoder(9), per_device_train_batch_size=len(rows)
    )
    assert found == pytest.approx(loss.item(), abs=1e-5)
    assert (gradient - wanted).norm() / wanted.norm() <= 1e-5


# ---- references


def with_lora(model: Any) -> Any:
    from mmreason.models.peft import add_adapter

    torch.manual_seed(0)
    args = ModelArguments(adapter={"kind": "lora", "r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]})
    return add_adapter(model, args)


def adapter_after(folder: Path, **changes: Any) -> tuple[list[dict[str, Any]], Tensor]:
    trainer = trained(folder, with_lora(decoder()), ROWS, max_steps=4, **changes)
    learned = [p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]
    return metrics(folder), torch.cat(learned)


def test_lora_needs_no_second_model(tmp_path: Path) -> None:
    """Four steps with the adapter switched off as reference, with a second model, and with numbers taken beforehand."""
    with_model, want = adapter_after(tmp_path / "model", reference=decoder())
    alone, found = adapter_after(tmp_path / "alone", adapter_off=True)
    assert torch.allclose(found, want, atol=1e-7) and want.norm() > 0.1
    rows = pair_rows(text_pairs(8))
    args = options(tmp_path / "before", precompute_ref_log_probs=True)
    store = ReferenceStore(args.output_dir, ModelArguments(model_name_or_path="tiny"), args, rows, "training")
    trainer = trained(
        tmp_path / "before", with_lora(decoder()), rows, max_steps=4, adapter_off=True, stores=[store],
        precompute_ref_log_probs=True,
    )  # fmt: skip
    before = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    assert torch.allclose(before, want, atol=1e-5)
    for other in (alone, metrics(tmp_path / "before")):
        for line, wanted in zip(other, with_model, strict=True):
            assert line["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
            assert line["rewards/margins"] == pytest.approx(wanted["rewards/margins"], abs=1e-4)
    assert with_model[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)  # the adapter begins as nothing
    assert with_model[-1]["rewards/margins"] > 0.01


def test_the_policy_itself_is_the_reference_before_its_first_step(tmp_path: Path) -> None:
    """Full weights, numbers taken beforehand, no second model; the files are used again, and missed where they went."""
    import shutil

    from mmreason.types import ConfigError

    rows = pair_rows(text_pairs(8))
    trained(tmp_path / "two", decoder(), rows, max_steps=3, reference=decoder())
    args = options(tmp_path / "one", precompute_ref_log_probs=True, precompute_ref_batch_size=3)
    store = ReferenceStore(args.output_dir, ModelArguments(model_name_or_path="tiny"), args, rows, "training")
    settings = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 3, "max_steps": 3}
    trainer = trained(tmp_path / "one", decoder(), rows, stores=[store], **settings)
    assert trainer.reference is None and store.is_complete(is_main=True)
    for line, want in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert line["loss"] == pytest.approx(want["loss"], abs=1e-5)
        assert line["rewards/chosen"] == pytest.approx(want["rewards/chosen"], abs=1e-4)
    held = rows.reference
    store.fill(lambda part: pytest.fail("computed again"), is_main=True, may_compute=False)
    assert held is not None and rows.reference is not None and (held == rows.reference).all()
    shutil.rmtree(store.folder)
    with pytest.raises(ConfigError, match="no longer what it was"):
        store.fill(lambda part: pytest.fail("computed again"), is_main=True, may_compute=False)


def test_the_files_belong_to_rows_model_and_adapter(tmp_path: Path) -> None:
    args, model = options(tmp_path), ModelArguments(model_name_or_path="tiny")
    rows = pair_rows(text_pairs(3))
    same = ReferenceStore(tmp_path, model, args, pair_rows(text_pairs(3)), "training").folder
    assert ReferenceStore(tmp_path, model, args, rows, "training").folder == same
    half = ModelArguments(model_name_or_path="tiny", dtype="bfloat16")
    others = [
        ReferenceStore(tmp_path, model, args, pair_rows(text_pairs(4)), "training").folder,
        ReferenceStore(tmp_path, ModelArguments(model_name_or_path="other"), args, rows, "training").folder,
        ReferenceStore(tmp_path, model, options(tmp_path, ref_model_name_or_path="r"), rows, "training").folder,
        ReferenceStore(tmp_path, half, args, rows, "training").folder,
    ]
    assert len({same, *others}) == 5


# ---- measurements


def test_held_out_pairs(tmp_path: Path) -> None:
    """Accuracy, margins and losses against the literal ones; batches of 3 leave a last one of 2."""
    trainer = untrained(tmp_path, decoder(), ROWS, reference=decoder(9), per_device_train_batch_size=3)
    found = trainer.held_out({"test": ROWS})
    gains = []
    for i in range(len(ROWS)):
        with torch.no_grad():
            mine, other = literal_logps(decoder(), ROWS[i]), literal_logps(decoder(9), ROWS[i])
        gains.append([0.1 * (a.sum() - b.sum()).item() for a, b in zip(mine, other, strict=True)])
    right = sum(chosen > rejected for chosen, rejected in gains)
    assert found["eval/test/rewards/accuracies"] == pytest.approx(right / len(ROWS))
    margins = [chosen - rejected for chosen, rejected in gains]
    assert found["eval/test/rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    loss = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    assert found["eval/test/loss/dpo"] == pytest.approx(loss, abs=1e-5)


# ---- pictures


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "mmreason"])
def test_pictures_reach_the_loss(kind: str, tmp_path: Path) -> None:
    """Other pictures give another loss, projector and tower get a gradient, and text rows stay what they are."""
    from mmreason.models.loading import load_policy_model, load_processor
    from tests.pictures import cell, save_seeing

    given = ModelArguments(model_name_or_path=save_seeing(kind, tmp_path / "model"))
    processor, model, reference = load_processor(given), load_policy_model(given), load_policy_model(given)
    examples = picture_pairs(4)
    rows = pair_rows(examples, processor)
    assert rows.image_counts == [1, 2, 0, 1]
    trainer = untrained(tmp_path / "run", model, rows, processor, reference=reference, loss="simpo")
    scores = trainer.score(model, trainer._prepare_inputs(trainer.collate([rows[i] for i in range(4)])))
    scores.logps.sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any("visual" in name or "vision" in name for name in reached)
    assert any("merger" in name or "projector" in name for name in reached)
    for example in examples:
        example["images"] = [cell(blank(one)) for one in example.get("images") or ()]
    other = pair_rows(examples, processor)
    dark = trainer.score(model, trainer._prepare_inputs(trainer.collate([other[i] for i in range(4)])))
    moved = (scores.logps - dark.logps).abs().detach()
    assert (moved[:, [0, 1, 3]] > 1e-4).all() and moved[:, 2].max() < 1e-5


def blank(stored: dict[str, Any]) -> Any:
    """A grey picture of the same size."""
    import io

    from PIL import Image

    return Image.new("RGB", Image.open(io.BytesIO(stored["bytes"])).size, (127, 127, 127))


def test_a_pair_with_a_picture_scores_as_its_two_sides_alone(tmp_path: Path) -> None:
    """The rejected side's picture comes from the chosen side's: both are what rendering them alone gives."""
    from mmreason.data.supervised import render_supervised
    from mmreason.models.loading import load_policy_model, load_processor
    from tests.pictures import save_seeing

    given = ModelArguments(model_name_or_path=save_seeing("qwen2_5_vl", tmp_path / "model"))
    processor, model = load_processor(given), load_policy_model(given).eval()
    examples = picture_pairs(3)
    rows = pair_rows(examples, processor)
    trainer = untrained(tmp_path / "run", model, rows, processor, loss="simpo")
    found = trainer.score(model, trainer._prepare_inputs(trainer.collate([rows[i] for i in range(3)]))).logps
    for i, example in enumerate(examples):
        for side, name in enumerate(("chosen", "rejected")):
            (row,) = render_supervised({**example, "completion": example[name]}, processor)
            visual = {} if row.visual is None else row.visual.inputs
            logits = model(input_ids=torch.tensor([row.ids]), **visual).logits[0].detach()
            log_probs = torch.log_softmax(logits, dim=-1)
            want = sum(log_probs[k - 1, row.ids[k]].item() for k in range(1, len(row.ids)) if row.weights[k])
            assert found[side, i].item() == pytest.approx(want, abs=2e-4)
