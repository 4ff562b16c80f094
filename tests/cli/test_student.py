"""`mmreason student`: what it writes and says, and what it refuses before it reads a weight."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from mmreason.cli.main import main
from mmreason.cli.student import NOTE, parse_arguments
from mmreason.models.student import Kept, prune
from mmreason.types import ConfigError
from tests.models.parts import TIMM_VIT, compose, save_decoder
from tests.models.test_loading import edit_json
from tests.timing import allowed

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("llama", "mistral", "qwen2", "qwen2-tied", "qwen3-tied", "gemma")
TEXTS = ["12 + 34 = 46, and the rest is zero", "How many are there?", "é 漢字 🙂", "one, two, three, four"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return str(path)


def student(teacher: str, out: Path, *flags: str) -> int:
    return main(["student", "--from", teacher, "--out", str(out), "--use_cpu", *flags])


def note(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / NOTE).read_text(encoding="utf-8")))


def loss_of(folder: str | Path, texts: list[str]) -> float:
    """Nats a token, text by text through transformers' own loss."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_end_to_end(
    family: str, documents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that transformers loads without us, with tokenizer, template and settings; the numbers hold."""
    teacher, out = save_decoder(tmp_path / "teacher", family), tmp_path / "student"
    edit_json(Path(teacher) / "generation_config.json", temperature=0.3, do_sample=True)
    flags = ["--layers", "1", "--layer_selection", "importance", "--hidden_size", "48", "--intermediate_size", "64"]
    assert student(teacher, out, *flags, "--dataset", documents) == 0
    told = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]
    assert [path.name for path in out.iterdir() if path.suffix in (".bin", ".pt")] == []
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = loaded.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (1, 48, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 32)
    assert loaded.generation_config.temperature == 0.3
    old, new = AutoTokenizer.from_pretrained(teacher), AutoTokenizer.from_pretrained(out)
    assert all(old.encode(text) == new.encode(text) for text in TEXTS) and old.chat_template == new.chat_template
    ids = torch.tensor([new(TEXTS[0])["input_ids"]])
    assert loaded.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape[1] == ids.shape[1] + 3

    facts, before = note(out), AutoModelForCausalLM.from_pretrained(teacher)
    counts = [sum(p.numel() for p in model.parameters()) for model in (before, loaded)]
    assert facts["parameters"] == {"teacher": counts[0], "student": counts[1]} and f"{counts[1]:,}" in told
    for who, folder in (("teacher", teacher), ("student", out)):
        assert facts["loss"][who] == pytest.approx(loss_of(folder, TEXTS), rel=1e-4)
        assert facts["files"][who] == {"model.safetensors": (Path(folder) / "model.safetensors").stat().st_size}
    assert f"{facts['loss']['student']:.4f}" in told
    for name, digest in facts["teacher"]["sha256"].items():
        assert digest == hashlib.sha256((Path(teacher) / name).read_bytes()).hexdigest()
    assert set(facts["teacher"]["sha256"]) == {"config.json", "model.safetensors"}
    influence, (kept,) = facts["importance"]["layers"], facts["kept"]["layers"]
    assert influence[kept] == max(influence) and facts["settings"]["layer_selection"] == "importance"
    assert f"{kept:>5}  {influence[kept]:>9.4f}  kept" in told and "dropped" in told
    again = prune(
        before,
        Kept(
            layers=(kept,),
            channels=torch.tensor(facts["kept"]["channels"]),
            neurons=[torch.tensor(each) for each in facts["kept"]["neurons"]],
        ),
    ).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.state_dict().items())
    assert len(facts["importance"]["channels"]["norm"]) == 64 and len(facts["importance"]["neurons"][0]) == 96


def test_word_problems_and_heads(tmp_path: Path, tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a dataset: generated problems through the teacher's chat template, the answers predicted."""
    out = tmp_path / "student"
    assert student(tiny_checkpoint, out, "--heads=1", "--samples", "8", "--batch_size", "3") == 0
    told = capsys.readouterr()
    assert "using word problems" in told.err and "on 8 rows of word problems" in told.out
    facts = note(out)
    assert facts["calibration"]["rows"] == 8 and facts["calibration"]["tokens"] > 8 * 20
    assert facts["sizes"]["student"] == {
        "layers": 2, "hidden_size": 64, "intermediate_size": 128, "heads": 1, "kv_heads": 1, "head_dim": 32
    }  # fmt: skip
    assert facts["kept"]["kv_heads"] == [[0], [0]] and facts["kept"]["channels"] is None
    best = [row.index(max(row)) for row in facts["importance"]["heads"]]
    assert facts["kept"]["heads"] == [[place] for place in best]
    assert "vLLM's Qwen2 takes a head to be hidden_size / heads wide" in told.out


def test_the_same_again_and_overwrite(tmp_path: Path, documents: str, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, out = save_decoder(tmp_path / "teacher"), tmp_path / "student"
    flags = ("--layers", "0", "--dataset", documents)
    assert student(teacher, out, "--layers", "1", "--dataset", documents) == 0
    before = (out / "model.safetensors").read_bytes()
    assert student(teacher, out, *flags) == 2
    assert "holds a student already: name another folder, or set --overwrite" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    (out / "stale").write_text("x")
    assert student(teacher, out, "--layers", "[1]", "--dataset", documents, "--overwrite") == 0
    assert (out / "model.safetensors").read_bytes() != before and not (out / "stale").exists()
    assert note(out)["kept"]["layers"] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]
    (tmp_path / "else").mkdir()
    assert student(teacher, tmp_path / "else", *flags, "--overwrite") == 2
    assert "is there already, and holds no student" in capsys.readouterr().err


def test_low_rank_says_what_it_saves_and_what_not(
    tmp_path: Path, documents: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, out = save_decoder(tmp_path / "teacher"), tmp_path / "student"
    assert student(teacher, out, "--rank", "4", "--dataset", documents) == 0
    told, facts = capsys.readouterr().out, note(out)
    assert facts["parameters"]["teacher"] == facts["parameters"]["student"]
    assert facts["files"]["teacher"] == facts["files"]["student"]
    model = AutoModelForCausalLM.from_pretrained(out)
    energies = [each["energy"] for each in facts["truncated"].values()]
    assert len(energies) == 14 and min(energies) > 0 and max(energies) <= 1
    for name in facts["truncated"]:
        assert torch.linalg.matrix_rank(model.model.get_submodule(name).weight, rtol=1e-4) == 4
    whole = sum(each["whole"] for each in facts["truncated"].values())
    factored = sum(4 * sum(model.model.get_submodule(name).weight.shape) for name in facts["truncated"])
    assert f"as factors they would hold {factored:,} numbers; the file holds their products, {whole:,}" in told
    assert f"least in {min(facts['truncated'], key=lambda name: facts['truncated'][name]['energy'])}" in told
    assert student(teacher, tmp_path / "share", "--rank_share", "0.25", "--dataset", documents) == 0
    assert note(tmp_path / "share")["truncated"]["layers.0.self_attn.q_proj"]["rank"] == 16


def test_from_scratch_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, out = save_decoder(tmp_path / "teacher", "llama-tied"), tmp_path / "student"
    (Path(teacher) / "model.safetensors").unlink()
    flags = ["--from_scratch", "--layers", "1", "--hidden_size", "32", "--seed", "3"]
    assert student(teacher, out, *flags) == 0
    told, facts = capsys.readouterr().out, note(out)
    assert "influence" not in told and "loss" not in facts and facts["parameters"]["teacher"] > 2 * 64 * 96
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.hidden_size == 32 and model.config.num_hidden_layers == 1
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert student(teacher, tmp_path / "again", *flags) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_composed_model_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    model, processor = compose(TIMM_VIT, {"kind": "mlp"}, save_decoder(tmp_path / "decoder", "qwen2-tied"))
    teacher, out = tmp_path / "teacher", tmp_path / "student"
    model.save_pretrained(teacher)
    processor.save_pretrained(teacher)
    rows = []
    for i in range(3):
        Image.new("RGB", (30, 20), (80 * i, 20, 250)).save(tmp_path / f"{i}.png")
        parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        rows.append({"prompt": [{"role": "user", "content": parts}], "images": [f"{i}.png"],
                     "completion": [{"role": "assistant", "content": f"number {i}"}]})  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--dataset", str(tmp_path / "rows.jsonl"), "--hidden_size", "32", "--heads", "1", "--layers", "1"]
    assert student(str(teacher), out, *flags) == 0
    loaded, read = AutoModelForImageTextToText.from_pretrained(out).eval(), AutoProcessor.from_pretrained(out)
    text = loaded.config.text_config
    assert (text.hidden_size, text.num_attention_heads, text.num_hidden_layers) == (32, 1, 1)
    facts = note(out)
    assert facts["parameters"]["student"] == sum(p.numel() for p in loaded.parameters())
    assert facts["calibration"]["rows"] == 3 and facts["serving_note"] is None
    prompt = read.apply_chat_template(rows[0]["prompt"], tokenize=False, add_generation_prompt=True)  # type: ignore[arg-type]
    inputs = read(text=prompt, images=[Image.open(tmp_path / "0.png")], return_tensors="pt")
    new = loaded.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert new.shape[1] == inputs["input_ids"].shape[1] + 4
    assert student(str(teacher), tmp_path / "scratch", "--from_scratch", "--layers", "1") == 0
    scratch = AutoModelForImageTextToText.from_pretrained(tmp_path / "scratch")
    assert all(torch.equal(a, b) for a, b in zip(scratch.vision_tower.parameters(), model.vision_tower.parameters(),
                                                 strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--layers", "3"], "layers=3 must be from 1 to the teacher's 2"),
        (["--layers", "0", "2"], "the teacher's layers are 0 to 1, there is no 2"),
        (["--hidden_size", "65"], "hidden_size=65 must be from 1 to the teacher's 64"),
        (["--heads", "2", "--kv_heads", "2"], "kv_heads=2 must be from 1 to the teacher's 1"),
        (["--hidden_size", "63"], "hidden_size=63 must be a multiple of heads=2 in a llama model"),
        (["--layers", "1", "--layer_selection", "importence"], "got 'importence' (did you mean importance?)"),
        (["--layer_selection", "last", "--heads", "1"], "layer_selection=last chooses so many layers: layers is not"),
        (["--layers", "0", "1", "--layer_selection", "last"], "layers says itself which ones"),
        (["--rank", "0"], "rank=0 must be at least 1"),
        (["--rank_share", "1"], "rank_share=1.0 must be above 0 and below 1"),
        (["--rank", "3", "--rank_share", "0.5"], "give one of them"),
        (["--seed", "3"], "the student would be its teacher: give --layers"),
        (["--from_scratch", "--rank", "3"], "leave out rank"),
        (["--from_scratch", "--dataset", "x", "--layers", "1"], "leave out dataset"),
        (["--from_scratch", "--layers", "0", "1"], "give the number of layers, 2"),
        (["--layers", "1", "--samples", "0"], "samples=0 must be at least 1"),
        (["--layers", "1", "--max_length", "1"], "max_length=1 must be at least 2"),
        (["--layers", "1", "--dataset", "EMPTY"], "EMPTY.jsonl"),
        (["--layers", "1", "--dataset", "BLANK"], "no text"),
        (["--layers", "1", "--dataset", "WHERE"], "WHERE"),
        (["--layers", "1", "--dataset", "QUESTIONS"], "completion"),
        (["--layers", "1", "--max_length", "5", "--samples", "2"], "all 2 rows are over max_length 5"),
        (["--hiden_size", "3"], "did you mean --hidden_size?"),
    ],
)
def test_what_is_refused_before_weights_are_read(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_decoder(tmp_path / "teacher", "llama")
    (Path(teacher) / "model.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "EMPTY.jsonl").write_text("")
    (tmp_path / "BLANK.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "QUESTIONS.jsonl").write_text('{"prompt": [{"role": "user", "content": "why?"}]}\n')
    flags = [str(tmp_path / f"{flag}.jsonl") if flag.isupper() else flag for flag in flags]
    assert student(teacher, tmp_path / "out", *flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_teachers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmreason.models.tiny import tiny_decoder, tiny_tokenizer

    other = save_decoder(tmp_path / "other", "gpt_neox")
    assert student(other, tmp_path / "out", "--layers", "1") == 2
    assert "a gpt_neox model; students are made of llama, mistral, qwen2, qwen3, gemma" in capsys.readouterr().err
    assert student(str(tmp_path / "othre"), tmp_path / "out", "--layers", "1") == 2
    assert f"Did you mean {tmp_path / 'other'}?" in capsys.readouterr().err
    assert main(["student", "--out", str(tmp_path / "out"), "--layers", "1"]) == 2
    assert "no teacher: give --from, a folder or hub id" in capsys.readouterr().err
    bare = tmp_path / "bare"
    tiny_decoder().save_pretrained(bare)
    assert student(str(bare), tmp_path / "out", "--layers", "1") == 2
    assert "comes without a tokenizer's vocabulary" in capsys.readouterr().err
    tiny_decoder(vocab_size=100).save_pretrained(bare)
    tiny_tokenizer().save_pretrained(bare)
    assert student(str(bare), tmp_path / "out", "--layers", "1") == 2
    assert "its tokenizer has 261 tokens, its embedding 100 rows: they don't belong together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_a_chat_template_gets_plain_text(tmp_path: Path) -> None:
    teacher = save_decoder(tmp_path / "teacher")
    (Path(teacher) / "chat_template.jinja").unlink()
    assert student(teacher, tmp_path / "out", "--layers", "1", "--samples", "4") == 0
    assert note(tmp_path / "out")["calibration"]["rows"] == 4


def test_a_template_that_knows_no_reasoning_gets_one_text(tmp_path: Path) -> None:
    teacher = save_decoder(tmp_path / "teacher")
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (Path(teacher) / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert student(teacher, tmp_path / "out", "--layers", "1", "--samples", "4") == 0
    assert note(tmp_path / "out")["calibration"]["rows"] == 4


def test_from_is_teacher() -> None:
    flags = ["--out", "o", "--layers", "2"]
    for words in (["--from", "t"], ["--from=t"], ["--teacher", "t"]):
        assert parse_arguments([*words, *flags]).teacher == "t"
    with pytest.raises(ConfigError, match="unknown option --form"):
        parse_arguments(["--form", "t", "--teacher", "t", *flags])


def test_help_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "mmreason.cli.main", "student", "--help"]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and "--from TEACHER" in done.stdout
    assert min(seconds) < allowed(0.5)
