"""Composing with every decoder: it computes what it did before; parts that can't be joined are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from mmreason.models.compose import compose_checkpoint, from_parts
from mmreason.models.modeling import MMReasonForConditionalGeneration
from mmreason.models.tiny import tiny_tokenizer
from mmreason.types import ConfigError
from tests.models.parts import DECODERS, HF_SIGLIP, TIMM_VIT, compose, save_decoder
from tests.models.test_loading import edit_json

TEXTS = ["How many?", "12 + 34 = 46, and the rest is zero", "é 漢字 🙂"]


@pytest.fixture
def decoder(tmp_path: Path) -> str:
    return save_decoder(tmp_path / "decoder", "qwen2-tied")


@pytest.mark.parametrize("kind", DECODERS)
def test_text_goes_through_as_before(kind: str, tmp_path: Path) -> None:
    """Logits of the old tokens bit for bit, no row moved or changed, one row more, in the model and after a reload."""
    folder = save_decoder(tmp_path / "decoder", kind)
    bare, old = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    made, made_processor = compose(TIMM_VIT, {"kind": "linear"}, folder)
    made.save_pretrained(tmp_path / "saved")
    made_processor.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    rows = len(old)
    batch = old(TEXTS, padding=True, padding_side="left", return_tensors="pt")
    for model, processor in ((made, made_processor), (loaded, AutoProcessor.from_pretrained(tmp_path / "saved"))):
        assert model.config.get_text_config().vocab_size == rows + 1 == len(processor.tokenizer)
        assert model.config.image_token_id == processor.image_token_id == rows
        ours = processor(text=TEXTS, padding=True, padding_side="left", return_tensors="pt")
        assert torch.equal(ours["input_ids"], batch["input_ids"]) and set(ours) == set(batch)
        with torch.no_grad():
            wanted = bare(**batch).logits
            assert torch.equal(model(**ours).logits[..., :rows], wanted) and wanted.std() > 0.3
        for mine, before in (
            (model.get_input_embeddings(), bare.get_input_embeddings()),
            (model.get_output_embeddings(), bare.get_output_embeddings()),
        ):
            assert torch.equal(mine.weight[:rows], before.weight)
            torch.testing.assert_close(mine.weight[rows], before.weight.mean(0))
        tied = bare.get_input_embeddings().weight is bare.get_output_embeddings().weight
        assert tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
        assert tied == model.config.tie_word_embeddings
        assert {name for name, _ in model.language_model.named_parameters()} == {n for n, _ in bare.named_parameters()}
        new = processor.tokenizer
        assert new.convert_ids_to_tokens(list(range(rows))) == old.convert_ids_to_tokens(list(range(rows)))
        for text in TEXTS:
            assert new.decode(new.encode(text)) == text == old.decode(old.encode(text))
        mine, own = model.generation_config.to_dict(), bare.generation_config.to_dict()
        assert mine.pop("suppress_tokens") == [model.config.image_token_id] and own.pop("suppress_tokens") is None
        assert mine == own


def test_spare_rows_are_used(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, "qwen2", spare_rows=10)
    model, processor = from_parts(TIMM_VIT, None, folder)
    bare = AutoModelForCausalLM.from_pretrained(folder)
    assert processor.image_token_id == len(tiny_tokenizer())
    assert model.config.text_config.vocab_size == bare.config.vocab_size
    assert all(torch.equal(a, b) for a, b in zip(model.language_model.parameters(), bare.parameters(), strict=True))


def test_an_image_token_that_is_there_already_is_used(tmp_path: Path) -> None:
    for token in ("<|image_pad|>", "<image>"):
        folder = save_decoder(tmp_path / token.strip("<|>"), spare_rows=1)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        tokenizer.save_pretrained(folder)
        model, processor = from_parts(TIMM_VIT, None, folder)
        assert processor.image_token == token and len(processor.tokenizer) == len(tokenizer)
        assert model.config.image_token_id == tokenizer.convert_tokens_to_ids(token)


def test_an_image_token_of_ones_own(decoder: str) -> None:
    _, processor = from_parts(TIMM_VIT, None, decoder, image_token="<picture>")
    assert processor.image_token == "<picture>"
    assert processor.tokenizer.encode("a<picture>b")[1] == processor.image_token_id
    assert "<picture>" in processor.tokenizer.all_special_tokens
    rendered = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    assert rendered.count("<picture>") == 1


def test_other_special_tokens_stay_special(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, spare_rows=4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>", "</tool>"]})
    tokenizer.save_pretrained(folder)
    _, processor = from_parts(TIMM_VIT, None, folder)
    assert {"<tool>", "</tool>", "<|image|>"} <= set(processor.tokenizer.all_special_tokens)


def test_decoder_and_tokenizer_that_disagree(decoder: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_tokens(["more", "than", "rows"])
    tokenizer.save_pretrained(decoder)
    with pytest.raises(ConfigError, match="tokenizer has 264 tokens, its embedding 261 rows: they don't"):
        from_parts(TIMM_VIT, None, decoder)


def test_decoder_without_a_tokenizer_or_without_weights(decoder: str, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(decoder, tmp_path / "bare"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(ConfigError, match="decoder=.*: it comes without a tokenizer's vocabulary"):
        from_parts(TIMM_VIT, None, str(bare))
    (Path(decoder) / "model.safetensors").unlink()
    torch.save({}, Path(decoder) / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="decoder=.* can't be loaded"):
        from_parts(TIMM_VIT, None, decoder)
    with pytest.raises(ConfigError, match="decoder='no-such/model' can't be loaded"):
        from_parts(TIMM_VIT, None, "no-such/model")


def test_a_decoder_that_sees_already(decoder: str, tmp_path: Path) -> None:
    model, processor = from_parts(TIMM_VIT, None, decoder)
    model.save_pretrained(tmp_path / "composed")
    processor.save_pretrained(tmp_path / "composed")
    with pytest.raises(ConfigError, match="is a vision-language model itself"):
        from_parts(TIMM_VIT, None, str(tmp_path / "composed"))


def test_code_that_comes_with_a_decoder_does_not_run(decoder: str, tmp_path: Path) -> None:
    folder = Path(decoder)
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    edit_json(folder / "config.json", model_type="evil")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="decoder="):
        from_parts(TIMM_VIT, None, decoder)
    assert not (tmp_path / "ran").exists()


def test_the_seed_decides_and_generators_stay(decoder: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    vision = [TIMM_VIT, HF_SIGLIP]
    first, again, other = (from_parts(vision, None, decoder, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projector.layers.0.weight"], other["projector.layers.0.weight"])
    assert not torch.equal(
        first["vision_tower.towers.0.encoder.pos_embed"], other["vision_tower.towers.0.encoder.pos_embed"]
    )


def test_a_projector_that_does_not_fit(decoder: str) -> None:
    with pytest.raises(ConfigError, match=r"projector.factor=3 can't tile the tower's grid of 4 x 4 patches"):
        from_parts(TIMM_VIT, {"kind": "pixel_shuffle", "factor": 3}, decoder)
    with pytest.raises(ConfigError, match="projector.heads=7 doesn't divide its width 64"):
        from_parts(TIMM_VIT, {"kind": "perceiver", "heads": 7}, decoder)
    with pytest.raises(ConfigError, match="set vision.select: patch"):
        from_parts(TIMM_VIT | {"select": "all"}, {"kind": "avg_pool"}, decoder)


def test_low_precision_and_attention_reach_every_part(decoder: str) -> None:
    model, _ = from_parts([TIMM_VIT, HF_SIGLIP], None, decoder, dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.text_config._attn_implementation == "eager"
    assert model.vision_tower.towers[1].encoder.config._attn_implementation == "eager"
    assert model(input_ids=torch.arange(4)[None]).logits.dtype == torch.bfloat16


def test_checkpoint_of_parts(decoder: str, tmp_path: Path) -> None:
    """Made once, kept when it is asked for again, refused where something else stands."""
    parts: dict[str, Any] = {"vision": TIMM_VIT, "projector": {"kind": "linear"}, "decoder": decoder}
    folder = tmp_path / "made"
    assert compose_checkpoint(folder, parts) == str(folder)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert compose_checkpoint(folder, parts) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="holds another model, or one of other parts"):
        compose_checkpoint(folder, parts | {"seed": 3})
    with pytest.raises(ConfigError, match="projector.kind"):
        compose_checkpoint(tmp_path / "never", parts | {"projector": {"kind": "mpl"}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder", "made"]


def test_plain_generate_writes_no_image_token(tmp_path: Path) -> None:
    """Also for those who use neither of our engines: the checkpoint's own generation settings say so."""
    model, processor = from_parts(TIMM_VIT, None, save_decoder(tmp_path / "decoder"))
    model.save_pretrained(tmp_path / "model")
    loaded = MMReasonForConditionalGeneration.from_pretrained(tmp_path / "model")
    token = processor.image_token_id
    head = loaded.get_output_embeddings()
    head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor([token]), 1e4))
    ids = torch.tensor([processor.tokenizer("what?")["input_ids"]])
    assert token not in loaded.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()


def test_another_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A template for texts, given when a model is composed or when it is loaded, is extended to place pictures."""
    from mmreason.cli.main import main
    from mmreason.models.loading import load_processor
    from mmreason.trainers.arguments import ModelArguments

    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}", encoding="utf-8")
    tower = "{source: timm, name: vit_tiny_patch16_224, weights: random, image_size: 32, config: {depth: 1}}"
    parts = ["--decoder", save_decoder(tmp_path / "decoder"), "--vision", tower]
    assert main(["compose", "--out", str(tmp_path / "a"), *parts, "--chat_template_path", str(template)]) == 0
    assert main(["compose", "--out", str(tmp_path / "b"), *parts]) == 0
    content = [{"type": "image"}, {"type": "text", "text": "what?"}]
    for name, path in (("a", None), ("b", str(template))):
        args = ModelArguments(model_name_or_path=str(tmp_path / name), chat_template_path=path)
        processor = load_processor(args)
        text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        assert text == f"[user]{processor.image_token}what?"
