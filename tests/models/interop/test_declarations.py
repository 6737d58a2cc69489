"""Each family of checkpoints is one declaration, and what it names is there."""

from __future__ import annotations

import pytest

from luban import registry
from luban.models.interop import FAMILIES, KINDS, kind_of
from luban.models.interop.core import CoreNames
from luban.recipe import Section

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", KINDS)
def test_what_a_kind_names_exists(name: str) -> None:
    kind, layout = KINDS[name]
    config = transformers.CONFIG_MAPPING[name]()
    for theirs in layout.keys.values():
        assert hasattr(config, theirs) or theirs == "head_dim", theirs
    for cls in filter(None, (kind.bare, kind.language, kind.classifier, kind.pretraining)):
        assert getattr(transformers, cls).config_class is type(config)
    for family in kind.read_by:
        options = Section("models").parse({"type": family, "size": "tiny"})
        known = {*type(options).model_fields, "layout", "segments"}
        assert {*layout.keys, *layout.defaults} <= known
        assert {*layout.defaults} <= {*layout.keys}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_type_of_ours_writes_the_first_that_it_reads(family: str) -> None:
    assert family in registry.names("models")
    bart = {"norm": "post", "positions": "learned", "embedding_norm": True, "eps": 1e-5, "shared": True}
    options = Section("models").parse(
        {"type": family, "size": "tiny", **(bart if family == "seq2seq" else {})}
    )
    assert kind_of(options) == FAMILIES[family][0]  # type: ignore[arg-type]
    assert KINDS[FAMILIES[family][0]][0].language


@pytest.mark.parametrize("name", [name for name, (kind, _) in KINDS.items() if kind.classifier])
def test_the_layer_of_a_classifier_and_of_the_vocabulary_have_these_names(name: str) -> None:
    kind, layout = KINDS[name]
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 20}
    config = transformers.CONFIG_MAPPING[name](**small, intermediate_size=16)
    if name == "distilbert":
        config = transformers.DistilBertConfig(dim=16, n_heads=2, n_layers=1, hidden_dim=16, vocab_size=20)
    names = set(getattr(transformers, kind.classifier)(config).state_dict())
    assert f"{layout.classifier}.weight" in names
    assert isinstance(layout.tensors, CoreNames)
    prefix = layout.tensors.prefix
    assert {name for name in names if name.startswith(prefix + layout.tensors.blocks)}
    whole = getattr(transformers, kind.language)(config).state_dict()
    assert layout.tensors.head in whole
    if kind.pretraining:
        assert f"{layout.pairs}.weight" in getattr(transformers, kind.pretraining)(config).state_dict()
