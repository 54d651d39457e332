"""The tiny random checkpoints of tests/vectors/models/: name -> arguments of checkpoint.write_checkpoint.

Each exercises something the others do not; all together stay well under a megabyte.
"""

YARN_SMALL = {"factor": 4.0, "original_max_position_embeddings": 16}

TINY_MODELS = {
    # q wider than hidden, untied head, bf16, adapter of odd rank on draft rows (key absent: the default)
    "wide_q": dict(hidden=24, layers=2, ff=48, heads=4, kv_heads=2, head_dim=16, adapter_rank=3, adapter_alpha=12, seed=1),
    # 3 heads on 1 kv head, head_dim 24, odd feed-forward width, tied head, bf16
    "three_heads": dict(hidden=20, layers=2, ff=45, heads=3, kv_heads=1, head_dim=24, tied=True, adapter_rank=3, trimode_rows="draft",
                        seed=2),
    # one layer, 6 heads on 2, f32 weights, names of the ports (model., lm_head), no adapter, short context
    "one_layer_f32": dict(hidden=16, layers=1, ff=36, heads=6, kv_heads=2, head_dim=8, dtype="F32", port_names=True, seed=3,
                          max_positions=48),
    # YaRN and the query scale at small positions; head_dim 32 so that fast, ramp and slow dimensions all exist
    "yarn": dict(hidden=28, layers=2, ff=40, heads=3, kv_heads=1, head_dim=32, tied=True, rope_theta=1000.0, yarn=YARN_SMALL,
                 query_beta=0.1, max_positions=64, adapter_rank=3, adapter_alpha=12, seed=4),
    # YaRN whose attention factor is not 1, no query scale
    "yarn_attention": dict(hidden=24, layers=1, ff=32, heads=2, kv_heads=2, head_dim=32, tied=True, rope_theta=500.0,
                           yarn={"factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 4.0, "mscale": 2.0}, seed=5),
    # the adapter on every block-pass row
    "rows_block": dict(hidden=24, layers=2, ff=32, heads=3, kv_heads=3, head_dim=8, tied=True, adapter_rank=4,
                       trimode_rows="block", seed=6),
}
