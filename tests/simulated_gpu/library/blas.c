/* cuBLAS and cuBLASLt: handles, one heuristic result, and every product counted as one launch. build.py makes
 * the remaining cublas* functions: each is a launch named after itself on its handle's stream. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <cublasLt.h>
#include <cublas_v2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cublasContext {
    void *stream;
    int math, pointer;
};

EXPORT cublasStatus_t cublasCreate_v2(cublasHandle_t *h)
{
    *h = calloc(1, sizeof **h);
    return 0;
}
EXPORT cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    free(h);
    return 0;
}
EXPORT cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s)
{
    h->stream = s;
    return 0;
}
EXPORT cublasStatus_t cublasGetStream_v2(cublasHandle_t h, cudaStream_t *s)
{
    *s = h->stream;
    return 0;
}
EXPORT cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *p, size_t n)
{
    (void)h;
    (void)p;
    (void)n;
    return 0;
}
EXPORT cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *m)
{
    *m = h->math;
    return 0;
}
EXPORT cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t m)
{
    h->math = m;
    return 0;
}
EXPORT cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *m)
{
    *m = h->pointer;
    return 0;
}
EXPORT cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t m)
{
    h->pointer = m;
    return 0;
}
EXPORT cublasStatus_t cublasSetSmCountTarget(cublasHandle_t h, int n)
{
    (void)h;
    (void)n;
    return 0;
}
EXPORT cublasStatus_t cublasGetVersion_v2(cublasHandle_t h, int *v)
{
    (void)h;
    *v = 130101;
    return 0;
}
int sim_blas(void *h, const char *name)
{
    return sim_launch(name, ((cublasHandle_t)h)->stream) ? CUBLAS_STATUS_EXECUTION_FAILED : 0;
}

static int product(cublasHandle_t h, const char *name, const void *a, const void *b, const void *c)
{
    if (sim_pointer(a, 0, 0, 0) != 2 || sim_pointer(b, 0, 0, 0) != 2 || sim_pointer(c, 0, 0, 0) != 2) {
        fprintf(stderr, "simgpu: %s of host memory\n", name);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return sim_blas(h, name);
}
static const char *type_name(cudaDataType t)
{
    return t == CUDA_R_16BF  ? "bf16"
           : t == CUDA_R_16F ? "f16"
           : t == CUDA_R_32F ? "f32"
           : t == CUDA_R_64F ? "f64"
                             : "?";
}
EXPORT cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
    const void *al, const void *a, cudaDataType at, int lda, const void *b, cudaDataType bt, int ldb, const void *be,
    void *c, cudaDataType ct, int ldc, cublasComputeType_t comp, cublasGemmAlgo_t algo)
{
    (void)ta;
    (void)tb;
    (void)m;
    (void)n;
    (void)k;
    (void)al;
    (void)lda;
    (void)bt;
    (void)ldb;
    (void)be;
    (void)ct;
    (void)ldc;
    (void)comp;
    (void)algo;
    char s[64];
    snprintf(s, sizeof s, "cublas:gemm[%s]", type_name(at));
    return product(h, s, a, b, c);
}
EXPORT cublasStatus_t cublasSgemm_v2(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
    const float *al, const float *a, int lda, const float *b, int ldb, const float *be, float *c, int ldc)
{
    (void)ta;
    (void)tb;
    (void)m;
    (void)n;
    (void)k;
    (void)al;
    (void)lda;
    (void)ldb;
    (void)be;
    (void)ldc;
    return product(h, "cublas:gemm[f32]", a, b, c);
}

#define BOX(T) calloc(1, sizeof(struct { uint64_t d[32]; }))
EXPORT size_t cublasLtGetVersion(void) { return 130101; }
EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t c, cudaDataType_t t)
{
    (void)c;
    (void)t;
    *d = BOX();
    return 0;
}
EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    free(d);
    return 0;
}
EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(
    cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void *p, size_t n)
{
    (void)d;
    (void)a;
    (void)p;
    (void)n;
    return 0;
}
EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t *d, cudaDataType t, uint64_t r, uint64_t c, int64_t ld)
{
    (void)r;
    (void)c;
    (void)ld;
    *d = BOX();
    *(int *)*d = t;
    return 0;
}
EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t d)
{
    free(d);
    return 0;
}
EXPORT cublasStatus_t cublasLtMatrixLayoutSetAttribute(
    cublasLtMatrixLayout_t d, cublasLtMatrixLayoutAttribute_t a, const void *p, size_t n)
{
    (void)d;
    (void)a;
    (void)p;
    (void)n;
    return 0;
}
EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *d)
{
    *d = BOX();
    return 0;
}
EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t d)
{
    free(d);
    return 0;
}
EXPORT cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t d, cublasLtMatmulPreferenceAttributes_t a, const void *p, size_t n)
{
    (void)d;
    (void)a;
    (void)p;
    (void)n;
    return 0;
}
EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t o,
    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t p, int n, cublasLtMatmulHeuristicResult_t *r, int *got)
{
    (void)h;
    (void)o;
    (void)a;
    (void)b;
    (void)c;
    (void)d;
    (void)p;
    *got = n > 0;
    if (n) {
        memset(r, 0, sizeof *r);
        r->state = 0;
        r->wavesCount = 1;
    }
    return 0;
}
EXPORT cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t o, const void *al, const void *a,
    cublasLtMatrixLayout_t ad, const void *b, cublasLtMatrixLayout_t bd, const void *be, const void *c,
    cublasLtMatrixLayout_t cd, void *d, cublasLtMatrixLayout_t dd, const cublasLtMatmulAlgo_t *algo, void *w, size_t wn,
    cudaStream_t s)
{
    (void)h;
    (void)o;
    (void)al;
    (void)bd;
    (void)be;
    (void)c;
    (void)cd;
    (void)dd;
    (void)algo;
    (void)w;
    (void)wn;
    if (sim_pointer(a, 0, 0, 0) != 2 || sim_pointer(b, 0, 0, 0) != 2 || sim_pointer(d, 0, 0, 0) != 2) {
        fprintf(stderr, "simgpu: cublasLtMatmul of host memory\n");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    char name[64];
    snprintf(name, sizeof name, "cublasLt:matmul[%s]", type_name(*(int *)ad));
    return sim_launch(name, s) ? CUBLAS_STATUS_EXECUTION_FAILED : 0;
}
