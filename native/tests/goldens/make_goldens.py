"""Makes the goldens of the native tests with Hugging Face transformers on CPU, in fp32.

    python3 -m venv /tmp/goldens && /tmp/goldens/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    /tmp/goldens/bin/pip install gguf==0.19.0
    /tmp/goldens/bin/python make_goldens.py tiny
    /tmp/goldens/bin/python make_goldens.py families [NAME ...]
    /tmp/goldens/bin/python make_goldens.py blocks
    /tmp/goldens/bin/python make_goldens.py smollm2 PATH/SmolLM2-135M-Instruct.Q4_1.gguf
    node scripts/check-goldens.mjs --write

`tiny`: random checkpoints of every dense family (weights drawn wide, so that logits are not flat and greedy choices are
clear), with logits at each position of a prompt and 64 greedy tokens. `families`: the same for experts, sliding windows and
latent attention, with prompts longer than a window and several KV blocks. `smollm2`: the GGUF's weights, decoded here independently
of the engine and loaded into LlamaForCausalLM. `blocks`: random blocks of every GGUF format,
decoded by the gguf package. SHA256SUMS holds what CI checks.
"""

import copy
import json
import struct
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def greedy(model, prompt, n):
    import torch

    out, margins, cache, new = [], [], None, list(prompt)
    with torch.no_grad():
        for _ in range(n):
            step = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            top = torch.topk(step.logits[0, -1], 2)
            margins.append(float(top.values[0] - top.values[1]))
            new = [int(top.indices[0])]
            out += new
    return out, min(margins)


# ----------------------------------------------------------------------------------------------------------------------
# Tiny random checkpoints


def tiny_models():
    """name -> (class, configuration, type in the file)"""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    # 44 is no multiple of a quantisation block or a vector; 93 no multiple of a panel.
    common = dict(vocab_size=93, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=16, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    llama3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=32)
    return {
        "llama-gqa-tied": (LlamaForCausalLM, LlamaConfig(**common, tie_word_embeddings=True, rms_norm_eps=1e-5), "float32"),
        "llama-untied-bias": (LlamaForCausalLM,
                              LlamaConfig(**common, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
                                          rms_norm_eps=1e-6, rope_parameters=llama3), "bfloat16"),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**common, tie_word_embeddings=True), "float16"),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**common, tie_word_embeddings=False), "bfloat16"),
    }


def tiny_families():
    """Mixture-of-experts, sliding-window and latent-attention families; the same triples."""
    from transformers import (DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM,
                              GptOssConfig, GptOssForCausalLM, MistralConfig, MistralForCausalLM, MixtralConfig,
                              MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM,
                              Qwen3MoeConfig, Qwen3MoeForCausalLM)

    # Experts of 20 end inside vectors and blocks.
    common = dict(vocab_size=93, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                  max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    latent = dict(common, num_key_value_heads=4, intermediate_size=44, moe_intermediate_size=20, n_routed_experts=8,
                  num_experts_per_tok=3, first_k_dense_replace=1, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
                  v_head_dim=12, n_group=4, topk_group=2)
    # Its ramp lies inside the head, and both parts of the magnitude count.
    yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=8.0, beta_slow=1.0,
                original_max_position_embeddings=64)
    oss = dict(common, intermediate_size=32, num_hidden_layers=4, num_local_experts=8, num_experts_per_tok=4, head_dim=8,
               sliding_window=12, rope_parameters=dict(yarn, rope_theta=150000.0, truncate=False))
    return {
        "mistral-window": (MistralForCausalLM, MistralConfig(**common, intermediate_size=44, head_dim=8, sliding_window=12), "bfloat16"),
        "mixtral": (MixtralForCausalLM,
                    MixtralConfig(**common, intermediate_size=20, num_local_experts=8, num_experts_per_tok=2, head_dim=8), "bfloat16"),
        "qwen2-moe": (Qwen2MoeForCausalLM,
                      Qwen2MoeConfig(**common, intermediate_size=44, moe_intermediate_size=20, num_experts=8, num_experts_per_tok=3,
                                     shared_expert_intermediate_size=40), "bfloat16"),
        "qwen3-moe": (Qwen3MoeForCausalLM,
                      Qwen3MoeConfig(**common, intermediate_size=44, moe_intermediate_size=20, num_experts=8, num_experts_per_tok=3,
                                     head_dim=8, norm_topk_prob=True, mlp_only_layers=[1]), "bfloat16"),
        "olmoe": (OlmoeForCausalLM,
                  OlmoeConfig(**common, intermediate_size=20, num_experts=8, num_experts_per_tok=4, norm_topk_prob=False), "bfloat16"),
        "gpt-oss": (GptOssForCausalLM, GptOssConfig(**oss), "bfloat16"),
        "gpt-oss-mxfp4": (GptOssForCausalLM, GptOssConfig(**oss), "mxfp4"),
        "deepseek-v2": (DeepseekV2ForCausalLM,
                        DeepseekV2Config(**latent, n_shared_experts=2, q_lora_rank=24, topk_method="group_limited_greedy",
                                         routed_scaling_factor=1.5, rms_norm_eps=1e-5,
                                         rope_parameters=dict(yarn, mscale=0.9, mscale_all_dim=0.7)), "bfloat16"),
        "deepseek-v2-lite": (DeepseekV2ForCausalLM,
                             DeepseekV2Config(**latent, n_shared_experts=1, q_lora_rank=None, topk_method="greedy"), "bfloat16"),
        "deepseek-v3": (DeepseekV3ForCausalLM,
                        DeepseekV3Config(**latent, n_shared_experts=1, q_lora_rank=24, routed_scaling_factor=2.5), "bfloat16"),
    }


def mxfp4_experts(model):
    """Rounds the experts to MXFP4 (OCP Microscaling 1.0): the tensors of a release, decoded by transformers into the model."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    tensors = {}
    for name, p in model.named_parameters():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        blocks = p.detach().transpose(1, 2).unflatten(-1, (-1, 32))  # outputs first, 32 inputs a block
        exponent = torch.floor(torch.log2(blocks.abs().amax(-1, keepdim=True))) - 2
        scaled = blocks / torch.exp2(exponent)
        code = (scaled.abs().unsqueeze(-1) - values).abs().argmin(-1) + 8 * (scaled < 0)
        code = code.to(torch.uint8)
        tensors[name + "_blocks"] = (code[..., 0::2] | code[..., 1::2] << 4).contiguous()
        tensors[name + "_scales"] = (exponent.squeeze(-1) + 127).to(torch.uint8).contiguous()
        decoded = convert_moe_packed_tensors(tensors[name + "_blocks"], tensors[name + "_scales"], dtype=torch.float32)
        p.copy_(decoded)
    return tensors


def router_margins(model, run):
    """The smallest distance, over all tokens of what `run` computes, between the last chosen and the first refused expert
    (or group), as the router ranks them."""
    import torch

    smallest = [float("inf")]

    def watch(module, _, output):
        ranks = output[0].detach().double()
        if hasattr(module, "e_score_correction_bias"):
            ranks = ranks.sigmoid() + module.e_score_correction_bias
        groups = getattr(module, "topk_group", None) or 0
        if groups and getattr(module, "topk_method", "noaux_tc") != "greedy":
            grouped = ranks.unflatten(-1, (module.num_group, -1))
            n_best = 2 if hasattr(module, "e_score_correction_bias") else 1
            best = grouped.topk(n_best, -1).values.sum(-1)
            top = best.topk(groups + 1, -1).values
            smallest[0] = min(smallest[0], float((top[:, groups - 1] - top[:, groups]).min()))
            kept = torch.zeros_like(best).scatter(-1, best.topk(groups, -1).indices, 1.0).bool()
            ranks = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)
        top = ranks.topk(module.top_k + 1, -1).values
        smallest[0] = min(smallest[0], float((top[:, -2] - top[:, -1]).min()))

    hooks = [m.register_forward_hook(watch) for m in model.modules() if "Router" in type(m).__name__]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, smallest[0]


def make_tiny(models, first_seed, n_prompt, max_noise):
    import torch
    from safetensors.torch import load_file, save_file

    for index, (name, (cls, config, dtype)) in enumerate(models.items()):
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        config._experts_implementation = "eager"  # the reference loop over experts; the grouped product knows no fp64
        in_file = torch.bfloat16 if dtype == "mxfp4" else getattr(torch, dtype)
        for seed in range(1000):
            torch.manual_seed(first_seed + 1000 * index + seed)
            model = cls(config).float().eval()
            with torch.no_grad():
                for key, p in [*model.named_parameters(), *model.named_buffers()]:
                    if "inv_freq" in key:
                        continue
                    if "norm" in key:
                        p.copy_(1 + 0.2 * torch.randn_like(p))
                    else:
                        p.copy_(0.3 * torch.randn_like(p))
                    p.copy_(p.to(in_file).float())  # what the file will hold
                packed = mxfp4_experts(model) if dtype == "mxfp4" else {}
            prompt = torch.randint(3, config.vocab_size, (n_prompt,), generator=torch.Generator().manual_seed(seed)).tolist()
            (tokens, margin), routing = router_margins(model, lambda: greedy(model, prompt, 64))
            with torch.no_grad():
                logits = model(torch.tensor([prompt])).logits[0].numpy().astype("<f4")
                wide = copy.deepcopy(model).double()(torch.tensor([prompt])).logits[0].numpy()
            noise = float(np.abs(logits - wide).max())
            # A near tie would make "the same 64 tokens" a matter of luck; a loop would test one token over and over; and
            # where transformers' own rounding comes near our tolerance, the test would measure that.
            if margin > 5e-3 and routing > 1e-4 and noise < max_noise and len(set(tokens)) >= 16:
                break
        else:
            raise SystemExit(f"{name}: no seed gives clear greedy choices")
        model.to(in_file).save_pretrained(folder, safe_serialization=True)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if packed:
            kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if k + "_blocks" not in packed}
            save_file(kept | packed, folder / "model.safetensors", metadata={"format": "pt"})
            written = json.loads((folder / "config.json").read_text())
            written["quantization_config"] = {"modules_to_not_convert": [], "quant_method": "mxfp4"}
            (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        (folder / "logits.f32").write_bytes(logits.tobytes())
        expected = {"prompt": prompt, "greedy": tokens, "min_margin": margin, "seed": seed, "logits_shape": list(logits.shape)}
        if routing < float("inf"):
            expected["min_router_margin"] = routing
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        print(name, "seed", seed, "margin", margin, "router", routing, "fp32 to fp64", noise, "logit spread", float(logits.std()), "distinct", len(set(tokens)))


def make_blocks():
    import gguf

    rng = np.random.default_rng(5)

    def halves(n):
        return rng.normal(0, 0.05, n).astype("<f2").view(np.uint8).reshape(n, 2)

    index, raw_all, values_all = [], [], []
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"]:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        n = 512 // elements if elements > 1 else 64
        raw = rng.integers(0, 256, (n, size), dtype=np.uint8)
        if name == "Q6_K":
            raw[:, 208:210] = halves(n)
        elif name == "F16":
            raw = halves(n)
        elif name == "BF16":
            raw = (rng.normal(0, 1, n).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8).reshape(n, 2)
        else:
            raw[:, 0:2] = halves(n)
            if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K"):
                raw[:, 2:4] = halves(n)
        values = gguf.quants.dequantize(raw.reshape(1, -1), kind).astype("<f4").ravel()
        index.append({"format": name, "bytes": int(raw.size), "values": int(values.size)})
        raw_all.append(raw.tobytes())
        values_all.append(values.tobytes())
    folder = HERE / "blocks"
    folder.mkdir(exist_ok=True)
    (folder / "blocks.bin").write_bytes(b"".join(raw_all))
    (folder / "values.f32").write_bytes(b"".join(values_all))
    (folder / "index.json").write_text(json.dumps(index) + "\n")


# ----------------------------------------------------------------------------------------------------------------------
# SmolLM2 out of its GGUF: a reader of its own, as an independent second opinion on ours.


def read_gguf(path):
    data = memoryview(Path(path).read_bytes())
    at = 0

    def take(fmt):
        nonlocal at
        value = struct.unpack_from("<" + fmt, data, at)[0]
        at += struct.calcsize("<" + fmt)
        return value

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return bytes(data[at - n:at]).decode("utf-8")

    scalar = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, n = take("I"), take("Q")
            return [value(inner) for _ in range(n)]
        return take(scalar[kind])

    assert bytes(data[:4]) == b"GGUF"
    at = 4
    assert take("I") == 3
    n_tensors, n_keys = take("Q"), take("Q")
    meta = {}
    for _ in range(n_keys):
        key = text()
        meta[key] = value(take("I"))
    infos = []
    for _ in range(n_tensors):
        name = text()
        shape = [take("Q") for _ in range(take("I"))][::-1]
        infos.append((name, shape, take("I"), take("Q")))
    start = (at + 31) // 32 * 32
    return meta, {name: (shape, kind, data[start + offset:]) for name, shape, kind, offset in infos}


def decode(shape, kind, data):
    n = int(np.prod(shape))
    if kind == 0:
        return np.frombuffer(data, "<f4", n).reshape(shape).copy()
    if kind == 3:  # Q4_1
        blocks = np.frombuffer(data, np.uint8, n // 32 * 20).reshape(-1, 20)
        d = blocks[:, 0:2].copy().view("<f2").astype(np.float32)
        m = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
        q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
        return (q * d + m).astype(np.float32).reshape(shape)
    if kind == 8:  # Q8_0
        blocks = np.frombuffer(data, np.uint8, n // 32 * 34).reshape(-1, 34)
        d = blocks[:, 0:2].copy().view("<f2").astype(np.float32)
        return (blocks[:, 2:].view(np.int8).astype(np.float32) * d).reshape(shape)
    raise SystemExit(f"tensor type {kind}")


def load_smollm2(path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    meta, tensors = read_gguf(path)
    arch = {k.removeprefix("llama."): v for k, v in meta.items()}
    heads, kv_heads = arch["attention.head_count"], arch["attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=len(meta["tokenizer.ggml.tokens"]), hidden_size=arch["embedding_length"],
        intermediate_size=arch["feed_forward_length"], num_hidden_layers=arch["block_count"], num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=arch["context_length"],
        rms_norm_eps=arch["attention.layer_norm_rms_epsilon"], tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": arch["rope.freq_base"]})
    model = LlamaForCausalLM(config).float().eval()
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {}
    for name, (shape, kind, data) in tensors.items():
        w = decode(shape, kind, data)
        if name == "token_embd.weight":
            state["model.embed_tokens.weight"] = w
            state["lm_head.weight"] = w
        elif name == "output_norm.weight":
            state["model.norm.weight"] = w
        else:
            _, layer, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):  # rotary pairs side by side -> halves
                n = heads if part == "attn_q" else kv_heads
                w = w.reshape(n, shape[0] // n // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)
            state[f"model.layers.{layer}.{names[part]}.weight"] = w
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
    return meta, model


def tokenizer_of(meta):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {t: i for i, t in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tok.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]) if kind == 3]
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tok


PROMPTS = {
    "question": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "prose": "The harbour was quiet in the early morning. A few boats rocked against the wooden piers, and the gulls that "
             "had shouted all night had finally gone to sleep. Down by the water",
    "code": "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n    if n < 2:\n        return n\n    a, b = 0, 1\n",
}


def make_smollm2(path):
    import torch

    meta, model = load_smollm2(path)
    tok = tokenizer_of(meta)
    folder = HERE / "smollm2"
    folder.mkdir(exist_ok=True)
    probe = np.unique(np.concatenate([np.arange(0, 49152, 193), [49151]])).tolist()
    cases, values, values64 = [], [], []
    # The same network in fp64 (but for transformers' RMSNorm and rotary angles, which are always fp32) shows how far its
    # fp32 run is from its own mathematics: further, on logits of 40, than 2e-5.
    model64 = copy.deepcopy(model).double()
    for name, text in PROMPTS.items():
        ids = tok.encode(text, add_special_tokens=False).ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
            logits64 = model64(torch.tensor([ids])).logits[0]
        tokens, margin = greedy(model, ids, 64)
        positions = sorted({0, len(ids) // 2, len(ids) - 1})
        for position in positions:
            # Full-vocabulary checks stay small: a fixed comb over the vocabulary and the 32 largest.
            row = logits[position]
            top = torch.topk(row, 32).indices.tolist()
            values.append(np.concatenate([row[probe].numpy(), row[top].numpy()]).astype("<f4"))
            values64.append(np.concatenate([logits64[position][probe].numpy(), logits64[position][top].numpy()]).astype("<f8"))
            cases.append({"prompt": name, "position": position, "top": top})
        print(name, len(ids), "tokens, margin", margin, repr(tok.decode(tokens)))
        PROMPTS[name] = {"ids": ids, "greedy": tokens, "min_margin": margin}
    (folder / "logits.f32").write_bytes(np.concatenate(values).tobytes())
    (folder / "logits.f64").write_bytes(np.concatenate(values64).tobytes())
    # Text for teacher-forced comparisons of `fast` with `exact`: written by the model itself in three voices, so that it
    # lies in its domain, after openings of ours; sampled at temperature 1, so that it is not what greedy would say.
    torch.manual_seed(7)
    text_ids = []
    for opening in ["The history of bridges begins", "import json\n\n\ndef load(path):\n", "Dear Anna,\n\nyesterday we"]:
        ids = tok.encode(opening, add_special_tokens=False).ids
        with torch.no_grad():
            out = model.generate(torch.tensor([[meta["tokenizer.ggml.bos_token_id"], *ids]]), max_new_tokens=480, do_sample=True, temperature=1.0,
                                 top_k=0, eos_token_id=-1, pad_token_id=0)
        text_ids.append(out[0].tolist())
        print(repr(tok.decode(text_ids[-1])[:200]))
    with torch.no_grad():
        nll = [float(torch.nn.functional.cross_entropy(model(torch.tensor([t])).logits[0, :-1].double(), torch.tensor(t[1:]), reduction="sum"))
               for t in text_ids]
    expected = {"prompts": PROMPTS, "probe": probe, "cases": cases, "texts": text_ids, "texts_nll": nll}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)  # one order of additions, and no spinning on shared cores
    if sys.argv[1:] == ["tiny"]:
        make_tiny(tiny_models(), 0, 24, float("inf"))
    elif sys.argv[1:2] == ["families"]:
        make_tiny({k: v for k, v in tiny_families().items() if k in sys.argv[2:] or len(sys.argv) == 2}, 100000, 40, 1e-5)
    elif sys.argv[1:] == ["blocks"]:
        make_blocks()
    elif len(sys.argv) == 3 and sys.argv[1] == "smollm2":
        make_smollm2(sys.argv[2])
    else:
        raise SystemExit(__doc__)
