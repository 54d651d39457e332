// Which version of an op runs: a ladder of feature tests, each overriding the one before.
#include "ops.h"

void krn_ops_init(struct krn_ops *ret_ops, uint32_t features)
{
    struct krn_ops ops = {
        .linear_version = "ref",
        .attention_version = "ref",
        .linear = krn_linear_ref,
        .attention = krn_attention_ref,
        .rms_norm = krn_rms_norm_ref,
        .swiglu = krn_swiglu_ref,
        .add = krn_add_ref,
        .select = krn_select_ref,
    };
    (void)features;
#ifdef KRN_HAVE_AVX2
    if (features & KRN_CPU_AVX2) {
        ops.linear_version = "avx2";
        ops.attention_version = "avx2";
        ops.linear = krn_linear_avx2;
        ops.attention = krn_attention_avx2;
        ops.rms_norm = krn_rms_norm_avx2;
        ops.swiglu = krn_swiglu_avx2;
        ops.add = krn_add_avx2;
        ops.select = krn_select_avx2;
    }
#endif
#ifdef KRN_HAVE_AVX512
    if (features & KRN_CPU_AVX512) {
        ops.linear_version = "avx512";
        ops.attention_version = "avx512";
        ops.linear = krn_linear_avx512;
        ops.attention = krn_attention_avx512;
        ops.rms_norm = krn_rms_norm_avx512;
        ops.swiglu = krn_swiglu_avx512;
        ops.add = krn_add_avx512;
        ops.select = krn_select_avx512;
    }
#endif
    *ret_ops = ops;
}
