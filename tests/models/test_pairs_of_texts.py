"""Two texts that are read as a pair are what transformers makes of them, whether its model is told of their segments or not."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from luban.data.contracts import Field, Spec
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.models._language import encoder_of
from luban.models._network import Network
from luban.recipe import Section

transformers = pytest.importorskip("transformers")
from published import TEXTS, publish  # noqa: E402


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_states_of_a_pair_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, _ = publish(tmp_path, kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if kind == "bert":  # whose own tokenizer tells of segments
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    text = Text(tokenizer=str(tmp_path), lowercase=False)
    text.finish()
    family = Section("models").parse({"type": "bert", "from": str(tmp_path)})
    fields = {f"{column}.ids": text.fields(column, "input")["ids"] for column in ("one", "other")}
    fields["label"] = Field("label", "category", "target", "int64", (), size=2, width=2, output="logits")
    network = family.build(Spec(fields))  # type: ignore[attr-defined]
    family.load_pretrained(network)  # type: ignore[attr-defined]
    assert isinstance(network, Network)
    encoder_of(network.eval()).keep_states = True
    both = [*pairwise(TEXTS)]
    batch = {
        f"{column}.ids": Ragged.from_rows(
            [torch.tensor(text.encode_texts([one])["ids"].values.tolist()) for one in column_of]  # type: ignore[union-attr]
        )
        for column, column_of in zip(("one", "other"), zip(*both, strict=True), strict=True)
    }
    with torch.no_grad():
        states = network(batch)["states"].unbind()
    for (one, other), found in zip(both, states, strict=True):
        inputs = tokenizer(one, other, return_tensors="pt")
        assert ("token_type_ids" in inputs) == (kind == "bert")
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
