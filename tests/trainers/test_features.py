"""The RL loop with and without stored features of a frozen tower: the same run, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmreason.trainers.arguments import DataArguments, PolicyConfig
from mmreason.trainers.distributed import build_accelerator
from mmreason.trainers.evaluation import Evaluations
from mmreason.trainers.policy import PolicyTrainer
from mmreason.trainers.problems import HeldOut, check_problems
from mmreason.types import ConfigError
from tests.pictures import save_seeing, varied_reward
from tests.trainers.test_policy_images import lines, problems


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_seeing("mmreason", tmp_path_factory.mktemp("seeing"))


def freeze_tower(model: Any) -> Any:
    model.vision_tower.requires_grad_(False)
    return model


def adapt_decoder(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(target_modules=r".*language_model.*(q|v)_proj"))


def make(
    path: str, out: Path, change: Callable[[Any], Any] = freeze_tower, text_every: int = 4, **options: Any
) -> tuple[Any, dict[str, HeldOut]]:
    """(trainer, held-out sets)"""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    settings: dict[str, Any] = {
        "num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6,
        "max_completion_length": 6, "use_cpu": True, "learning_rate": 1e-3, "bf16": False, "num_iterations": 2,
        "gradient_checkpointing": False, "beta": 0.01, "output_dir": str(out),
    }  # fmt: skip
    args = PolicyConfig(**(settings | options))
    processor = AutoProcessor.from_pretrained(path)
    train, prompt_ids, sets = check_problems(
        problems(6, text_every=text_every), {"seen": problems(4, 20)}, processor, DataArguments(), None, lambda _: None
    )
    trainer = PolicyTrainer(
        change(AutoModelForImageTextToText.from_pretrained(path)),
        args,
        reward_funcs=[varied_reward],
        train_dataset=train,
        prompt_ids=prompt_ids,
        tokenizer=processor,
        accelerator=build_accelerator(args),
        checkpoint=path,
        held_out=sets,
        ref_model=AutoModelForImageTextToText.from_pretrained(path) if change is freeze_tower else None,
    )
    return trainer, sets


def run(path: str, out: Path, **options: Any) -> dict[str, Any]:
    """A run with evaluations: what it computed, and how many views each way of using the tower encoded."""
    trainer, sets = make(path, out, **options)
    model = trainer.accelerator.unwrap_model(trainer.policy)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    views: list[int] = []
    model.vision_tower.register_forward_pre_hook(lambda _, args: views.append(len(args[0])))
    evaluations = Evaluations(trainer, sets, 0, str(out))
    evaluations.run("before")
    trainer.train()
    evaluations.run("after")
    trainer.close()
    weights = next((out / "checkpoint-6").glob("*model.safetensors"))
    return {
        "steps": [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines(out)],
        "evaluations": evaluations.done,
        "weights": load_file(weights),
        "views": sum(views),
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["steps"] == other["steps"] and one["evaluations"] == other["evaluations"]
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


@pytest.mark.parametrize(
    "options",
    [{}, {"change": adapt_decoder}, {"bf16": True}, {"gradient_checkpointing": True}],
    ids=["frozen", "lora", "bf16", "checkpointing"],
)
def test_store_on_and_off(options: dict[str, Any], checkpoint: str, tmp_path: Path) -> None:
    """Six steps and two evaluations, with KL to a reference: the tower sees each picture once, in a second run none."""
    off = run(checkpoint, tmp_path / "off", **options)
    store = str(tmp_path / "store")
    on = run(checkpoint, tmp_path / "on", feature_store=store, **options)
    again = run(checkpoint, tmp_path / "again", feature_store=store, **options)
    assert len(off["steps"]) == 6 and all(line["grad_norm"] > 0 for line in off["steps"])
    assert_same(on, off)
    assert_same(again, off)
    assert 0 < off["views"] < 40 and 0 < on["views"] < 40 and again["views"] == 0


def test_without_sharing_every_pass_encodes_every_picture_again(checkpoint: str, tmp_path: Path) -> None:
    """What features in memory save, though no store is named; the run is the same up to rounding."""
    once, again = (run(checkpoint, tmp_path / str(share), share_prompts=share) for share in (True, False))
    assert 0 < once["views"] < 40 and again["views"] > 100
    for left, right in zip(once["steps"], again["steps"], strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_what_cannot_be_is_refused_before_the_run(checkpoint: str, tmp_path: Path) -> None:
    store: dict[str, Any] = {"feature_store": str(tmp_path / "store")}
    with pytest.raises(ConfigError, match="vision tower that is trained"):
        make(checkpoint, tmp_path / "a", change=lambda model: model, beta=0.0, **store)
    with pytest.raises(ConfigError, match="feature_store_gib"):
        make(checkpoint, tmp_path / "b", feature_store_gib=-1.0, **store)
    trainer, _ = make(checkpoint, tmp_path / "c")
    with pytest.raises(ConfigError, match="no problem has an image"):
        PolicyTrainer(
            freeze_tower(trainer.accelerator.unwrap_model(trainer.policy)),
            PolicyConfig(**(vars(trainer.args) | {"beta": 0.0, "generation_batch_size": None} | store)),
            reward_funcs=[varied_reward],
            train_dataset=trainer.dataset.remove_columns("images"),
            prompt_ids=trainer.prompt_ids,
            tokenizer=trainer.processor,
            accelerator=trainer.accelerator,
        )


def test_other_vision_language_models_are_refused(tmp_path: Path) -> None:
    path = save_seeing("llava", tmp_path / "llava")
    with pytest.raises(ConfigError, match="needs a composed model .* LlavaForConditionalGeneration isn't"):
        make(path, tmp_path / "out", change=lambda model: model, beta=0.0, feature_store=str(tmp_path / "store"))
