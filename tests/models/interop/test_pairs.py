"""A pair of texts is read as `transformers` reads it: one sequence, with its separators and its segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from luban.data.batch import to_batch
from luban.data.contracts import Spec
from luban.data.pipeline import Pipeline
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.models._language import Language, encoder_of
from luban.recipe import Data, Section

transformers = pytest.importorskip("transformers")

FIRST = ["a good tool", "yes", "measure twice and cut once", "the carpenter"]
SECOND = ["a bad tool is no tool", "no", "cut", "measured the wood twice before it was cut"]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}


def tokenizer_of(kind: str) -> Any:
    """A tokenizer of the kind's own class, of the words above."""
    import tokenizers

    words = sorted({word for text in FIRST + SECOND for word in text.split()})
    names = (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        if kind == "bert"
        else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    unk, cls, sep = ("[UNK]", "[CLS]", "[SEP]") if kind == "bert" else ("<unk>", "<s>", "</s>")
    numbers = {word: i for i, word in enumerate([*names, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token=unk))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(cls, numbers[cls]), (sep, numbers[sep])]
    tokenizer.post_processor = (
        tokenizers.processors.BertProcessing(special[1], special[0])
        if kind == "bert"
        else tokenizers.processors.RobertaProcessing(special[1], special[0], add_prefix_space=False)
    )
    roles = dict(
        zip(
            ("pad", "unk", "cls", "sep", "mask") if kind == "bert" else ("cls", "pad", "sep", "unk", "mask"),
            names,
            strict=True,
        )
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": name for role, name in roles.items()}
    )


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_pair_is_read_as_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tokenizer_of(kind)
    made = {"bert": "Bert", "roberta": "Roberta"}[kind]
    config = getattr(transformers, f"{made}Config")(
        **SMALL, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=40
    )
    theirs = getattr(transformers, f"{made}Model")(config, add_pooling_layer=kind == "bert").eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    model = Section("models").parse({"type": "bert", "from": str(tmp_path), "pool": "first"})
    assert isinstance(model, Language)
    data = Data.model_construct(
        inputs={name: Section("processors").parse("text") for name in ("premise", "hypothesis")},
        clean=[],
        targets={},
        groups=[],
        weight=None,
    )
    model.complete(data)
    pipeline = Pipeline.of(data)
    pipeline.finish()
    encoded, _ = pipeline.encode(pl.DataFrame({"premise": FIRST, "hypothesis": SECOND}), targets=False)
    module = model.build(Spec(pipeline.spec.fields))
    model.load_pretrained(module)
    encoder = encoder_of(module.eval())
    encoder.keep_states = True
    batch = to_batch(encoded, pipeline.spec)
    with torch.no_grad():
        states = module(batch)["premise.states"]
        for i, pair in enumerate(zip(FIRST, SECOND, strict=True)):
            inputs = tokenizer(*pair, return_tensors="pt", return_token_type_ids=kind == "bert")
            joint = encoder.joined(batch)[0]
            assert joint[i].tolist() == inputs["input_ids"][0].tolist()
            expected = theirs(**inputs).last_hidden_state[0]
            torch.testing.assert_close(states[i], expected, rtol=1e-5, atol=1e-5)


def test_a_causal_model_keeps_every_token_of_both_texts() -> None:
    from language_case import family
    from luban.data.contracts import Field

    fields = {f"{name}.ids": Field(name, "text", "input", "int64", None, size=30) for name in "ab"}
    encoder = encoder_of(family("gpt2").build(Spec(fields)))
    batch = {
        "a.ids": Ragged.from_rows([torch.tensor([5, 6]), torch.tensor([7])]),
        "b.ids": Ragged.from_rows([torch.tensor([8, 9]), torch.tensor([], dtype=torch.int64)]),
    }
    assert [row.tolist() for row in encoder.joined(batch)[0].unbind()] == [[5, 6, 8, 9], [7]]


def completed(model: str, **texts: dict[str, Any]) -> dict[str, Any]:
    family = Section("models").parse({"type": model, "size": "tiny"})
    assert isinstance(family, Language)
    data = Data.model_construct(
        inputs={n: Section("processors").parse({"type": "text", **o}) for n, o in texts.items()}
    )
    family.complete(data)
    return data.inputs


def test_a_pair_shares_the_first_texts_tokenizer() -> None:
    made = completed("bert", a={}, b={})
    assert (made["a"].like, made["b"].like) == (None, "a")
    assert made["a"].special
    made = completed("bert", a={"like": "b"}, b={})
    assert (made["a"].like, made["b"].like) == ("b", None)


def test_a_pair_that_nothing_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"reads a and b as one sequence.*data.inputs.a.special is false; remove the key"
    ):
        completed("bert", a={"special": False}, b={})
    plain = Section("processors").parse({"type": "text", "tokens": "char", "min_count": 1})
    plain.update(pl.Series(["abc"]))  # type: ignore[attr-defined]
    plain.finish()  # type: ignore[attr-defined]
    path = tmp_path / "tokenizer.json"
    path.write_text(plain.trained.to_str(), encoding="utf-8")  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"tokenizer.json' puts none around a text; take another tokenizer"):
        completed("bert", a={"tokenizer": str(path)}, b={"tokenizer": str(path)})
    completed("gpt2", a={"tokenizer": str(path)}, b={"tokenizer": str(path)})  # where both are kept whole
