"""Every sequence classifier that `transformers` has, made tiny: the same logits, whatever lies beside a text, or a sentence."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from generation_cases import END, VOCABULARY
from test_foreign import SLOW, assert_near, flat_of, tiny

from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import DataError, LubanError
from luban.models._foreign_classifier import ForeignClassifier
from luban.models._network import Network
from luban.models.huggingface import HuggingFace
from luban.recipe import Section

transformers = pytest.importorskip("transformers")

SPEC = Spec(
    {
        "text.ids": Field("text", "text", "input", "int64", None, size=VOCABULARY),
        "label.index": Field("label", "category", "target", "int64", size=3, output="logits", width=3),
    }
)
MORE: dict[str, dict[str, Any]] = {
    # What the common sizes leave too large, or make inconsistent.
    "funnel": {"model_type": "funnel", "vocab_size": VOCABULARY, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [2, 2, 2], "num_decoder_layers": 1},
    "gpt_neo": {"model_type": "gpt_neo", "vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 16, "pad_token_id": 0},
}  # fmt: skip
CHANGED: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "lilt": {"hidden_size": 24},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
}
RUN = {
    "albert", "bart", "bigbird_pegasus", "bloom", "convbert", "ctrl", "deberta", "deberta-v2", "electra", "falcon", "flaubert", "fnet", "funnel",
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "ibert", "jamba", "layoutlm", "lilt", "longformer", "mbart", "mobilebert", "modernbert", "mpnet",
    "nystromformer", "openai-gpt", "opt", "qwen2", "qwen3_5_text", "rembert", "roformer", "squeezebert", "t5", "tapas", "xlm", "xlm-roberta", "xlnet",
    "xmod", "yoso",
}  # fmt: skip
APART = {"convbert", "fnet", "funnel", "mobilebert", "nystromformer", "xlnet", "yoso"}
"""Those that see padding, so that texts go through by their lengths."""
AT_THE_END = {"bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "umt5"}
"""Those that read at the end token."""


def built(config: dict[str, Any]) -> tuple[Network, ForeignClassifier]:
    family = Section("models").parse({"type": "huggingface", "task": "classifier", "config": config})
    assert isinstance(family, HuggingFace)
    network = family.build(SPEC).eval()
    (reader,) = network.encoders.values()
    assert isinstance(reader, ForeignClassifier)
    return network, reader


def theirs_of(config: dict[str, Any], network: Network, reader: ForeignClassifier) -> Any:
    """A model of `transformers`, whose weights the network gets."""
    made = transformers.AutoConfig.for_model(**config)
    made.num_labels = 3
    theirs = transformers.AutoModelForSequenceClassification.from_config(made).eval()
    own, head = {}, {}
    for name, tensor in theirs.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer == reader.decision:
            head[kind] = tensor
        else:
            own[f"model.{name}"] = tensor
    reader.load_state_dict(own)
    network.heads["@label"].load_state_dict(head)
    return theirs


@torch.no_grad()
def test_any_architecture_gives_the_logits_that_it_gives_alone_or_is_refused() -> None:
    ran, apart, at_the_end = set(), set(), set()
    refused: dict[str, str] = {}
    kinds = {one.model_type for one in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING} - SLOW
    for kind in sorted(kinds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their own code
            try:
                config = MORE.get(kind) or tiny(kind)
            except Exception:  # sizes that do not fit each other: nothing that a user could have either
                continue
            if config is None:
                continue
            config |= CHANGED.get(kind, {})
            torch.manual_seed(0)
            try:
                network, reader = built(config)
            except LubanError as error:
                refused[kind] = str(error)
                continue
            try:
                theirs = theirs_of(config, network, reader)
                rows = [[9, 10, 5, 6, 7], [5, 6, 7, 8, 9, 10, 11], [], [3, 4, 8, 9, 5], [11, 8, 9, 4, 3, 3]]
                if reader._end is not None:  # one of them with two
                    assert reader._end == END
                    rows = [[*row, END] if row else row for row in rows]
                    rows[1].insert(3, END)
                found = network(flat_of(*rows))["label.logits"]
                for logits, row in zip(found, rows, strict=True):
                    if row:
                        expected = theirs(input_ids=torch.tensor([row]), **reader._once).logits[0]
                    else:
                        head = network.heads["@label"]
                        expected = torch.zeros(3) if head.bias is None else head.bias
                    assert_near(logits, expected)
            except Exception as error:
                raise AssertionError(f"{kind}: {error}") from error
            ran.add(kind)
            apart |= set() if reader.masks_padding else {kind}
            at_the_end |= set() if reader._end is None else {kind}
    assert ran >= RUN, (RUN - ran, refused)
    assert len(ran) >= 100
    assert (apart & RUN, at_the_end) == (APART, AT_THE_END)
    assert all("\n" not in sentence for sentence in refused.values())


def test_a_text_without_the_token_that_is_read(tmp_path: Any) -> None:
    network, _ = built(tiny("bart") or {})
    with pytest.raises(
        DataError,
        match=r"a text has no end token \(number 1\), at which an architecture of type 'bart' is read; name",
    ):
        network(flat_of([5, 6, END], [7, 8]))  # fmt: skip


@torch.no_grad()
def test_without_a_padding_token_texts_go_through_by_their_lengths() -> None:
    """Theirs takes one text at a time then, and reads its last token, whatever that is."""
    config = {**(tiny("gpt_neox") or {}), "pad_token_id": None}
    network, reader = built(config)
    assert not reader.masks_padding
    assert not reader.names_padding
    theirs = theirs_of(config, network, reader)
    rows = [[9, 0], [5, 6, 7], [0, 0, 0], [7]]
    for logits, row in zip(network(flat_of(*rows))["label.logits"], rows, strict=True):
        assert_near(logits, theirs(input_ids=torch.tensor([row])).logits[0])


@torch.no_grad()
def test_long_texts_of_bigbird_do_not_depend_on_those_beside_them() -> None:
    """Sparse attention would begin where any text of a batch is long; theirs is whole for good once it has read a short one."""
    sizes = {"block_size": 2, "num_random_blocks": 1, "max_position_embeddings": 64, "initializer_range": 0.3}
    config = {**(tiny("big_bird") or {}), **sizes, "attention_type": "block_sparse"}
    network, reader = built(config)
    theirs = theirs_of(config, network, reader)
    short, long = [9, 5, 7], [*range(3, 40)]
    sparse = theirs(input_ids=torch.tensor([long])).logits[0]
    expected = [theirs(input_ids=torch.tensor([row])).logits[0] for row in (short, long)]
    assert (sparse - expected[1]).abs().max() > 1e-3
    for logits, other in zip(network(flat_of(short, long))["label.logits"], expected, strict=True):
        assert_near(logits, other)


def test_gradients_are_those_of_transformers() -> None:
    config = tiny("bart") or {}
    network, reader = built(config)
    theirs = theirs_of(config, network, reader)
    rows, labels = [[5, 6, 7, END], [8, 9, END]], torch.tensor([2, 0])
    loss = torch.nn.functional.cross_entropy
    loss(network(flat_of(*rows))["label.logits"], labels).backward()
    sum(loss(theirs(input_ids=torch.tensor([row])).logits, labels[i : i + 1]) / 2 for i, row in enumerate(rows)).backward()  # fmt: skip
    own = dict(reader.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        layer, _, kind = name.rpartition(".")
        mine = getattr(network.heads["@label"], kind) if layer == reader.decision else own[name]
        torch.testing.assert_close(mine.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_batch_of_no_rows_and_one_of_no_tokens() -> None:
    network, _ = built(tiny("electra") or {})
    none = Ragged(torch.empty(0, dtype=torch.int64), torch.tensor([0]))
    assert network({"text.ids": none})["label.logits"].shape == (0, 3)
    features = network(flat_of([], []))["features"]
    assert not features.any()
