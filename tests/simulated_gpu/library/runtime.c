/* The CUDA runtime's functions that PyTorch asks for. What is not here is an empty stub made by build.py. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct CUstream_st *sim_new_stream(unsigned flags, int priority);
int sim_exchange_mode(int mode);
cudaError_t sim_wait_on(const void *stream, const char *api);
cudaError_t sim_begin_capture(const void *stream, int mode, Graph *into);
cudaError_t sim_end_capture(const void *stream, Graph **out);
cudaError_t sim_record(struct CUevent_st *e, const void *stream, bool external);
cudaError_t sim_wait_event(const void *stream, struct CUevent_st *e, bool external);
cudaError_t sim_ask_event(struct CUevent_st *e, const char *api);
cudaError_t sim_launch_graph(Graph *g, const void *stream);
double sim_now(void);
void sim_drop_graph(Graph *g);
void sim_note_host(void *p, size_t size);
bool sim_forget_host(void *p);
long long sim_capacity(void);

static __thread cudaError_t last;
static cudaError_t ret(cudaError_t e, const char *api)
{
    if (e) {
        last = e;
        if (sim_log()) fprintf(stderr, "simgpu: %s returns %d\n", api, e);
    }
    return e;
}
#define RET(x) return ret((x), __func__)
#define SAFE()                                                                                                         \
    do {                                                                                                               \
        cudaError_t e_ = sim_unsafe(__func__);                                                                         \
        if (e_) RET(e_);                                                                                               \
    } while (0)

/* ---- kernels ---- */
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
void sim_memset(char *p, int value, size_t n);
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

/* ---- devices ---- */
#define MIB (1 << 20)
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d)
{
    if (d < 0 || d >= sim_num_devices()) RET(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    strcpy(p->name, "NVIDIA H100 80GB HBM3 (simulated)");
    memset(&p->uuid, 0x40 + d, sizeof p->uuid);
    p->totalGlobalMem = sim_capacity();
    p->sharedMemPerBlock = 49152;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->memPitch = 2147483647;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = 9;
    p->minor = 0;
    p->textureAlignment = 512;
    p->texturePitchAlignment = 32;
    p->multiProcessorCount = 132;
    p->canMapHostMemory = 1;
    p->concurrentKernels = 1;
    p->ECCEnabled = 1;
    p->pciBusID = 0x10 + d;
    p->asyncEngineCount = 3;
    p->unifiedAddressing = 1;
    p->memoryBusWidth = 5120;
    p->l2CacheSize = 50 * MIB;
    p->persistingL2CacheMaxSize = 32 * MIB;
    p->maxThreadsPerMultiProcessor = 2048;
    p->streamPrioritiesSupported = 1;
    p->globalL1CacheSupported = p->localL1CacheSupported = 1;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerMultiprocessor = 65536;
    p->managedMemory = 1;
    p->concurrentManagedAccess = p->computePreemptionSupported = p->canUseHostPointerForRegisteredMem =
        p->cooperativeLaunch = 1;
    p->sharedMemPerBlockOptin = 232448;
    p->maxBlocksPerMultiProcessor = 32;
    p->accessPolicyMaxWindowSize = 128 * MIB;
    p->reservedSharedMemPerBlock = 1024;
    p->hostRegisterSupported = 1;
    p->memoryPoolsSupported = 1;
    p->clusterLaunch = 1;
    p->unifiedFunctionPointers = 1;
    p->hostNumaId = -1;
    return 0;
}
cudaError_t sim_attribute(int *v, int a, int d)
{
    struct cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, d);
    if (e) return e;
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
        *v = 1024;
        break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
        *v = 1024;
        break;
    case cudaDevAttrMaxBlockDimZ:
        *v = 64;
        break;
    case cudaDevAttrMaxGridDimX:
        *v = 2147483647;
        break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        *v = 65535;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *v = 49152;
        break;
    case cudaDevAttrTotalConstantMemory:
        *v = 65536;
        break;
    case cudaDevAttrWarpSize:
        *v = 32;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
        *v = 65536;
        break;
    case cudaDevAttrClockRate:
        *v = 1980000;
        break;
    case cudaDevAttrMemoryClockRate:
        *v = 2619000;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *v = 5120;
        break;
    case cudaDevAttrL2CacheSize:
        *v = 50 * MIB;
        break;
    case cudaDevAttrTextureAlignment:
        *v = 512;
        break;
    case cudaDevAttrMultiProcessorCount:
        *v = 132;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *v = 2048;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *v = 233472;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *v = 232448;
        break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
        *v = 1024;
        break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        *v = 32;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *v = 9;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *v = 0;
        break;
    case cudaDevAttrAsyncEngineCount:
        *v = 3;
        break;
    case cudaDevAttrPciBusId:
        *v = 0x10 + d;
        break;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrClusterLaunch:
    case cudaDevAttrEccEnabled:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrComputePreemptionSupported:
        *v = 1;
        break;
    default:
        *v = 0;
    }
    return 0;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { RET(sim_attribute(v, a, d)); }
EXPORT cudaError_t cudaGetDeviceCount(int *n)
{
    *n = sim_num_devices();
    RET(*n ? 0 : cudaErrorNoDevice);
}
EXPORT cudaError_t cudaGetDevice(int *d)
{
    *d = sim_device;
    return 0;
}
EXPORT cudaError_t cudaSetDevice(int d)
{
    if (d < 0 || d >= sim_num_devices()) RET(cudaErrorInvalidDevice);
    sim_device = d;
    return 0;
}
EXPORT cudaError_t cudaDriverGetVersion(int *v)
{
    *v = 13000;
    return 0;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = 13000;
    return 0;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *v, int a, int b)
{
    *v = a != b;
    return 0;
}
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int d, unsigned f)
{
    (void)d;
    (void)f;
    return 0;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d)
{
    snprintf(s, n, "0000:%02X:00.0", 0x10 + d);
    return 0;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return 0;
}
EXPORT cudaError_t cudaDeviceSynchronize(void)
{
    SAFE();
    sim_stats.device_syncs++;
    return 0;
}
EXPORT cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last;
    last = 0;
    return e;
}
EXPORT cudaError_t cudaPeekAtLastError(void) { return last; }
EXPORT const char *cudaGetErrorName(cudaError_t e)
{
    static __thread char s[40];
    snprintf(s, sizeof s, "cudaError_%d", e);
    return e ? s : "cudaSuccess";
}
EXPORT const char *cudaGetErrorString(cudaError_t e)
{
    static __thread char s[60];
    switch ((int)e) {
    case 0:
        return "no error";
    case 1:
        return "invalid argument";
    case 2:
        return "out of memory";
    case 9:
        return "invalid configuration argument";
    case 98:
        return "invalid device function";
    case 100:
        return "no CUDA-capable device is detected";
    case 101:
        return "invalid device ordinal";
    case 400:
        return "invalid resource handle";
    case 600:
        return "device not ready";
    case 801:
        return "operation not supported";
    case 900:
        return "operation not permitted when stream is capturing";
    case 901:
        return "operation failed due to a previous error during capture";
    case 902:
        return "stream capture sequence cannot be merged";
    case 903:
        return "capture was not initiated in this stream";
    case 904:
        return "capturing stream has unjoined work";
    case 905:
        return "dependency created on uncaptured work in another stream";
    case 906:
        return "operation would make the legacy stream depend on a capturing blocking stream";
    case 907:
        return "operation not permitted on an event last recorded in a capturing stream";
    case 908:
        return "attempt to terminate a thread-local capture sequence from another thread";
    }
    snprintf(s, sizeof s, "simulated CUDA error %d", e);
    return s;
}
EXPORT cudaError_t cudaProfilerStart(void) { return 0; }
EXPORT cudaError_t cudaProfilerStop(void) { return 0; }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **f, unsigned version,
    unsigned long long flags, enum cudaDriverEntryPointQueryResult *status)
{
    extern void *sim_driver_function(const char *name, int version);
    (void)flags;
    *f = sim_driver_function(symbol, version);
    if (status) *status = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    if (!*f && sim_log()) fprintf(stderr, "simgpu: no driver function %s\n", symbol);
    return 0;
}

/* ---- memory ---- */
EXPORT cudaError_t cudaMalloc(void **p, size_t n)
{
    SAFE();
    RET(sim_alloc(p, n, sim_device));
}
EXPORT cudaError_t cudaFree(void *p)
{
    SAFE();
    RET(sim_free(p));
}
EXPORT cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s)
{
    (void)s;
    RET(sim_alloc(p, n, sim_device));
}
EXPORT cudaError_t cudaFreeAsync(void *p, cudaStream_t s)
{
    (void)s;
    RET(sim_free(p));
}
EXPORT cudaError_t cudaMemGetInfo(size_t *avail, size_t *total)
{
    *total = sim_capacity();
    *avail = *total - sim_stats.live_bytes[sim_device];
    return 0;
}
EXPORT cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags)
{
    (void)flags;
    SAFE();
    if (posix_memalign(p, 4096, n ? n : 1)) RET(cudaErrorMemoryAllocation);
    sim_note_host(*p, n);
    return 0;
}
EXPORT cudaError_t cudaFreeHost(void *p)
{
    SAFE();
    if (p && !sim_forget_host(p)) RET(cudaErrorInvalidValue);
    free(p);
    return 0;
}
EXPORT cudaError_t cudaHostRegister(void *p, size_t n, unsigned f)
{
    (void)f;
    SAFE();
    sim_note_host(p, n);
    return 0;
}
EXPORT cudaError_t cudaHostUnregister(void *p)
{
    SAFE();
    RET(sim_forget_host(p) ? 0 : cudaErrorHostMemoryNotRegistered);
}
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    int d = -2, kind = sim_pointer(p, &d, NULL, NULL);
    memset(a, 0, sizeof *a);
    a->type = kind;
    a->device = kind ? d : -2; /* 0 unregistered, 1 host, 2 device: the same numbers */
    a->devicePointer = kind ? (void *)p : NULL;
    a->hostPointer = kind == 2 ? NULL : (void *)p;
    return 0;
}
static cudaError_t known(const void *p, size_t n, const char *what)
{
    void *base;
    size_t size;
    int d;
    if (!n || sim_host_alias(p) == p) return 0; /* host memory is not checked */
    if (sim_pointer(p, &d, &base, &size) && (char *)p + n <= (char *)base + size) return 0;
    fprintf(stderr, "simgpu: %s of %zu bytes at %p leaves the allocation\n", what, n, p);
    return cudaErrorInvalidValue;
}
static cudaError_t copy(
    void *d, size_t pd, const void *s, size_t ps, size_t w, size_t h, cudaStream_t stream, const char *what)
{
    if (!w || !h) return 0;
    bool from = sim_host_alias(s) != s, to = sim_host_alias(d) != d;
    cudaError_t e = known(d, pd * (h - 1) + w, what);
    if (!e) e = known(s, ps * (h - 1) + w, what);
    if (e) return e;
    if (from && to)
        sim_stats.d2d++;
    else if (from)
        sim_stats.d2h++;
    else if (to)
        sim_stats.h2d++;
    else
        sim_stats.h2h++;
    return sim_submit(stream,
        (Node){.kind = MEMCPY,
            .entry = sim_entry(from && to ? "memcpy DtoD"
                               : from     ? "memcpy DtoH"
                                          : "memcpy HtoD"),
            .dst = d,
            .src = s,
            .size = w,
            .height = h,
            .pitch_dst = pd,
            .pitch_src = ps},
        what);
}
EXPORT cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k)
{
    (void)k;
    SAFE();
    sim_stats.sync_memcpys++;
    RET(copy(d, n, s, n, n, 1, 0, __func__));
}
EXPORT cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t)
{
    (void)k;
    RET(copy(d, n, s, n, n, 1, t, __func__));
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *d, int dd, const void *s, int sd, size_t n, cudaStream_t t)
{
    (void)dd;
    (void)sd;
    RET(copy(d, n, s, n, n, 1, t, __func__));
}
EXPORT cudaError_t cudaMemcpy2DAsync(
    void *d, size_t pd, const void *s, size_t ps, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t t)
{
    (void)k;
    RET(copy(d, pd, s, ps, w, h, t, __func__));
}
static cudaError_t fill(void *p, int v, size_t n, cudaStream_t t, const char *what)
{
    if (!n) return 0;
    cudaError_t e = known(p, n, what);
    sim_stats.memsets++;
    return e ? e
             : sim_submit(
                   t, (Node){.kind = MEMSET, .entry = sim_entry("memset"), .dst = p, .value = v, .size = n}, what);
}
EXPORT cudaError_t cudaMemset(void *p, int v, size_t n)
{
    SAFE();
    RET(fill(p, v, n, 0, __func__));
}
EXPORT cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t t) { RET(fill(p, v, n, t, __func__)); }
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d)
{
    static char pools[16];
    *p = (void *)&pools[d];
    return 0;
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v)
{
    (void)p;
    (void)a;
    *(uint64_t *)v = 0;
    return 0;
}
EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v)
{
    (void)p;
    (void)a;
    (void)v;
    return 0;
}
EXPORT cudaError_t cudaDeviceGetGraphMemAttribute(int d, enum cudaGraphMemAttributeType a, void *v)
{
    (void)d;
    (void)a;
    *(uint64_t *)v = 0;
    return 0;
}

/* ---- streams and events ---- */
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int prio)
{
    *s = sim_new_stream(flags, prio);
    return 0;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    *s = sim_new_stream(flags, 0);
    return 0;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    *s = sim_new_stream(0, 0);
    return 0;
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    (void)s;
    return 0;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p)
{
    *p = sim_stream(s)->priority;
    return 0;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    cudaError_t e = sim_wait_on(s, __func__);
    if (e) RET(e);
    sim_stats.stream_syncs++;
    return 0;
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s)
{
    cudaError_t e = sim_wait_on(s, __func__);
    if (e) RET(e);
    sim_stats.stream_queries++;
    return 0;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    RET(sim_wait_event(s, e, flags & cudaEventWaitExternal));
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    *e = calloc(1, sizeof **e);
    (*e)->flags = flags;
    (*e)->device = sim_device;
    return 0;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    if (e) {
        free(e->deps);
        free(e);
    }
    return 0;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { RET(sim_record(e, s, false)); }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags)
{
    RET(sim_record(e, s, flags & cudaEventRecordExternal));
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e)
{
    cudaError_t r = sim_ask_event(e, __func__);
    if (r) RET(r);
    sim_stats.event_queries++;
    return 0;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    cudaError_t r = sim_ask_event(e, __func__);
    if (r) RET(r);
    sim_stats.event_syncs++;
    return 0;
}
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    if (!a->recorded || !b->recorded || (a->flags & cudaEventDisableTiming) || (b->flags & cudaEventDisableTiming))
        RET(cudaErrorInvalidResourceHandle);
    double d = b->ms - a->ms;
    *ms = d > 1e-3 ? d : 1e-3; /* the host's time between the two calls */
    return 0;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data)
{
    RET(sim_submit(s, (Node){.kind = HOST_FUNCTION, .call = f, .data = data}, __func__));
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *data, unsigned flags)
{
    (void)flags;
    f(s, 0, data);
    return 0;
}

/* ---- capture and graphs ---- */
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m)
{
    *m = sim_exchange_mode(*m);
    return 0;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m)
{
    RET(sim_begin_capture(s, m, NULL));
}
EXPORT cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t s, cudaGraph_t g, const cudaGraphNode_t *d,
    const cudaGraphEdgeData *dd, size_t n, enum cudaStreamCaptureMode m)
{
    (void)d;
    (void)dd;
    (void)n;
    RET(sim_begin_capture(s, m, (Graph *)g));
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { RET(sim_end_capture(s, (Graph **)g)); }
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t h, enum cudaStreamCaptureStatus *st)
{
    struct CUstream_st *s = sim_stream(h);
    *st = !s->capture           ? cudaStreamCaptureStatusNone
          : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                : cudaStreamCaptureStatusActive;
    return 0;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t h, enum cudaStreamCaptureStatus *st, unsigned long long *id,
    cudaGraph_t *g, const cudaGraphNode_t **deps, const cudaGraphEdgeData **ed, size_t *n)
{
    struct CUstream_st *s = sim_stream(h);
    cudaStreamIsCapturing(h, st);
    if (!s->capture) return 0;
    if (id) *id = s->capture->id;
    if (g) *g = (cudaGraph_t)s->capture->graph;
    if (deps) *deps = (const cudaGraphNode_t *)s->deps;
    if (ed) *ed = NULL;
    if (n) *n = s->num_deps;
    return 0;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n)
{
    Graph *x = (Graph *)g;
    if (nodes) {
        if (*n > x->num) *n = x->num;
        memcpy(nodes, x->nodes, *n * sizeof *nodes);
    } else
        *n = x->num;
    return 0;
}
EXPORT cudaError_t cudaGraphNodeGetDependencies(
    cudaGraphNode_t node, cudaGraphNode_t *deps, cudaGraphEdgeData *ed, size_t *n)
{
    Node *x = (Node *)node;
    (void)ed;
    if (deps) memcpy(deps, x->deps, (*n < x->num_deps ? *n : x->num_deps) * sizeof *deps);
    *n = x->num_deps;
    return 0;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags)
{
    (void)flags;
    SAFE();
    ((Graph *)g)->refs++;
    *e = (cudaGraphExec_t)g;
    sim_stats.graph_instantiations++;
    return 0;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { RET(sim_launch_graph((Graph *)e, s)); }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    sim_drop_graph((Graph *)g);
    return 0;
} /* nodes are not freed */
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    sim_drop_graph((Graph *)e);
    return 0;
}
EXPORT cudaError_t cudaUserObjectCreate(
    cudaUserObject_t *o, void *p, cudaHostFn_t destroy, unsigned refs, unsigned flags)
{
    (void)destroy;
    (void)refs;
    (void)flags;
    *o = p;
    return 0;
}
EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned n, unsigned flags)
{
    (void)g;
    (void)o;
    (void)n;
    (void)flags;
    return 0;
}
EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t o, unsigned n)
{
    (void)o;
    (void)n;
    return 0;
}
