"""Decoding speed at batch 1: tokens a second, Luban beside `transformers.generate` and llama.cpp.

    python benchmarks/generate.py [--quick] [--json] [--threads N] [--clock cpu]

A model of Llama's shape with random weights: 12 layers of 768, 12 heads, 4 of keys and values, 32,000 tokens, tied, 100 million
parameters. A prompt of 32 tokens is continued greedily by 96; the time is that of the whole call, prompt included. Sides work in
turn, each in a process of its own that rests while another works, all from the same file of weights:

fp32           Luban, weights as they are
int8           Luban, weights rounded row by row
transformers   `generate` in fp32, with its cache and in inference mode, which is the best it does by itself here
llama.cpp      its server's completion of one request, weights in q8_0, flash attention as it chooses (from `xllamacpp`'s wheel)

The results are checked: Luban's fp32 tokens are to be those of `generate`, and the int8 weights' distributions close to the fp32
ones'. `--threads 1 --clock cpu` compares processor time, for a machine with other work on it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
import _language as language
from _common import CACHE, Claim, Worker, say

HOME = CACHE / "bench-generate"
LLAMA = ("xllamacpp==2026.10.11549", "gguf==0.19.0", "safetensors==0.7.0", "numpy==2.4.6")
VOCABULARY, LAYERS, WIDTH, HEADS, KEY_HEADS, INSIDE = 32_000, 12, 768, 12, 4, 2_048
PROMPT = np.random.default_rng(0).integers(5, VOCABULARY, 32).tolist()
KL_LIMIT = 0.02  # nats, of random weights; q8_0 has 0.007


# --- sides ------------------------------------------------------------------------------------------------


def luban(int8: bool) -> Callable[[int], list[int]]:
    """Return what continues the prompt by so many tokens."""
    from luban.generation.engine import generate
    from luban.generation.int8 import to_int8
    from luban.generation.options import Generation
    from luban.models import _kernels

    say(f"  {_kernels.use('native')}")
    module = network()
    if int8:
        to_int8(module)

    def run(tokens: int) -> list[int]:
        options = Generation(max_tokens=tokens)
        return generate(module, [PROMPT], options, end=set(), decode=lambda ids: " ".join(map(str, ids)))[
            0
        ].ids

    return run


def network() -> Any:
    """Return Luban's network with the weights of the file."""
    from luban.data.contracts import Field, Spec
    from luban.models._language import Language
    from luban.recipe import Section

    model = Section("models").parse({"type": "llama", "from": str(HOME)})
    assert isinstance(model, Language)
    fields = {
        "text.ids": Field("text", "text", "input", "int64", None, size=VOCABULARY),
        "text.labels": Field("text", "tokens", "target", "int64", None, size=VOCABULARY),
    }
    module = model.build(Spec(fields))
    model.load_pretrained(module)
    return module.eval()


def transformers() -> Callable[[int], list[int]]:
    """Return what continues the prompt by so many tokens."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(HOME, dtype=torch.float32).eval()
    ids = torch.tensor([PROMPT])

    @torch.inference_mode()
    def run(tokens: int) -> list[int]:
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        result: list[int] = out[0, len(PROMPT) :].tolist()
        return result

    return run


def llama(threads: int) -> Callable[[int], list[int]]:
    """Return what continues the prompt by so many tokens."""
    import xllamacpp

    write_gguf(HOME / "q8_0.gguf")
    options = xllamacpp.CommonParams()
    options.model.path = str(HOME / "q8_0.gguf")
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    options.n_ctx, options.n_parallel, options.n_gpu_layers, options.verbosity = 512, 1, 0, 0
    server = xllamacpp.Server(options)

    def run(tokens: int) -> list[int]:
        request = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = server.handle_completions({**request, "cache_prompt": False, "stream": False})
        assert answer["usage"]["completion_tokens"] == tokens, answer
        return [int(token) for token in re.findall(r"<(\d+)>", answer["choices"][0]["text"])]

    return run


def write_gguf(path: Path) -> None:
    """Write the weights as llama.cpp reads them, matrices in q8_0."""
    import gguf
    from safetensors.numpy import load_file

    if path.is_file():
        return
    source = load_file(HOME / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INSIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(LAYERS):
        for theirs, ours in parts.items():
            names[f"model.layers.{layer}.{theirs}.weight"] = f"blk.{layer}.{ours}.weight"
    for theirs, ours in names.items():
        array = source[theirs].astype(np.float32)
        heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(ours.split(".")[-2])
        if heads is not None:  # llama.cpp turns neighbours, not halves
            array = array.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape)
        if array.ndim == 1:
            writer.add_tensor(ours, array)
        else:
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(ours, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_weights() -> None:
    """Draw the weights, once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (HOME / "model.safetensors").is_file():
        return
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        intermediate_size=INSIDE,
        tie_word_embeddings=True,
        initializer_range=0.05,  # with the usual 0.02, all tokens would be nearly as probable
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(HOME)


def divergence() -> dict[str, Any]:
    """Return by how much int8 weights change the distribution behind each token of some texts: KL divergences, in nats.

    Beside them those of llama.cpp's q8_0 (a scale of 16 bits for each 32 weights of a row), worked out in PyTorch.
    """
    import torch
    from torch import nn

    from luban.data.ragged import Ragged
    from luban.generation.int8 import to_int8

    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(5, VOCABULARY, (4, 64), generator=generator)
    rows = {"text.ids": Ragged(texts.flatten(), torch.arange(0, 257, 64))}

    def behind(module: nn.Module) -> torch.Tensor:
        logprobs: torch.Tensor = module(rows)["text.tokens"].logits().log_softmax(1)
        return logprobs

    with torch.inference_mode():
        whole = behind(network())
        blocks = network()
        for layer in blocks.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                parts = layer.weight.view(-1, 32)
                scale = (parts.abs().amax(1, keepdim=True) / 127).half().float().clamp(min=1e-7)
                parts.copy_((parts / scale).round() * scale)
        each = {"int8": behind(to_int8(network())), "q8_0": behind(blocks)}
        kl = {name: (whole.exp() * (whole - other)).sum(1) for name, other in each.items()}
    mine = kl["int8"]
    return {
        "mean": float(mine.mean()),
        "low": float(mine.min()),
        "high": float(mine.max()),
        "q8_0": float(kl["q8_0"].mean()),
    }


def side(name: str, threads: int | None, clock: str) -> None:
    """Answer requests for tokens."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    if name != "llama.cpp":
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        threads = torch.get_num_threads()
    if name == "check":
        return common.serve(divergence)
    if name == "llama.cpp":
        run = llama(threads or 2)
    elif name == "transformers":
        write_weights()
        run = transformers()
    else:
        run = luban(name == "int8")

    def work(tokens: int) -> dict[str, Any]:
        start = now()
        ids = run(tokens)
        return {"ids": ids, "rate": tokens / (now() - start)}

    return common.serve(work)


# --- the comparison ---------------------------------------------------------------------------------------


def main() -> int:
    """Run all sides in turn and report."""
    if "--side" in sys.argv:
        place = sys.argv.index("--side")
        name, threads, clock = sys.argv[place + 1 : place + 4]
        side(name, None if threads == "-" else int(threads), clock)
        return 0
    options = common.arguments(__doc__ or "", language.busy)
    rounds, tokens = (5, 48) if options.quick else (9, 96)
    HOME.mkdir(parents=True, exist_ok=True)
    words = ("-" if options.threads is None else str(options.threads), options.clock)
    peer = language.peer()
    pythons: dict[str, Path | str] = {"transformers": peer, "fp32": sys.executable, "int8": sys.executable}
    try:
        pythons["llama.cpp"] = common.environment("llama", LLAMA)
    except Exception as error:  # no wheel for this machine: a claim that was not measured is absent
        say(f"  llama.cpp was not measured: {error}")
    rates: dict[str, list[float]] = {name: [] for name in pythons}
    ids: dict[str, list[int]] = {}
    with ExitStack() as stack:
        workers = {}
        for name, python in pythons.items():  # one after the other: the first writes what the others read
            workers[name] = stack.enter_context(Worker(python, __file__, name, *words))
            workers[name].ask(tokens=4)
        for number in range(rounds):
            for name, worker in workers.items():
                answer = worker.ask(tokens=tokens)
                rates[name].append(answer["rate"])
                ids[name] = answer["ids"]
            say(
                f"  round {number + 1}: "
                + ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items())
            )
        check = stack.enter_context(Worker(sys.executable, __file__, "check", *words)).ask()
    common.table(rates, "tokens/s")
    claims = [
        common.ratios("fp32 against generate fp32", rates["fp32"], rates["transformers"], 1.0),
        common.ratios("int8 against generate fp32", rates["int8"], rates["transformers"], 3.0, aim=5.0),
    ]
    if "llama.cpp" in rates:
        claims.append(
            common.ratios("int8 against llama.cpp q8_0", rates["int8"], rates["llama.cpp"], 1.0, aim=1.5)
        )
    same = float(np.mean([a == b for a, b in zip(ids["fp32"], ids["transformers"], strict=True)]))
    claims.append(Claim("fp32 tokens equal to generate's", same, same, same, 1.0, "share"))
    name = "int8 distributions, KL divergence from fp32"
    claims.append(Claim(name, check["mean"], check["low"], check["high"], KL_LIMIT, "nats", at_most=True))
    agree = {
        name: float(np.mean([a == b for a, b in zip(own, ids["transformers"], strict=True)]))
        for name, own in ids.items()
    }
    notes = {
        "peers": ", ".join([*language.PEERS[:1], *LLAMA[:1]]),
        "rounds": rounds,
        "tokens": tokens,
        "clock": options.clock,
        "threads": options.threads or "as each chooses; llama.cpp 2",
        "tokens equal to generate's": agree,
        "KL divergence of q8_0": round(check["q8_0"], 5),
    }
    return common.report(claims, options, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
