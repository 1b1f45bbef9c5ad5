/* Kernels that torch's own libraries register and launch. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

typedef struct Function {
    const void *host;
    const char *name;
    Entry *entry;
    struct Function *next;
} Function;
typedef struct Variable {
    const void *host;
    const char *name;
    size_t size;
    void *device[16];
    struct Variable *next;
} Variable;
#define FUNCTIONS (1 << 17)
static Function *functions[FUNCTIONS];
static Variable *variables;
static Function **slot(const void *f) { return &functions[((uintptr_t)f >> 4) * 11400714819323198485ull >> 47]; }

static Function *function(const void *f)
{
    Function *x = *slot(f);
    while (x && x->host != f) x = x->next;
    return x;
}

EXPORT void **__cudaRegisterFatBinary(void *b)
{
    (void)b;
    static void *handle;
    return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **h) { (void)h; }
EXPORT void __cudaUnregisterFatBinary(void **h) { (void)h; }
EXPORT char __cudaInitModule(void **h)
{
    (void)h;
    return 0;
}
EXPORT void __cudaRegisterFunction(
    void **h, const char *host, char *dev, const char *name, int limit, uint3 *t, uint3 *b, dim3 *bd, dim3 *gd, int *w)
{
    (void)h;
    (void)dev;
    (void)limit;
    (void)t;
    (void)b;
    (void)bd;
    (void)gd;
    (void)w;
    sim_lock();
    if (!function(host)) {
        Function *x = calloc(1, sizeof *x), **at = slot(host);
        x->host = host;
        x->name = name;
        x->next = *at;
        *at = x;
    }
    sim_unlock();
}
EXPORT void __cudaRegisterVar(
    void **h, char *host, char *dev, const char *name, int ext, size_t size, int constant, int global)
{
    (void)h;
    (void)dev;
    (void)ext;
    (void)constant;
    (void)global;
    sim_lock();
    Variable *v = calloc(1, sizeof *v);
    v->host = host;
    v->name = name;
    v->size = size;
    v->next = variables;
    variables = v;
    sim_unlock();
}
static void *variable(const void *host)
{
    for (Variable *v = variables; v; v = v->next)
        if (v->host == host) {
            if (!v->device[sim_device]) sim_alloc(&v->device[sim_device], v->size, sim_device);
            return v->device[sim_device];
        }
    return NULL;
}
EXPORT cudaError_t cudaGetSymbolAddress(void **p, const void *symbol)
{
    *p = variable(symbol);
    RET(*p ? 0 : cudaErrorInvalidSymbol);
}
EXPORT cudaError_t cudaMemcpyToSymbol(
    const void *symbol, const void *src, size_t n, size_t offset, enum cudaMemcpyKind k)
{
    (void)k;
    SAFE();
    char *p = variable(symbol);
    if (!p) RET(cudaErrorInvalidSymbol);
    memcpy((char *)sim_host_alias(p) + offset, sim_host_alias(src), n);
    return 0;
}

typedef struct Config {
    dim3 grid, block;
    size_t shared;
    void *stream;
} Config;
static __thread Config pushed[32];
static __thread int depth;
EXPORT unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t shared, void *stream)
{
    if (depth < 32) pushed[depth++] = (Config){g, b, shared, stream};
    return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *shared, void *stream)
{
    if (!depth) RET(cudaErrorMissingConfiguration);
    Config *c = &pushed[--depth];
    *g = c->grid;
    *b = c->block;
    *shared = c->shared;
    *(void **)stream = c->stream;
    return 0;
}

/* The one kernel that does its work: at::FillFunctor over a contiguous tensor (zeros, ones, full), so that
 * flags and counters start as they should. Arguments: int n, the value, one pointer. */
typedef struct Fill {
    size_t width, n;
    char value[16];
    char *to;
} Fill;
static void run_fill(void *data)
{
    Fill *f = data;
    char *p = sim_host_alias(f->to);
    static const char zero[16];
    if (!memcmp(f->value, zero, f->width)) {
        sim_memset(p, 0, f->n * f->width);
        return;
    }
    for (size_t i = 0; i < f->n; i++) memcpy(p + i * f->width, f->value, f->width);
}
static Fill *as_fill(const char *name, void **args)
{
    const char *t = strstr(name, "vectorized_elementwise_kernel") ? strstr(name, "FillFunctorI") : NULL;
    if (!t || !args) return NULL;
    t += 12;
    size_t width = *t == 'f' || *t == 'i'                                                              ? 4
                   : *t == 'd' || *t == 'l'                                                            ? 8
                   : *t == 'b' || *t == 'h' || *t == 'a'                                               ? 1
                   : *t == 's' || !strncmp(t, "N3c108BFloat16E", 15) || !strncmp(t, "N3c104HalfE", 11) ? 2
                                                                                                       : 0;
    if (!width) return NULL;
    Fill *f = calloc(1, sizeof *f);
    f->width = width;
    f->n = *(int *)args[0];
    memcpy(f->value, args[1], width);
    f->to = *(char **)args[2];
    return f;
}

static cudaError_t start(Function *f, dim3 g, dim3 b, size_t shared, cudaStream_t stream, void **args)
{
    if (!f) return cudaErrorInvalidDeviceFunction;
    cudaError_t e = sim_check_config(g.x, g.y, g.z, b.x, b.y, b.z);
    if (e || shared > 232448) return e ? e : cudaErrorInvalidValue;
    if (!f->entry) f->entry = sim_entry(f->name);
    Fill *fill = as_fill(f->name, args);
    if (!fill) return sim_submit(stream, (Node){.kind = KERNEL, .entry = f->entry}, f->name);
    if (sim_pointer(fill->to, NULL, NULL, NULL) != 2) return cudaErrorInvalidValue;
    e = sim_submit(stream, (Node){.kind = KERNEL, .entry = f->entry, .call = run_fill, .data = fill}, f->name);
    return e; /* `fill` may belong to a graph now and is not freed */
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f)
{
    *k = (cudaKernel_t)function(f);
    return *k ? 0 : cudaErrorInvalidDeviceFunction;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s)
{
    RET(start((Function *)k, g, b, shared, s, args));
}
/* A "function" is the host's stub or what __cudaGetKernel gave. */
static Function *any(const void *f)
{
    Function *x = function(f);
    if (x) return x;
    for (unsigned i = 0; f && i < FUNCTIONS; i++)
        for (x = functions[i]; x; x = x->next)
            if (x == f) return x;
    return NULL;
}
EXPORT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s)
{
    RET(start(any(f), g, b, shared, s, args));
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(
    const void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s)
{
    RET(start(any(f), g, b, shared, s, args));
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args)
{
    RET(start(any(f), c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream, args));
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f)
{
    if (!any(f)) RET(cudaErrorInvalidDeviceFunction);
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->ptxVersion = 90;
    a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = 49152;
    return 0;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v)
{
    (void)a;
    (void)v;
    RET(any(f) ? 0 : cudaErrorInvalidDeviceFunction);
}
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d)
{
    (void)k;
    (void)a;
    (void)v;
    (void)d;
    return 0;
}
static int blocks_for(int threads, size_t shared)
{
    int n = threads ? 2048 / threads : 1, m = (int)(233472 / (shared + 1024));
    if (n > 32) n = 32;
    if (m < n) n = m;
    return n;
}
int sim_blocks(int threads, size_t shared) { return blocks_for(threads, shared); }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads, size_t shared)
{
    (void)f;
    *n = blocks_for(threads, shared);
    return 0;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *f, int threads, size_t shared, unsigned flags)
{
    (void)f;
    (void)flags;
    *n = blocks_for(threads, shared);
    return 0;
}
