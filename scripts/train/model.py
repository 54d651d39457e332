"""The model in PyTorch: the Llama-type decoder of MODEL.md 1, read causally or block-wise by its attention mask.

forward() takes whole rows with an explicit mask (training); step() adds rows to a KV cache (evaluation, the same
two readings as the C engine). Parameter names are the checkpoint's names.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = {
    "architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion",
    "vocab_size": 1024, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "tie_word_embeddings": False, "sliding_window": None, "use_cache": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1, "eos_token_id": 11, "pad_token_id": None, "mask_token_id": 100,
    "block_size": 32, "dlm_paradigm": "bidirectional", "ar_loss_weight": 1.0, "dtype": "bfloat16", "torch_dtype": "bfloat16",
}


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n, self.n_kv, self.d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.q_proj = nn.Linear(c["hidden_size"], self.n * self.d, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], self.n_kv * self.d, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], self.n_kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.n * self.d, c["hidden_size"], bias=False)
        self.lora = None  # (A [r, in], B [out, r], scale) of the draft adapter

    def forward(self, x, cos, sin, mask, lora_rows, cache=None, at=None):
        b, s, _ = x.shape
        q = rotate(self.q_proj(x).view(b, s, self.n, self.d), cos, sin)
        k = rotate(self.k_proj(x).view(b, s, self.n_kv, self.d), cos, sin)
        v = self.v_proj(x).view(b, s, self.n_kv, self.d)
        if cache is not None:  # cache: (K, V), each [b, T, n_kv, d]; at: [b, s] positions to write
            rows = torch.arange(b)[:, None]
            cache[0][rows, at] = k.to(cache[0].dtype)
            cache[1][rows, at] = v.to(cache[1].dtype)
            k, v = cache[0][:, :mask.shape[-1]].to(q.dtype), cache[1][:, :mask.shape[-1]].to(q.dtype)
        group = self.n // self.n_kv
        k, v = (t.transpose(1, 2).repeat_interleave(group, dim=1) for t in (k, v))
        # Written out: at these sizes it trains twice as fast as the fused CPU kernel, whose backward pass is slow.
        score = torch.matmul(q.transpose(1, 2) * self.d ** -0.5, k.transpose(-1, -2)) + mask.to(q.dtype)
        y = torch.matmul(torch.softmax(score, -1, dtype=q.dtype), v.to(q.dtype))
        y = y.transpose(1, 2).reshape(b, s, self.n * self.d)
        out = self.o_proj(y)
        if lora_rows is not None and self.lora is not None:
            a, bb, scale = self.lora
            out = out + lora_rows[..., None] * scale * F.linear(F.linear(y, a), bb)
        return out


def rotate(x, cos, sin):
    """Half-split (NeoX) rotary embedding; x [b, s, heads, d], cos and sin [b, s, 1, d / 2]."""
    x = x.float()
    h = x.shape[-1] // 2
    a, b = x[..., :h], x[..., h:]
    y = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return y.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") else y


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.mlp = MLP(c)

    def forward(self, x, cos, sin, mask, lora_rows, cache=None, at=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, lora_rows, cache, at)
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])


class Model(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c = c
        self.encoder = Encoder(c)
        self.diffusion_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        d, theta = c["head_dim"], c["rope_parameters"]["rope_theta"]
        angle = torch.arange(c["max_position_embeddings"])[:, None] * theta ** (-torch.arange(0, d, 2) / d)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # Embeddings as large as what the first layer adds: with the usual 0.02 a token's identity drowns in the
                # residual stream after one layer, and copying from the prompt is learned several times slower.
                nn.init.normal_(p, std=1.0 if "embed" in name else 0.02 if "head" in name else p.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):  # each layer starts as a small step
                p.data *= (2 * c["num_hidden_layers"]) ** -0.5

    def set_adapter(self, tensors, scale):
        """tensors: {layer: (A, B)} or None to take the adapter away."""
        for i, layer in enumerate(self.encoder.layers):
            layer.self_attn.lora = None if tensors is None else (*tensors[i], scale)

    def hidden(self, tokens, pos, mask, lora_rows=None, caches=None):
        """Hidden states before the head. tokens, pos [b, s]; mask [b, 1, s, keys], additive."""
        cos, sin = self.cos[pos][:, :, None], self.sin[pos][:, :, None]
        x = self.encoder.embed_tokens(tokens)
        for i, layer in enumerate(self.encoder.layers):
            x = layer(x, cos, sin, mask, lora_rows, None if caches is None else caches[i], pos)
        return self.encoder.norm(x)

    def new_caches(self, b, t):
        c = self.c
        shape = (b, t, c["num_key_value_heads"], c["head_dim"])
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(c["num_hidden_layers"])]

    def step(self, caches, tokens, base, causal, adapter=False):
        """One pass of n rows a sequence at positions base..base+n-1 [b]; logits [b, n, vocab].

        The KV of a block pass is written past the kept part and overwritten by the causal pass that follows,
        so "thrown away" costs nothing here.
        """
        b, n = tokens.shape
        pos = base[:, None] + torch.arange(n)
        keys = torch.arange(int(pos.max()) + 1)
        last = pos if causal else (base + n - 1)[:, None].expand(b, n)
        mask = torch.where(keys <= last[:, :, None], 0.0, float("-inf"))[:, None]
        rows = torch.ones(b, n) if adapter else None
        logits = self.diffusion_head(self.hidden(tokens, pos, mask, rows, caches)).float()
        logits[..., self.c["mask_token_id"]] = float("-inf")
        return logits
