"""GGUF files that the tests write themselves, byte by byte; the real one of SmolLM2 where data may be fetched."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from luban import datasets
from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import ArtefactError, LubanError, RecipeError
from luban.models._core import Rope, rotate
from luban.models._language import Language
from luban.models.interop import open_checkpoint, options_of
from luban.models.interop.gguf import open_gguf, tokenizer_of, unpermuted
from luban.recipe import Section
from luban.tensors import write_tensors

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
VOCABULARY, HIDDEN, HEADS, KV_HEADS, HEAD, INNER = 24, 32, 4, 2, 8, 64

# --- writing ----------------------------------------------------------------------------------------------


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        items, values = content
        return struct.pack("<IQ", items, len(values)) + b"".join(value(items, each) for each in values)
    return struct.pack(
        {U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q", 5: "<i", 0: "<B", 12: "<d"}[kind], content
    )


Pairs = dict[str, tuple[int, Any]]
Tensors = dict[str, tuple[int, tuple[int, ...], bytes]]  # type, shape with rows first, data


def gguf(pairs: Pairs, tensors: Tensors, *, version: int = 3, alignment: int = 32) -> bytes:
    """The bytes of a file, from the specification."""
    if alignment != 32:
        pairs = {**pairs, "general.alignment": (U32, alignment)}
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, (kind, content) in pairs.items():
        head += string(key) + struct.pack("<I", kind) + value(kind, content)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += raw + b"\0" * (-len(raw) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def floats(tensor: Tensor) -> tuple[int, tuple[int, ...], bytes]:
    return 0, tuple(tensor.shape), tensor.float().numpy().tobytes()


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows in the order of halves → in that of neighbours, one by one: value i and value i + d/2 become 2i and 2i + 1."""
    width = len(rows) // heads
    result = torch.empty_like(rows)
    for head in range(heads):
        for i in range(width // 2):
            result[head * width + 2 * i] = rows[head * width + i]
            result[head * width + 2 * i + 1] = rows[head * width + i + width // 2]
    return result


THEIRS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def weights(kind: str, *, tied: bool = True) -> dict[str, Tensor]:
    """Random ones of two layers, under the names of Hugging Face."""
    generator = torch.Generator().manual_seed(0)
    kv = KV_HEADS * HEAD
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(2):
        part: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
            "self_attn.k_proj.weight": (kv, HIDDEN),
            "self_attn.v_proj.weight": (kv, HIDDEN),
            "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
            "mlp.gate_proj.weight": (INNER, HIDDEN),
            "mlp.up_proj.weight": (INNER, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, INNER),
        }
        if kind == "qwen2":
            part |= {f"self_attn.{x}_proj.bias": (n,) for x, n in (("q", HEADS * HEAD), ("k", kv), ("v", kv))}
        if kind == "qwen3":
            part |= {f"self_attn.{x}_norm.weight": (HEAD,) for x in "qk"}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in part.items()}
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def renamed(name: str) -> str:
    beside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, leaf = name.rpartition(".")
    if stem in beside:
        return f"{beside[stem]}.{leaf}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{THEIRS[part]}.{leaf}"


def tensors(kind: str, found: dict[str, Tensor]) -> Tensors:
    result = {}
    for name, tensor in found.items():
        if kind == "llama" and ".q_proj." in name:
            tensor = neighbours(tensor, HEADS)
        if kind == "llama" and ".k_proj." in name:
            tensor = neighbours(tensor, KV_HEADS)
        result[renamed(name)] = floats(tensor)
    return result


def shape_of(kind: str) -> Pairs:
    return {
        "general.architecture": (STRING, kind),
        f"{kind}.block_count": (U32, 2),
        f"{kind}.context_length": (U32, 64),
        f"{kind}.embedding_length": (U32, HIDDEN),
        f"{kind}.feed_forward_length": (U32, INNER),
        f"{kind}.attention.head_count": (U32, HEADS),
        f"{kind}.attention.head_count_kv": (U32, KV_HEADS),
        f"{kind}.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        f"{kind}.rope.dimension_count": (U32, HEAD),
        f"{kind}.rope.freq_base": (F32, 500.0),
    }


def config(kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "num_hidden_layers": 2,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "intermediate_size": INNER,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_theta": 500.0,
        **changes,
    }


BYTES = ["<|end|>", "<|start|>", "h", "i", "Ġ", "1", "2", "hi", "Ġhi", "12", "Ċ", "<tool>", "H"]
BYTE_LEVEL: Pairs = {
    "tokenizer.ggml.model": (STRING, "gpt2"),
    "tokenizer.ggml.pre": (STRING, "smollm"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, BYTES)),
    "tokenizer.ggml.token_type": (ARRAY, (5, [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 1])),
    "tokenizer.ggml.merges": (ARRAY, (STRING, ["h i", "Ġ hi", "1 2"])),
    "tokenizer.ggml.bos_token_id": (U32, 1),
    "tokenizer.ggml.eos_token_id": (U32, 0),
    "tokenizer.ggml.padding_token_id": (U32, 2**32 - 1),
    "tokenizer.chat_template": (STRING, "{{ messages }}"),
}
PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "▁", "a", "b", "▁a", "ab", "bab", "▁▁"]
SENTENCE_PIECE: Pairs = {
    "tokenizer.ggml.model": (STRING, "llama"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, PIECES)),
    "tokenizer.ggml.token_type": (ARRAY, (5, [2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1])),
    # 'ab' is better than '▁a', which stands before it.
    "tokenizer.ggml.scores": (ARRAY, (F32, [0, 0, 0, 0, 0, 0, -9, -8, -7, -4, -3, -2, -1])),
    "tokenizer.ggml.bos_token_id": (U32, 1),
    "tokenizer.ggml.eos_token_id": (U32, 2),
}


def build(family: str, path: Path) -> tuple[Language, torch.nn.Module, list[str]]:
    model = Section("models").parse({"type": family, "from": str(path)})
    assert isinstance(model, Language)
    size = open_checkpoint(path).config["vocab_size"]
    fields = {"text.ids": Field("text", "text", "input", "int64", None, size=size)}
    fields["text.labels"] = Field("text", "tokens", "target", "int64", None, size=size)
    module = model.build(Spec(fields))
    return model, module.eval(), model.load_pretrained(module)


def logits(module: torch.nn.Module, rows: list[list[int]]) -> Tensor:
    with torch.no_grad():
        result: Tensor = module({"text.ids": Ragged.from_rows([torch.tensor(row) for row in rows])})[
            "text.tokens"
        ].logits()
    return result


# --- weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind", "tied"),
    [
        ("llama", "llama", True),
        ("smollm", "llama", True),
        ("llama", "llama", False),
        ("qwen2", "qwen2", True),
        ("qwen3", "qwen3", False),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_the_same_logits_as_from_a_hugging_face_directory(
    family: str, kind: str, tied: bool, version: int, tmp_path: Path
) -> None:
    found = weights(kind, tied=tied)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config(kind, tie_word_embeddings=tied)))
    write_tensors(found, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "x.gguf").write_bytes(
        gguf(shape_of(kind), tensors(kind, found), version=version, alignment=64)
    )
    one, expected, _ = build(family, tmp_path / "hf")
    other, module, missing = build(family, tmp_path / "x.gguf")
    assert missing == []
    assert other.portable() == one.portable()
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [3, 5, 8]]
    assert torch.equal(logits(module, rows), logits(expected, rows))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_rows_go_from_neighbours_to_halves_and_back(heads: int) -> None:
    for rows in (torch.randn(heads * 8, 5), torch.randn(heads * 8)):
        assert torch.equal(unpermuted(neighbours(rows, heads), heads), rows)
        assert torch.equal(neighbours(unpermuted(rows, heads), heads), rows)


def test_halves_turn_as_neighbours_did() -> None:
    """The attention of Meta's layout, computed as Meta does, with complex numbers (Su et al., 2021)."""
    torch.manual_seed(0)
    heads, width, length = 2, 8, 6
    q, k, x = torch.randn(heads * width, 5), torch.randn(heads * width, 5), torch.randn(length, 5)
    angles = torch.arange(length)[:, None] * Rope(100.0).frequencies(width, "cpu")

    def by_neighbours(rows: Tensor) -> Tensor:
        pairs = torch.view_as_complex((x @ rows.T).view(length, heads, width // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)

    def by_halves(rows: Tensor) -> Tensor:
        return rotate((x @ rows.T).view(length, heads, width), angles.cos()[:, None], angles.sin()[:, None])

    expected = torch.einsum("ihd,jhd->hij", by_neighbours(q), by_neighbours(k))
    ours = torch.einsum("ihd,jhd->hij", by_halves(unpermuted(q, heads)), by_halves(unpermuted(k, heads)))
    torch.testing.assert_close(ours, expected)


HALF = struct.pack("<e", 0.5)
NIBBLES = bytes(low | high << 4 for low, high in zip(range(16), reversed(range(16)), strict=True))
STORED: dict[str, tuple[int, int, bytes, list[float]]] = {
    # type, values, bytes, what they are
    "F32": (
        0,
        3,
        struct.pack("<3f", 1.5, -0.1, 3e38),
        [1.5, float(np.float32(-0.1)), float(np.float32(3e38))],
    ),
    "F16": (1, 3, struct.pack("<3e", 1.5, -0.25, 65504), [1.5, -0.25, 65504.0]),
    "BF16": (30, 3, bytes.fromhex("c03f 80be 8047".replace(" ", "")), [1.5, -0.25, 65536.0]),
    "Q8_0": (8, 32, HALF + struct.pack("<32b", *range(-128, 128, 8)), [0.5 * q for q in range(-128, 128, 8)]),
    "Q4_0": (2, 32, HALF + NIBBLES, [0.5 * (q - 8) for q in [*range(16), *reversed(range(16))]]),
    "Q4_1": (
        3,
        32,
        HALF + struct.pack("<e", -3.0) + NIBBLES,
        [0.5 * q - 3 for q in [*range(16), *reversed(range(16))]],
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_values_are_those_of_the_specification(name: str, tmp_path: Path) -> None:
    kind, values, raw, expected = STORED[name]
    found = tensors("llama", weights("llama"))
    found["output.weight"] = (kind, (2, values), raw * 2)
    (tmp_path / "x.gguf").write_bytes(gguf(shape_of("llama"), found))
    tensor = open_gguf(tmp_path / "x.gguf")["lm_head.weight"]
    assert tensor.shape == (2, values)
    assert tensor[0].tolist() == tensor[1].tolist() == expected
    assert tensor.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(name, torch.float32)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    found = tensors("llama", weights("llama"))
    found["blk.1.attn_q.weight"] = (12, (32, 256), b"\0" * 32 * 144)
    (tmp_path / "x.gguf").write_bytes(gguf(shape_of("llama"), found))
    with pytest.raises(
        RecipeError,
        match=r"tensor 'blk.1.attn_q.weight' is of type Q4_K; those read are F32, F16, BF16, Q8_0, Q4_0, Q4_1",
    ):
        open_gguf(tmp_path / "x.gguf")


# --- config -----------------------------------------------------------------------------------------------


def opened(tmp_path: Path, changes: Pairs, without: str = "", extra: Tensors | None = None) -> dict[str, Any]:
    pairs = {key: pair for key, pair in {**shape_of("llama"), **changes}.items() if key != without}
    (tmp_path / "x.gguf").write_bytes(gguf(pairs, {**tensors("llama", weights("llama")), **(extra or {})}))
    return open_gguf(tmp_path / "x.gguf").config


def test_what_a_file_leaves_out_is_what_llama_cpp_takes(tmp_path: Path) -> None:
    assert opened(tmp_path, {}, without="llama.attention.head_count_kv")["num_key_value_heads"] == HEADS
    assert opened(tmp_path, {}, without="llama.rope.dimension_count")["head_dim"] == HIDDEN // HEADS
    opened(tmp_path, {}, without="llama.rope.freq_base")
    assert options_of("llama", tmp_path / "x.gguf")["rope_theta"] == 10_000.0
    assert (
        opened(tmp_path, {"llama.attention.head_count": (ARRAY, (U32, [HEADS, HEADS]))})[
            "num_attention_heads"
        ]
        == HEADS
    )
    assert opened(tmp_path, {})["rms_norm_eps"] == 1e-5  # not the 32-bit number next to it


def test_stretched_positions(tmp_path: Path) -> None:
    linear: Pairs = {"llama.rope.scaling.type": (STRING, "linear"), "llama.rope.scaling.factor": (F32, 4.0)}
    for changes in (linear, {"llama.rope.scale_linear": (F32, 4.0)}):
        opened(tmp_path, changes)
        assert options_of("llama", tmp_path / "x.gguf")["rope_scaling"] == {"type": "linear", "factor": 4.0}
    opened(tmp_path, {"llama.rope.scaling.type": (STRING, "yarn"), "llama.rope.scaling.factor": (F32, 4.0)})
    with pytest.raises(RecipeError, match="stretches its positions by 'yarn'"):
        options_of("llama", tmp_path / "x.gguf")


def test_the_rule_of_llama_3_is_found_in_its_result(tmp_path: Path) -> None:
    base: Pairs = {"llama.rope.freq_base": (F32, 500_000.0)}
    rule = Rope(500_000.0, "llama3", 32.0, 1.0, 4.0, 8192)
    slower = Rope(500_000.0).frequencies(HEAD, "cpu") / rule.frequencies(HEAD, "cpu")
    opened(tmp_path, base, extra={"rope_freqs.weight": floats(slower)})
    expected = {"type": "llama3", "factor": 32.0, "low": 1.0, "high": 4.0, "trained": 8192}
    assert options_of("llama", tmp_path / "x.gguf")["rope_scaling"] == expected
    assert (
        opened(tmp_path, base, extra={"rope_freqs.weight": floats(torch.ones(HEAD // 2))})["rope_scaling"]
        is None
    )
    with pytest.raises(RecipeError, match="not that of Llama 3"):
        opened(tmp_path, base, extra={"rope_freqs.weight": floats(torch.tensor([1.0, 2.0, 3.0, 4.0]))})


@pytest.mark.parametrize(
    ("key", "pair", "message"),
    [
        (
            "general.architecture",
            (STRING, "gemma"),
            "holds a model of type 'gemma'; those read from GGUF files are llama, qwen2, qwen3",
        ),
        ("llama.expert_count", (U32, 8), "expert_count 8"),
        ("llama.attention.causal", (BOOL, False), "attention.causal False"),
        (
            "llama.rope.dimension_count",
            (U32, 4),
            "rope.dimension_count 4 where heads are 8 wide",
        ),
        ("llama.attention.value_length", (U32, 16), "attention.value_length 16 where heads are 8 wide"),
        ("llama.feed_forward_length", (ARRAY, (U32, [64, 32])), "layers of different feed_forward_length"),
        ("split.count", (U32, 3), "one of 3 parts"),
    ],
)
def test_what_no_family_does_is_refused(
    key: str, pair: tuple[int, Any], message: str, tmp_path: Path
) -> None:
    changes: Pairs = {key: pair}
    if key == "llama.rope.dimension_count":
        changes["llama.attention.key_length"] = (U32, HEAD)
    with pytest.raises(RecipeError, match=message):
        opened(tmp_path, changes)


def test_a_tensor_that_no_family_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has a tensor 'blk.0.attn_output.bias'"):
        opened(tmp_path, {}, extra={"blk.0.attn_output.bias": floats(torch.zeros(HIDDEN))})


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", RecipeError, "does not begin with 'GGUF'"),
        (b"GGU", RecipeError, "does not begin with 'GGUF'"),
        (b"GGUF", ArtefactError, "in the midst of its metadata"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), RecipeError, "GGUF of version 1; those read are 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), RecipeError, "big-endian"),
        (gguf({}, {}), ArtefactError, "lack general.architecture"),
        (gguf({"k": (ARRAY, (U64, []))}, {}), ArtefactError, "lack general.architecture"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), ArtefactError, "in the midst"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<I", 99), ArtefactError, "k is of type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", ARRAY, U64, 2**62), ArtefactError, "in the midst"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 5000, ArtefactError, "too deep"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string(b"\xff") + b"\0" * 8, ArtefactError, "not UTF-8"),
        (gguf({}, {"t": (0, (2, 2), b"")}), ArtefactError, "tensor 't' lies beyond its end"),
        (gguf({}, {"t": (0, (0, 2), b"")}), ArtefactError, r"tensor 't' is \(0, 2\)"),
        (gguf({}, {"t": (8, (2, 33), b"\0" * 99)}), ArtefactError, r"tensor 't' is \(2, 33\)"),
        (gguf({}, {"t": (0, (1,) * 9, b"\0" * 4)}), ArtefactError, "9 dimensions"),
        (gguf({}, {}, alignment=12), ArtefactError, "general.alignment is 12"),
    ],
)  # fmt: skip
def test_a_damaged_file_says_so(
    content: bytes, error: type[LubanError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(error, match=message):
        open_gguf(tmp_path / "x.gguf")


def test_there_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "x.gguf"):
        with pytest.raises(RecipeError, match="cannot be read"):
            tokenizer_of(path)


def test_a_file_that_was_cut_after_it_was_opened(tmp_path: Path) -> None:
    opened(tmp_path, {})
    found = open_gguf(tmp_path / "x.gguf")
    content = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(content[:-4096])
    with pytest.raises(ArtefactError, match="has changed since it was opened"):
        found["model.layers.1.mlp.down_proj.weight"]


WHOLE = gguf(
    {**shape_of("llama"), **BYTE_LEVEL},
    {**tensors("llama", weights("llama")), "rope_freqs.weight": floats(torch.ones(HEAD // 2)), "output.weight": (3, (1, 32), STORED["Q4_1"][2])},
)  # fmt: skip
PIECEWISE = gguf(
    {**shape_of("llama"), **SENTENCE_PIECE}, {"token_embd.weight": (8, (1, 32), STORED["Q8_0"][2])}
)


def take_all(path: Path) -> None:
    """Read everything that a file has; what Luban raises is a sentence, and anything else fails the test."""

    def tensors_of() -> None:
        found = open_gguf(path)
        for name in found:
            found[name]

    for read in (
        tensors_of,
        lambda: options_of("llama", path),
        lambda: tokenizer_of(path)[0].encode("hi 12 ab\n"),
    ):
        with suppress(LubanError):
            read()


@given(
    st.sampled_from([WHOLE, PIECEWISE]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    st.floats(0, 1),
)
@example(WHOLE, [], 1.0)
@example(PIECEWISE, [], 1.0)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_ends_in_a_traceback(
    tmp_path: Path, whole: bytes, flips: list[tuple[float, int]], kept: float
) -> None:
    content = bytearray(whole)
    # Most of a file are weights, where damage cannot be seen: aim at what stands before them.
    head = whole.index(b"ffn_down") if b"ffn_down" in whole else len(whole) - 40
    for place, bits in flips:
        content[int(place * head)] ^= bits
    (tmp_path / "x.gguf").write_bytes(content[: int(kept * len(content))])
    take_all(tmp_path / "x.gguf")


# --- tokenizer --------------------------------------------------------------------------------------------


def tokenizer(tmp_path: Path, pairs: Pairs) -> Any:
    (tmp_path / "x.gguf").write_bytes(gguf(pairs, {}))
    return tokenizer_of(tmp_path / "x.gguf")


def test_bytes_are_joined_by_merges(tmp_path: Path) -> None:
    found, said = tokenizer(tmp_path, BYTE_LEVEL)
    # A digit is a token of its own, although there is a merge for two; what is no text is found before the text is cut.
    assert found.encode("hi hi12\n").tokens == ["hi", "Ġhi", "1", "2", "Ċ"]
    assert found.encode("Hi<|end|> hi<tool>").tokens == ["H", "i", "<|end|>", "Ġhi", "<tool>"]
    assert found.decode(found.encode("hi<|end|> hi<tool> 1").ids) == "hi hi<tool> 1"
    assert said == {"bos_token": "<|start|>", "eos_token": "<|end|>", "chat_template": "{{ messages }}"}
    assert found.get_vocab_size() == len(BYTES)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a  b 123'LL", ["a", "Ġ", "Ġb", "Ġ123", "'", "LL"]),
        ("smollm", "a  b 123'LL", ["a", "Ġ", "Ġb", "Ġ", "1", "2", "3", "'", "LL"]),
        ("llama-bpe", "a  b 1234'LL.\n", ["a", "Ġ", "Ġb", "Ġ", "123", "4", "'LL", ".Ċ"]),
        ("qwen2", "a  b 12'LL e\u0301", ["a", "Ġ", "Ġb", "Ġ", "1", "2", "'LL", "ĠÃ©"]),
        ("default", "a  b 12345 $x", ["a", "Ġ", "Ġb", "Ġ", "123", "45", "Ġ", "$", "x"]),
    ],
)
def test_a_text_is_cut_as_the_file_says(pre: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    found, _ = tokenizer(tmp_path, {**BYTE_LEVEL, "tokenizer.ggml.pre": (STRING, pre)})
    normal = found.normalizer.normalize_str(text) if found.normalizer else text
    assert [piece for piece, _ in found.pre_tokenizer.pre_tokenize_str(normal)] == pieces


def test_a_piece_that_is_a_token_is_taken_whole_by_llama_3(tmp_path: Path) -> None:
    tokens = ["h", "i", "!", "hi!", "hi"]
    pairs: Pairs = {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, [])),
    }
    for pre, expected in (("llama-bpe", ["hi"]), ("gpt-2", ["h", "i"])):
        found, _ = tokenizer(tmp_path, {**pairs, "tokenizer.ggml.pre": (STRING, pre)})
        assert found.encode("hi").tokens == expected


def test_pieces_are_joined_by_scores_and_bytes_stand_in(tmp_path: Path) -> None:
    found, said = tokenizer(tmp_path, SENTENCE_PIECE)
    assert found.encode("abab").tokens == ["<s>", "▁", "ab", "ab"]
    assert found.encode("bab").tokens == ["<s>", "▁", "bab"]
    assert found.encode(" ab", add_special_tokens=False).tokens == ["▁▁", "ab"]
    assert found.encode("é\n", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert found.encode("a</s>b", add_special_tokens=False).tokens == ["▁a", "</s>", "▁", "b"]
    assert found.decode(found.encode("ab é\n").ids) == "ab é\n"
    assert said == {"bos_token": "<s>", "eos_token": "</s>"}
    found, _ = tokenizer(tmp_path, {**SENTENCE_PIECE, "tokenizer.ggml.add_space_prefix": (BOOL, False)})
    assert found.encode("ab", add_special_tokens=False).tokens == ["ab"]
    assert found.decode(found.encode(" ab").ids) == " ab"


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (None, None, ["hi"]),
        (True, None, ["<|start|>", "hi"]),
        (True, True, ["<|start|>", "hi", "<|end|>"]),
        (False, True, ["hi", "<|end|>"]),
    ],
)
def test_a_text_begins_and_ends_as_the_file_says(
    begin: bool | None, end: bool | None, expected: list[str], tmp_path: Path
) -> None:
    given = {"add_bos_token": begin, "add_eos_token": end}
    pairs: Pairs = {
        f"tokenizer.ggml.{key}": (BOOL, value) for key, value in given.items() if value is not None
    }
    found, _ = tokenizer(tmp_path, {**BYTE_LEVEL, **pairs})
    assert found.encode("hi").tokens == expected
    assert found.encode("hi", "hi").tokens == expected * 2
    assert found.encode("hi", add_special_tokens=False).tokens == ["hi"]


@pytest.mark.parametrize(
    ("key", "pair", "error", "message"),
    [
        ("model", (STRING, "bert"), RecipeError, "a tokenizer of type 'bert'; those read are gpt2 and llama"),
        ("model", (U32, 1), ArtefactError, "tokenizer.ggml.model is of type int, not str"),
        ("pre", (STRING, "tekken"), RecipeError, "in the way 'tekken'; those known are default, gpt-2"),
        ("tokens", (ARRAY, (U32, [1])), ArtefactError, "tokens is no list of type str"),
        ("tokens", (ARRAY, (STRING, ["a", "a"])), ArtefactError, "a token is there twice"),
        ("token_type", (ARRAY, (5, [1])), ArtefactError, "1 types of 13 tokens"),
        ("merges", (ARRAY, (STRING, ["hi"])), ArtefactError, "'hi' is no merge of two tokens"),
        ("merges", (ARRAY, (STRING, ["h x"])), ArtefactError, "is damaged: .*x"),
    ],
)
def test_a_tokenizer_that_cannot_be_read(
    key: str, pair: tuple[int, Any], error: type[LubanError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        tokenizer(tmp_path, {**BYTE_LEVEL, f"tokenizer.ggml.{key}": pair})


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no tokenizer; those read are gpt2 and llama"):
        tokenizer(tmp_path, {})


# --- the real one -----------------------------------------------------------------------------------------


@pytest.mark.data
def test_smollm2_knows_the_capital_of_france() -> None:
    path = datasets.main_file("smollm2")
    found, said = tokenizer_of(path)
    assert said["eos_token"] == "<|im_end|>"
    ids = found.encode("The capital of France is").ids
    assert ids == [504, 3575, 282, 4649, 314]
    _, module, missing = build("smollm", path)
    assert missing == []
    assert found.decode([int(logits(module, [ids])[-1].argmax())]) == " Paris"
