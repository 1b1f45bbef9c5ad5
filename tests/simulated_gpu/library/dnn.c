/* cuDNN. The backend API keeps attributes as given and answers each heuristic with one engine without knobs; what a
 * plan computes is remembered by name (kind, data type, layout) and counted as one launch. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <cudnn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cudnnContext {
    void *stream;
};
static long long workspace(void)
{
    static long long n = -1;
    if (n < 0) {
        const char *s = getenv("SIMGPU_CUDNN_WORKSPACE");
        n = s ? atoll(s) : 1 << 20;
    }
    return n;
}

EXPORT cudnnStatus_t cudnnCreate(cudnnHandle_t *h)
{
    *h = calloc(1, sizeof **h);
    return 0;
}
EXPORT cudnnStatus_t cudnnDestroy(cudnnHandle_t h)
{
    free(h);
    return 0;
}
EXPORT cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s)
{
    h->stream = s;
    return 0;
}
EXPORT cudnnStatus_t cudnnGetStream(cudnnHandle_t h, cudaStream_t *s)
{
    *s = h->stream;
    return 0;
}
EXPORT size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
EXPORT size_t cudnnGetCudartVersion(void) { return 13000; }
EXPORT cudnnStatus_t cudnnGetProperty(libraryPropertyType t, int *v)
{
    *v = t == 0 ? CUDNN_MAJOR : t == 1 ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
    return 0;
}
EXPORT const char *cudnnGetErrorString(cudnnStatus_t s)
{
    static __thread char t[40];
    snprintf(t, sizeof t, "simulated cuDNN status %d", s);
    return t;
}
EXPORT void cudnnGetLastErrorString(char *s, size_t n)
{
    if (n) *s = 0;
}
int sim_dnn(void *h, const char *name)
{
    return sim_launch(name, ((cudnnHandle_t)h)->stream) ? CUDNN_STATUS_EXECUTION_FAILED : 0;
}

typedef struct Attr {
    int name, type;
    int64_t count;
    void *bytes;
    struct Attr *next;
} Attr;
typedef struct Desc {
    int type;
    char what[120];
    Attr *attrs;
} Desc;
static size_t size_of(int type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
        return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case CUDNN_TYPE_FRACTION:
        return 16;
    default:
        return 4;
    }
}
static Attr *get(Desc *d, int name)
{
    for (Attr *a = d->attrs; a; a = a->next)
        if (a->name == name) return a;
    return NULL;
}
static void put(Desc *d, int name, int type, int64_t n, const void *p)
{
    Attr *a = get(d, name);
    if (!a) {
        a = calloc(1, sizeof *a);
        a->name = name;
        a->next = d->attrs;
        d->attrs = a;
    }
    free(a->bytes);
    a->type = type;
    a->count = n;
    a->bytes = malloc(n * size_of(type) + 1);
    memcpy(a->bytes, p, n * size_of(type));
}
static Desc *child(Desc *d, int name)
{
    Attr *a = get(d, name);
    return a && a->count ? *(Desc **)a->bytes : NULL;
}

static void tensor_name(Desc *t, char *s, size_t n)
{
    Attr *type = t ? get(t, CUDNN_ATTR_TENSOR_DATA_TYPE) : NULL,
         *strides = t ? get(t, CUDNN_ATTR_TENSOR_STRIDES) : NULL,
         *dims = t ? get(t, CUDNN_ATTR_TENSOR_DIMENSIONS) : NULL;
    int k = type ? *(int *)type->bytes : -1;
    const char *layout = "?";
    if (strides && dims && strides->count >= 4) {
        int64_t *st = strides->bytes, *d = dims->bytes;
        layout = st[1] == 1 && !(d[2] * d[3] == 1) ? "nhwc" : st[3] == 1 && d[1] > 1 ? "nchw" : "either";
    }
    snprintf(s, n, "%s,%s",
        k == CUDNN_DATA_BFLOAT16 ? "bf16"
        : k == CUDNN_DATA_HALF   ? "f16"
        : k == CUDNN_DATA_FLOAT  ? "f32"
        : k == CUDNN_DATA_DOUBLE ? "f64"
                                 : "?",
        layout);
}
static void operation_name(Desc *op, char *s, size_t n)
{
    char x[40];
    switch (op->type) {
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
        tensor_name(child(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X), x, sizeof x);
        snprintf(s, n, "cudnn:conv_forward[%s]", x);
        break;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
        tensor_name(child(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY), x, sizeof x);
        snprintf(s, n, "cudnn:conv_backward_data[%s]", x);
        break;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR:
        tensor_name(child(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X), x, sizeof x);
        snprintf(s, n, "cudnn:conv_backward_filter[%s]", x);
        break;
    default:
        snprintf(s, n, "cudnn:operation_%d", op->type);
    }
}

EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t t, cudnnBackendDescriptor_t *d)
{
    Desc *x = calloc(1, sizeof *x);
    x->type = t;
    *d = x;
    return 0;
}
EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d)
{
    Desc *x = d;
    for (Attr *a = x->attrs, *next; a; a = next) {
        next = a->next;
        free(a->bytes);
        free(a);
    }
    free(x);
    return 0;
}
EXPORT cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
    cudnnBackendAttributeType_t type, int64_t n, const void *p)
{
    put(d, name, type, n, p);
    return 0;
}
static void inherit(Desc *d, int from)
{
    Desc *o = child(d, from);
    if (o) memcpy(d->what, o->what, sizeof d->what);
}
EXPORT cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t h)
{
    Desc *d = h, *op;
    switch (d->type) {
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
        if ((op = child(d, CUDNN_ATTR_OPERATIONGRAPH_OPS))) operation_name(op, d->what, sizeof d->what);
        break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
        inherit(d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
        break;
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
        inherit(d, CUDNN_ATTR_ENGINE_OPERATION_GRAPH);
        break;
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
        inherit(d, CUDNN_ATTR_ENGINECFG_ENGINE);
        break;
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        inherit(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
        break;
    }
    return 0;
}
EXPORT cudnnStatus_t cudnnBackendGetAttribute(const cudnnBackendDescriptor_t h, cudnnBackendAttributeName_t name,
    cudnnBackendAttributeType_t type, int64_t wanted, int64_t *n, void *p)
{
    Desc *d = (Desc *)h;
    int64_t dummy, number = -1;
    if (!n) n = &dummy;
    switch ((int)name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: /* the caller made the descriptors */
        *n = 1;
        if (p && wanted) memcpy((*(Desc **)p)->what, d->what, sizeof d->what);
        return 0;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
    case CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG:
        *n = 1;
        if (p && wanted && *(Desc **)p) memcpy((*(Desc **)p)->what, d->what, sizeof d->what);
        return 0;
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
        number = 1;
        break;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        number = 0;
        break;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
        number = workspace();
        break;
    }
    if (number >= 0) {
        *n = 1;
        if (p && wanted) *(int64_t *)p = number;
        return 0;
    }
    Attr *a = get(d, name);
    *n = a ? a->count : 0;
    if (a && p && wanted) memcpy(p, a->bytes, (a->count < wanted ? a->count : wanted) * size_of(type));
    return 0;
}
EXPORT cudnnStatus_t cudnnBackendExecute(cudnnHandle_t h, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack)
{
    Attr *a = get(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    for (int64_t i = 0; a && i < a->count; i++) {
        void *p = ((void **)a->bytes)[i];
        int device = -1;
        if (p && (sim_pointer(p, &device, 0, 0) != 2 || device != sim_device)) {
            fprintf(
                stderr, "simgpu: %s: tensor %ld at %p is not on device %d\n", ((Desc *)plan)->what, i, p, sim_device);
            return CUDNN_STATUS_BAD_PARAM;
        }
    }
    return sim_dnn(h, ((Desc *)plan)->what);
}

/* Sizes that callers allocate by must be set. */
EXPORT cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(cudnnHandle_t h, cudnnBatchNormMode_t m,
    cudnnBatchNormOps_t o, const cudnnTensorDescriptor_t x, const cudnnTensorDescriptor_t z,
    const cudnnTensorDescriptor_t y, const cudnnTensorDescriptor_t s, const cudnnActivationDescriptor_t a, size_t *n)
{
    (void)h;
    (void)m;
    (void)o;
    (void)x;
    (void)z;
    (void)y;
    (void)s;
    (void)a;
    *n = workspace();
    return 0;
}
EXPORT cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(cudnnHandle_t h, cudnnBatchNormMode_t m,
    cudnnBatchNormOps_t o, const cudnnTensorDescriptor_t x, const cudnnTensorDescriptor_t y,
    const cudnnTensorDescriptor_t dy, const cudnnTensorDescriptor_t dz, const cudnnTensorDescriptor_t dx,
    const cudnnTensorDescriptor_t s, const cudnnActivationDescriptor_t a, size_t *n)
{
    (void)h;
    (void)m;
    (void)o;
    (void)x;
    (void)y;
    (void)dy;
    (void)dz;
    (void)dx;
    (void)s;
    (void)a;
    *n = workspace();
    return 0;
}
EXPORT cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(cudnnHandle_t h, cudnnBatchNormMode_t m,
    cudnnBatchNormOps_t o, const cudnnActivationDescriptor_t a, const cudnnTensorDescriptor_t x, size_t *n)
{
    (void)h;
    (void)m;
    (void)o;
    (void)a;
    (void)x;
    *n = 0;
    return 0;
}
