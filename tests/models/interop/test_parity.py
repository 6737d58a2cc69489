"""Every family against `transformers`: the same logits from the same files, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._language import Language, encoder_of
from luban.models.interop import config_of, options_of, tensors_of
from luban.models.seq2seq import Seq2Seq
from luban.recipe import Section
from luban.tensors import write_tensors

transformers = pytest.importorskip("transformers")

VOCABULARY = 60
LENGTHS = (7, 1, 12, 5)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
LLAMA = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
THREE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


PAIR = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "init_std": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
}


def reference(kind: str, **changes: Any) -> Any:
    """A model of `transformers` with tiny random weights, and the type that reads it."""
    torch.manual_seed(0)
    made = {
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, **changes)),
        "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL, **changes)),
        "distilbert": lambda: transformers.DistilBertForMaskedLM(
            transformers.DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=48,
                max_position_embeddings=40,
                initializer_range=0.3,
            )
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_inner=48,
                n_positions=40,
                initializer_range=0.3,
            )
        ),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **changes)),
        "smollm": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
        ),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**{k: v for k, v in LLAMA.items() if k != "head_dim"})
        ),
        "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA)),
        "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**PAIR, **changes)),
        "mbart": lambda: transformers.MBartForConditionalGeneration(
            transformers.MBartConfig(**PAIR, **changes)
        ),
        "marian": lambda: transformers.MarianMTModel(transformers.MarianConfig(**PAIR, **changes)),
    }
    model = made[kind]()
    with torch.no_grad():  # norms and biases begin at one and zero, which would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        if kind in PAIRS:
            model.final_logits_bias.normal_()
    return model.eval()


PAIRS = ("bart", "mbart", "marian")
CASES = {
    "bert": ("bert", {}),
    "roberta": ("bert", {}),
    "distilbert": ("bert", {}),
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "llama, llama3 positions": ("llama", {"rope_parameters": THREE}),
    "smollm": ("smollm", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


def spec(tokens: bool = True) -> Spec:
    fields = {"text.ids": Field("text", "text", "input", "int64", None, size=VOCABULARY)}
    if tokens:
        fields["text.labels"] = Field("text", "tokens", "target", "int64", None, size=VOCABULARY)
    return Spec(fields)


def texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def build(family: str, path: Path | None, **options: Any) -> tuple[Language, torch.nn.Module]:
    model = Section("models").parse({"type": family, **({"from": str(path)} if path else {}), **options})
    assert isinstance(model, Language)
    module = model.build(spec())
    missing = model.load_pretrained(module)
    assert set(missing) <= {"pooler"}
    return model, module.eval()


def padded(rows: list[torch.Tensor], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, part], mask[i, part] = row, 1
    return ids, mask


def theirs(model: Any, rows: list[torch.Tensor], side: str) -> torch.Tensor:
    pad = model.config.pad_token_id or 0
    ids, mask = padded(rows, side, pad)
    with torch.no_grad():
        extra = {}
        if model.config.model_type not in ("bert", "roberta", "distilbert"):
            extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        logits = model(input_ids=ids, attention_mask=mask, **extra).logits
    return logits[mask.bool()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_the_same_logits_from_a_hugging_face_directory(case: str, side: str, tmp_path: Path) -> None:
    kind = case.split(",")[0]
    family, changes = CASES[case]
    model = reference(kind, **changes)
    model.save_pretrained(tmp_path)
    _, module = build(family, tmp_path)
    rows = texts()
    if side == "left" and kind in ("bert", "distilbert"):
        pytest.skip("counts positions from the left, padding included")
    with torch.no_grad():
        ours = module({"text.ids": Ragged.from_rows(rows)})["text.tokens"].logits()
    if side == "none":
        expected = torch.cat([theirs(model, [row], "right") for row in rows])
    else:
        expected = theirs(model, rows, side)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits_in_transformers_from_our_files(case: str, tmp_path: Path) -> None:
    kind = case.split(",")[0]
    family, changes = CASES[case]
    reference(kind, **changes).save_pretrained(tmp_path / "theirs")
    torch.manual_seed(3)
    own = {} if family != "bert" else {"layout": kind}
    model, module = build(family, tmp_path / "theirs", **own)
    encoder = encoder_of(module)
    with torch.no_grad():  # other weights than those that were read
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    written = tmp_path / "ours"
    written.mkdir()
    (written / "config.json").write_text(json.dumps(config_of(model, VOCABULARY)))
    write_tensors(tensors_of(model, encoder), written / "model.safetensors")
    again = type(reference(kind, **changes)).from_pretrained(written).eval()
    rows = texts()
    with torch.no_grad():
        ours = module({"text.ids": Ragged.from_rows(rows)})["text.tokens"].logits()
    torch.testing.assert_close(ours, theirs(again, rows, "right"), atol=1e-5, rtol=1e-5)


# --- an encoder and a decoder -----------------------------------------------------------------------------

START = {"decoder_start_token_id": 2}
PAIR_CASES: dict[str, dict[str, Any]] = {
    "bart": START,
    "bart, tables of their own": {**START, "scale_embedding": True, "tie_word_embeddings": False},
    "mbart": {"decoder_start_token_id": 7, "scale_embedding": True},
    "marian": {"decoder_start_token_id": 1, "scale_embedding": True, "activation_function": "swish"},
    "marian, tables of their own": {
        "decoder_start_token_id": 1,
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 50,
    },
}
TARGET_LENGTHS = (3, 6, 1, 9)


def build_pair(path: Path | None, changes: dict[str, Any], **options: Any) -> tuple[Seq2Seq, torch.nn.Module]:
    model = Section("models").parse(
        {"type": "seq2seq", **({"from": str(path)} if path else {}), "pool": "max", **options}
    )
    assert isinstance(model, Seq2Seq)
    size = changes.get("decoder_vocab_size", VOCABULARY)
    module = model.build(
        Spec(
            {
                "text.ids": Field("text", "text", "input", "int64", None, size=VOCABULARY),
                "other.ids": Field("other", "text", "target", "int64", None, size=size, pad=1),
            }
        )
    )
    assert model.load_pretrained(module) == []
    return model, module.eval()


def targets() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(5, 50, (length,), generator=generator) for length in TARGET_LENGTHS]


def of_pair(module: torch.nn.Module) -> torch.Tensor:
    batch = {"text.ids": Ragged.from_rows(texts()), "other.ids": Ragged.from_rows(targets())}
    with torch.no_grad():
        logits: torch.Tensor = module(batch)["other.tokens"].logits()
    return logits


def theirs_of_pair(
    model: Any, start: int, sources: list[torch.Tensor], rows: list[torch.Tensor], side: str = "right"
) -> torch.Tensor:
    ids, mask = padded(sources, side, 1)
    labels, places = padded(rows, "right", 1)
    read = torch.cat([torch.full((len(rows), 1), start), labels[:, :-1]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=read).logits
    return logits[places.bool()]


@pytest.mark.parametrize("case", PAIR_CASES)
@pytest.mark.parametrize("side", ["right", "none"])  # to the left, they count padding as positions
def test_an_encoder_and_a_decoder_from_a_hugging_face_directory(case: str, side: str, tmp_path: Path) -> None:
    reference_model = reference(case.split(",")[0], **PAIR_CASES[case])
    reference_model.save_pretrained(tmp_path)
    model, module = build_pair(tmp_path, PAIR_CASES[case])
    assert model.start == PAIR_CASES[case]["decoder_start_token_id"]
    assert (model.forced_first, model.forced_last) == (None, 2)
    if side == "none":
        expected = torch.cat(
            [
                theirs_of_pair(reference_model, model.start, [source], [target])
                for source, target in zip(texts(), targets(), strict=True)
            ]
        )
    else:
        expected = theirs_of_pair(reference_model, model.start, texts(), targets(), side)
    torch.testing.assert_close(of_pair(module), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", PAIR_CASES)
def test_an_encoder_and_a_decoder_in_transformers_from_our_files(case: str, tmp_path: Path) -> None:
    changes = PAIR_CASES[case]
    reference_model = reference(case.split(",")[0], **changes)
    reference_model.save_pretrained(tmp_path / "theirs")
    torch.manual_seed(3)
    model, module = build_pair(tmp_path / "theirs", changes)
    with torch.no_grad():  # other weights than those that were read
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    written = tmp_path / "ours"
    written.mkdir()
    config = {**config_of(model, VOCABULARY), "pad_token_id": 1}
    (written / "config.json").write_text(json.dumps(config))
    write_tensors(tensors_of(model, encoder_of(module)), written / "model.safetensors")
    again, said = type(reference_model).from_pretrained(written, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    assert model.start is not None
    expected = theirs_of_pair(again.eval(), model.start, texts(), targets())
    torch.testing.assert_close(of_pair(module), expected, atol=1e-5, rtol=1e-5)
    portable, ours_again = build_pair(written, changes)
    torch.testing.assert_close(of_pair(ours_again), of_pair(module), atol=1e-6, rtol=1e-6)
    assert portable.model_dump(exclude={"from_"}) == model.model_dump(exclude={"from_"})


def test_a_model_saved_without_its_way_to_the_vocabulary(tmp_path: Path) -> None:
    whole = reference("bart", **START)
    whole.model.save_pretrained(tmp_path / "bare")  # names have no prefix, and there is no bias
    whole.save_pretrained(tmp_path / "whole")
    _, bare = build_pair(tmp_path / "bare", START)
    _, module = build_pair(tmp_path / "whole", START)
    torch.testing.assert_close(of_pair(bare), of_pair(module) - whole.final_logits_bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_ffn_dim": 64}, "encoder_ffn_dim 48 and decoder_ffn_dim 64"),
        ({"decoder_attention_heads": 2}, "encoder_attention_heads 4 and decoder_attention_heads 2"),
        ({"activation_function": "selu"}, "has the activation 'selu'"),
        ({"normalize_before": True}, "has normalize_before True"),
        ({"model_type": "t5"}, "holds a model of type 't5'"),
    ],
)
def test_a_checkpoint_that_does_what_ours_does_not(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    reference("bart").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RecipeError, match=message):
        options_of("seq2seq", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "rotary"}, "transformers has no model with norm post, positions rotary"),
        ({"norm": "pre", "positions": "sinusoidal"}, "it has bart: norm post"),
        ({"eps": 1e-6}, "has eps 1e-05"),
        ({"tied": False, "shared": True}, "ties all its tables of tokens or none"),
        ({"activation": "mish", "shared": True}, None),
        ({"activation": "softplus", "shared": True}, "has no activation 'softplus'"),
    ],
)
def test_a_model_that_transformers_has_not(options: dict[str, Any], message: str | None) -> None:
    form = {"norm": "post", "positions": "learned", "embedding_norm": True}
    model = Section("models").parse({"type": "seq2seq", "size": "tiny", **form, **options})
    assert isinstance(model, Seq2Seq)
    if message is None:
        assert config_of(model, VOCABULARY)["activation_function"] == "mish"
        return
    with pytest.raises(RecipeError, match=message):
        config_of(model, VOCABULARY)
