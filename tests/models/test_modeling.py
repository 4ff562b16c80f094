"""The composed model as transformers, PEFT and TRL use it: files, generation, attention, checkpointing, training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from mmreason.models.loading import load_checked
from mmreason.models.modeling import MMReasonForConditionalGeneration
from mmreason.models.peft import add_adapter
from mmreason.trainers.arguments import ModelArguments
from mmreason.types import ConfigError
from tests.models.parts import HF_CLIP, HF_SIGLIP, OPEN_CLIP_VIT, TIMM_VIT, compose, save_decoder
from tests.pictures import ask, cell, picture

KINDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "timm": (TIMM_VIT, {"kind": "mlp"}, "qwen2"),
    "open_clip": (OPEN_CLIP_VIT, {"kind": "pixel_shuffle"}, "llama-tied"),
    "hf, queries": (HF_SIGLIP, {"kind": "perceiver", "queries": 5, "heads": 2}, "gpt_neox"),
    "two fused, tiled": (
        {"towers": [TIMM_VIT, HF_CLIP | {"feature_layer": -2}], "max_tiles": 4, "resize": "pad"},
        {"kind": "avg_pool"},
        "qwen2-tied",
    ),
    "class token, tiled": (
        OPEN_CLIP_VIT | {"select": "all", "max_tiles": 3},
        {"kind": "qformer", "queries": 3, "heads": 2},
        "gemma",
    ),
}
"""Name → (vision, projector, decoder)."""
QUESTIONS = [("How many?", [(60, 60)]), ("Text alone, somewhat longer", []), ("Which?", [(30, 90), (90, 30), (20, 20)])]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """(model, processor) of a key of KINDS, made once; the model is a copy that a test may change."""
    kept: dict[str, tuple[Any, Any]] = {}

    def make(name: str) -> tuple[Any, Any]:
        if name not in kept:
            vision, projector, decoder = KINDS[name]
            folder = save_decoder(tmp_path_factory.mktemp("decoder"), decoder)
            kept[name] = compose(vision, projector, folder)
        model, processor = kept[name]
        return copy.deepcopy(model), processor

    return make


def inputs_of(processor: Any, questions: Any = QUESTIONS, **options: Any) -> dict[str, Any]:
    texts = [
        processor.apply_chat_template(ask(text, len(sizes)), add_generation_prompt=True, tokenize=False)
        for text, sizes in questions
    ]
    images = [[picture(*size, seed=sum(size)) for size in sizes] for _, sizes in questions]
    given = {"images": images} if any(images) else {}
    return dict(processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **given, **options))


def loss_of(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    return model(**inputs, labels=labels).loss


def gradients_of(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss_of(model, inputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def same_files(first: Path, second: Path) -> None:
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


# ---- files


@pytest.mark.parametrize("shards", ["1GB", "100KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_save_load_save(made: Any, kind: str, shards: str, tmp_path: Path) -> None:
    """Byte for byte, whole and in shards; what comes back computes the same."""
    model, processor = made(kind)
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder, max_shard_size=shards)
        processor.save_pretrained(tmp_path / folder)
        before = model
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / folder)
        processor = AutoProcessor.from_pretrained(tmp_path / folder)
        assert type(model) is MMReasonForConditionalGeneration and not model.training
    same_files(tmp_path / "first", tmp_path / "second")
    assert (len(list((tmp_path / "first").glob("*.safetensors"))) > 2) == (shards == "100KB")
    inputs = inputs_of(processor)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before(**inputs).logits)


def test_bfloat16(made: Any, tmp_path: Path) -> None:
    model, processor = made("two fused, tiled")
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    inputs = inputs_of(processor)
    with torch.no_grad():
        real = inputs["attention_mask"].bool()
        logits, wanted = half(**inputs).logits[real].float(), model(**inputs).logits[real]
    assert (logits - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.bfloat16 and torch.equal(again(**inputs).logits, half(**inputs).logits)


def test_damaged_files_are_refused(made: Any, tmp_path: Path) -> None:
    model, _ = made("timm")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    missing = {key: value for key, value in state.items() if not key.startswith("projector.layers.0")}
    for tensors, told in (
        (missing, r"lacks weights: projector.layers.0.bias, projector.layers.0.weight. Is it another"),
        (state | {"odd": torch.zeros(1)}, "has weights that belong to nothing: odd"),
        (state | {"projector.layers.0.bias": torch.zeros(3)}, "can't be loaded"),
    ):
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ConfigError, match=f"model=.*{told}"):
            load_checked(str(tmp_path), "model")
    file.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="can't be loaded"):
        load_checked(str(tmp_path), "model")


# ---- forward


def test_pictures_take_the_places_of_their_tokens(made: Any) -> None:
    """The decoder alone, given embeddings that are put together by a loop."""
    model, processor = made("two fused, tiled")
    inputs = inputs_of(processor)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        tokens = iter(model.get_image_features(inputs["pixel_values"]).flatten(0, 1))
        for row, ids in enumerate(inputs["input_ids"].tolist()):
            for position, token in enumerate(ids):
                if token == processor.image_token_id:
                    embeds[row, position] = next(tokens)
        assert next(tokens, None) is None
        wanted = model.language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
        assert torch.equal(model(**inputs).logits, wanted)
        text_mask = {"attention_mask": inputs["attention_mask"]}
        assert torch.equal(model(inputs_embeds=embeds, **text_mask).logits, wanted)
        features = {"image_features": model.encode(inputs["pixel_values"])}
        assert torch.equal(model(input_ids=inputs["input_ids"], **features, **text_mask).logits, wanted)
        assert torch.equal(model(**inputs, logits_to_keep=2).logits, wanted[:, -2:])


def test_a_row_is_the_same_alone_and_among_others(made: Any) -> None:
    model, processor = made("two fused, tiled")
    with torch.no_grad():
        together = model(**inputs_of(processor)).logits
        for row, question in enumerate(QUESTIONS):
            alone = model(**inputs_of(processor, [question])).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=0, atol=2e-5)


def test_wrong_inputs_are_told(made: Any) -> None:
    model, processor = made("timm")
    inputs = inputs_of(processor)
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    with pytest.raises(ValueError, match="64 image tokens in the text, but no pictures were given"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="64 image tokens in the text, 3 views of 16 tokens"):
        model(input_ids=ids, pixel_values=pixels[1:])
    with pytest.raises(ValueError, match="0 image tokens in the text, 4 views"):
        model(input_ids=torch.ones_like(ids), pixel_values=pixels)
    for given in ({}, {"input_ids": ids, "inputs_embeds": torch.zeros(1, 2, 64)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**given)


@pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations_agree(made: Any, implementation: str, tmp_path: Path) -> None:
    model, processor = made("two fused, tiled")
    assert model.config._attn_implementation == "sdpa" == model.language_model.config._attn_implementation
    model.save_pretrained(tmp_path)
    other = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=implementation)
    assert other.language_model.config._attn_implementation == implementation
    assert other.vision_tower.towers[1].encoder.config._attn_implementation == implementation
    inputs = inputs_of(processor)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        logits, wanted = other(**inputs).logits[real], model(**inputs).logits[real]
    torch.testing.assert_close(logits, wanted, rtol=0, atol=5e-5)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[real], wanted, rtol=0, atol=5e-5)


def test_flash_attention_is_offered() -> None:
    assert MMReasonForConditionalGeneration._supports_flash_attn
    assert MMReasonForConditionalGeneration._supports_flex_attn


def test_base_model_is_all_but_the_head(made: Any) -> None:
    model, processor = made("two fused, tiled")
    inputs = inputs_of(processor)
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
        assert torch.equal(model.get_output_embeddings()(hidden), model(**inputs).logits)


# ---- generation


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_cache_without_and_by_hand(made: Any, kind: str) -> None:
    """Rows with none, one and three pictures, padded at the left: greedy text is each row's own."""
    model, processor = made(kind)
    inputs, settings = inputs_of(processor), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, use_cache=False), cached)
    length = inputs["input_ids"].shape[1]
    for row, question in enumerate(QUESTIONS):
        alone = inputs_of(processor, [question])
        visual = {name: alone[name] for name in ("pixel_values",) if name in alone}
        ids = alone["input_ids"]
        with torch.no_grad():
            for _ in range(6):
                ids = torch.cat([ids, model(input_ids=ids, **visual).logits[:, -1:].argmax(-1)], dim=1)
        assert ids[0, -6:].tolist() == cached[row, length:].tolist()


@pytest.mark.parametrize("kind", ["timm", "two fused, tiled"])
def test_several_sequences_and_beams(made: Any, kind: str) -> None:
    model, processor = made(kind)
    inputs, settings = inputs_of(processor), {"max_new_tokens": 5, "eos_token_id": None}
    greedy = model.generate(**inputs, **settings, do_sample=False)
    sampled = model.generate(**inputs, **settings, do_sample=True, top_k=1, num_return_sequences=3)
    assert torch.equal(sampled, greedy.repeat_interleave(3, dim=0))
    beams = model.generate(**inputs, **settings, do_sample=False, num_beams=3, num_return_sequences=2)
    length = inputs["input_ids"].shape[1]
    for row, question in enumerate(QUESTIONS):  # the rows' beams by themselves
        alone = inputs_of(processor, [question])
        found = model.generate(**alone, **settings, do_sample=False, num_beams=3, num_return_sequences=2)
        assert torch.equal(found[:, -5:], beams[2 * row : 2 * row + 2, length:])


def test_generation_from_features(made: Any) -> None:
    model, processor = made("two fused, tiled")
    inputs, settings = inputs_of(processor), {"max_new_tokens": 5, "do_sample": False}
    wanted = model.generate(**inputs, **settings, num_return_sequences=1)
    inputs["image_features"] = model.encode(inputs.pop("pixel_values")).detach()
    assert torch.equal(model.generate(**inputs, **settings), wanted)
    several = model.generate(**inputs, max_new_tokens=5, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(several[::2], wanted) and torch.equal(several[1::2], wanted)


# ---- training


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_and_checkpointing_changes_nothing(made: Any, kind: str) -> None:
    model, processor = made(kind)
    inputs = inputs_of(processor)
    model.train()
    wanted = gradients_of(model, inputs)
    assert not [name for name, gradient in wanted.items() if gradient is None]
    calls = {"tower": 0, "decoder": 0}
    watch(model.vision_tower.towers[0].encoder, calls, "tower")
    watch(model.get_decoder(), calls, "decoder")
    gradients_of(model, inputs)
    once = dict(calls)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients_of(model, inputs)
    for part in calls:  # each block ran a second time, for the backward pass
        assert calls[part] == 3 * once[part] > 0, part
    for name, gradient in wanted.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)
    model.gradient_checkpointing_disable()
    before = dict(calls)
    gradients_of(model, inputs)
    assert all(calls[part] - before[part] == once[part] for part in calls)


def watch(part: Any, calls: dict[str, int], name: str) -> None:
    """Count the runs of the first norm in the last of its blocks."""
    lists = [module for module in part.modules() if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential)]
    blocks = max(lists, key=lambda found: len(list(found.parameters())))
    norm = next(module for module in blocks[-1].modules() if "Norm" in type(module).__name__)

    def count(*_: Any) -> None:
        calls[name] += 1

    norm.register_forward_hook(count)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["all-linear"]])
def test_lora_saves_adapters_alone(made: Any, targets: list[str], tmp_path: Path) -> None:
    from peft import PeftModel

    model, processor = made("two fused, tiled")
    adapted = add_adapter(copy.deepcopy(model), ModelArguments(use_peft=True, lora_target_modules=targets))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert kept and all("lora_" in name for name in kept)
    assert not [path for path in tmp_path.glob("*.safetensors") if path.name != "adapter_model.safetensors"]
    reloaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    inputs = inputs_of(processor)
    with torch.no_grad():
        wanted = adapted.eval()(**inputs).logits
        assert torch.equal(reloaded.eval()(**inputs).logits, wanted)
        assert not torch.allclose(model(**inputs).logits, wanted)
        merged = reloaded.merge_and_unload()
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(merged(**inputs).logits[real], wanted[real], rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, merged(**inputs).logits)


def rows() -> list[dict[str, Any]]:
    """Conversations about one picture or two."""
    counts = [1, 2, 1]
    return [
        {
            "prompt": ask(f"What is it, {index}?", count),
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": "seven"}]}],
            "images": [cell(picture(40, 40 + index, index)) for _ in range(count)],
        }
        for index, count in enumerate(counts)
    ]


def test_trl_trains_it(made: Any, tmp_path: Path) -> None:
    """TRL's own SFTTrainer with its own collation of pictures; a saved checkpoint is one that loads."""
    from datasets import Dataset, Image, List
    from trl import SFTConfig, SFTTrainer

    model, processor = made("timm")
    data = Dataset.from_list(rows())
    data = data.cast_column("images", List(Image()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = SFTConfig(
        str(tmp_path), max_steps=8, learning_rate=3e-3, per_device_train_batch_size=3, use_cpu=True, bf16=False,
        report_to=[], logging_steps=1, save_strategy="no", max_length=None, gradient_checkpointing=True,
    )  # fmt: skip
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"vision_tower", "projector", "language_model"}
    trainer.save_model(str(tmp_path / "trained"))
    again = load_checked(str(tmp_path / "trained"), "model")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert type(AutoProcessor.from_pretrained(tmp_path / "trained")) is type(processor)


def test_transformers_trainer_trains_it(made: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, processor = made("two fused, tiled")

    def collate(indices: list[int]) -> dict[str, Any]:
        inputs = inputs_of(processor)
        return inputs | {"labels": inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)}

    args = TrainingArguments(
        str(tmp_path), max_steps=5, learning_rate=1e-3, per_device_train_batch_size=3, use_cpu=True, report_to=[],
        logging_steps=1, save_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=list(range(15)), data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_trl_grpo_trains_it(made: Any, tmp_path: Path) -> None:
    from datasets import Dataset, Image, List
    from trl import GRPOConfig, GRPOTrainer

    model, processor = made("timm")
    prompts = [{"prompt": ask("Say something.", 1), "images": [cell(picture(32, 32, seed))]} for seed in range(4)]
    data = Dataset.from_list(prompts)
    data = data.cast_column("images", List(Image()))
    args = GRPOConfig(
        str(tmp_path), max_steps=2, learning_rate=1e-3, per_device_train_batch_size=4, num_generations=4, use_cpu=True,
        bf16=False, report_to=[], max_completion_length=5, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    before = model.projector.layers[0].weight.detach().clone()

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(str(completion)) % 7) for completion in completions]

    GRPOTrainer(model, reward, args, train_dataset=data, processing_class=processor).train()
    assert not torch.equal(model.projector.layers[0].weight, before)


def test_a_text_only_model_is_unaffected(tmp_path: Path) -> None:
    """Registering the composed class leaves the Auto classes' others alone."""
    folder = save_decoder(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "Qwen2ForCausalLM"
