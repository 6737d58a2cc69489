"""A low-rank adapter in PEFT's format: adapter_config.json and adapter_model.safetensors, without the base model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from luban.adapt.lora import write_peft
from luban.artefact import Artefact
from luban.data.ragged import Ragged
from luban.errors import ParityError
from luban.models._language import encoder_of
from luban.models._network import Network
from luban.models.interop import KINDS, kind_of, open_checkpoint
from luban.predict import TOLERANCE, Predictor
from luban.recipe import read_yaml

__all__ = ["write"]


def write(artefact: Artefact, predictor: Predictor, folder: Path) -> dict[str, Any]:
    """Write the adapter and compare what PEFT makes of it, on the base model, with what the artefact makes.

    The base is the directory that the recipe's `model.from` names; if it is there, its weights are compared with the
    artefact's frozen ones. A head of one logit (yes or no) stays one: load the base with ``num_labels=1``.

    Args:
        artefact: what is exported.
        predictor: the artefact, loaded.
        folder: where the files go.

    Returns:
        ``base``, ``rank``, ``target_modules``, ``modules_to_save`` and ``drift``, the largest difference of a logit over the
        sample, None where PEFT or the base is not there.

    Raises:
        RecipeError: if there is no adapter, or one that the format cannot hold.
        ParityError: if the logits differ.
    """
    model = read_yaml(artefact.recipe).data.get("model") if artefact.recipe else None
    base = model.get("from") if isinstance(model, dict) else None
    config = write_peft(predictor.model, artefact.adapt, folder, base)
    shown = {key: config[key] for key in ("target_modules", "modules_to_save")}
    return {"base": base, "rank": config["r"], **shown, "drift": _drift(artefact, predictor, folder, base)}


def _drift(artefact: Artefact, predictor: Predictor, folder: Path, base: str | None) -> float | None:
    """Return the largest difference of a logit over the sample between the two, row by row."""
    try:
        import peft
        import transformers
    except ImportError:
        return None
    if base is None or not Path(base).is_dir() or open_checkpoint(base).kind != "huggingface":
        return None
    network = predictor.model
    assert isinstance(network, Network)
    encoder = encoder_of(network)
    kind = KINDS[kind_of(encoder.options)][0]
    if encoder.language is not None:
        whole = getattr(transformers, kind.language).from_pretrained(base)
    elif not artefact.pipeline.targets:
        whole = getattr(transformers, kind.bare).from_pretrained(base)
    else:
        (processor,) = artefact.pipeline.targets.values()
        whole = getattr(transformers, kind.classifier).from_pretrained(base, num_labels=processor.head_width)
    with warnings.catch_warnings():  # of what these two libraries will call things one day
        warnings.simplefilter("ignore", FutureWarning)
        theirs = peft.PeftModel.from_pretrained(whole, folder).eval()
    name = encoder.names[0]
    worst = 0.0
    for one in artefact.sample:
        batch = predictor.batch([one["row"]])
        text = batch[name]
        assert isinstance(text, Ragged)
        ids = text.values
        if not len(ids):
            continue
        with torch.inference_mode():
            outputs = network(batch)
            found = theirs(ids[None].cpu())
            if encoder.language is not None:
                ours, other = outputs[f"{name.rpartition('.')[0]}.tokens"].logits(), found.logits[0]
            elif not artefact.pipeline.targets:
                places = slice(-1, None) if encoder.pool == "last" else slice(0, 1)
                ours, other = outputs["features"], found.last_hidden_state[0, places]
            else:
                ours, other = outputs[next(iter(network.outputs.values()))], found.logits
        worst = max(worst, float((ours.cpu() - other).abs().max()))
    if worst > 10 * TOLERANCE:
        raise ParityError(f"PEFT's logits differ from the artefact's by {worst:.2g}; '{folder}' was not kept")
    return worst
