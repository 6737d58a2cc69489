"""Tiny models as others publish them: random weights of `transformers`, a real tokenizer, saved to a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The capital of France is Paris.",
    "鲁班是木匠的祖师。",
    "A good tool improves the way you work; a great tool improves the way you think.",
    "Yes.",
    "今天天气不错，我们去公园走走，然后回家做饭。",
    "Measure twice and cut once, said the carpenter.",
]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "initializer_range": 0.3,
}
NAMES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "gpt2": "GPT2",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "electra": "Electra",
    "albert": "Albert",
    "deberta-v2": "DebertaV2",
}


def wordpiece() -> Any:
    """BERT's kind, uncased."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = {word for text in TEXTS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    # Made, not trained: the library's trainer of word pieces makes another vocabulary each time.
    pieces = [*{c for word in words for c in word}, *{f"##{c}" for word in words for c in word[1:]}]
    pieces += {word[:size] for word in words for size in (2, 4) if len(word) >= size}
    tokenizer = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate([*names, *sorted(pieces)])}, unk_token="[UNK]")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(names)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), names, strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{r}_token": n for r, n in roles.items()}
    )


def byte_pairs(kind: str) -> Any:
    """RoBERTa's, GPT-2's, Llama's and Qwen's kind."""
    special = {
        "roberta": {
            "bos": "<s>",
            "pad": "<pad>",
            "eos": "</s>",
            "unk": "<unk>",
            "mask": "<mask>",
            "cls": "<s>",
            "sep": "</s>",
        },
        "gpt2": {"eos": "<|endoftext|>", "bos": "<|endoftext|>"},
        "llama": {"bos": "<s>", "eos": "</s>", "pad": "<pad>"},
        "qwen2": {"eos": "<|im_end|>", "pad": "<|endoftext|>"},
    }[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if kind == "roberta":
        sep, cls = (("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
    elif kind == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{r}_token": n for r, n in special.items()}
    )
    if kind in ("llama", "qwen2"):
        made.chat_template = TEMPLATE
    return made


def publish(
    folder: Path, kind: str, head: str = "Model", shards: str | None = None, **options: Any
) -> tuple[Any, Any]:
    """Save a model and its tokenizer; return both.

    Args:
        folder: where to.
        kind: model type.
        head: ending of the architecture's name, such as ``ForSequenceClassification``.
        shards: size of a shard.
        options: more of the configuration.
    """
    torch.manual_seed(0)
    tokenizer = byte_pairs(kind) if kind in ("roberta", "gpt2", "llama", "qwen2") else wordpiece()
    config = dict(SMALL)
    if kind == "distilbert":
        config = {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 130,
            "initializer_range": 0.3,
        }
    elif kind == "gpt2":
        config = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 130, "initializer_range": 0.3}
    elif kind in ("llama", "qwen2"):
        config["num_key_value_heads"] = 2
    elif kind == "electra":
        config["embedding_size"] = 16
    elif kind == "albert":
        config |= {"embedding_size": 16, "num_hidden_groups": 1}
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    special = {key: value for key, value in special.items() if value is not None}
    made = transformers.AutoConfig.for_model(kind, **config, vocab_size=len(tokenizer), **special, **options)
    model = getattr(transformers, NAMES[kind] + head)(made)
    with torch.no_grad():  # norms and biases begin at one and zero, which would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, **({} if shards is None else {"max_shard_size": shards}))
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


PAIRS = {
    "bart": ("BartForConditionalGeneration", {}),
    "mbart": ("MBartForConditionalGeneration", {"scale_embedding": True}),
    "marian": ("MarianMTModel", {"scale_embedding": True, "activation_function": "swish"}),
}


def publish_pair(folder: Path, kind: str, **options: Any) -> tuple[Any, Any]:
    """Save an encoder with its decoder, and the tokenizer of both; return both."""
    torch.manual_seed(0)
    tokenizer = byte_pairs("roberta")
    name, more = PAIRS[kind]
    sizes = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    config = transformers.AutoConfig.for_model(
        kind,
        **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sizes.items()},
        d_model=32,
        max_position_embeddings=64,
        init_std=0.3,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id if kind == "marian" else tokenizer.eos_token_id,
        forced_eos_token_id=None if kind == "marian" else tokenizer.eos_token_id,
        **more,
        **options,
    )
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def rewrite(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def states_of(model: Any, tokenizer: Any, text: str, limit: int | None = None) -> torch.Tensor:
    """The states of a text, (T, D)."""
    inputs = tokenizer(text, return_tensors="pt", truncation=limit is not None, max_length=limit)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        states: torch.Tensor = model(**inputs).last_hidden_state[0]
    return states
