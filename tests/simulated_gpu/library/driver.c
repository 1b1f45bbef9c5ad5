/* The CUDA driver's functions that PyTorch, NVRTC users and Triton's launcher ask for. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

cudaError_t cudaStreamIsCapturing(cudaStream_t, enum cudaStreamCaptureStatus *);

static struct CUctx_st {
    int device;
} contexts[16];
static __thread CUcontext stack[32];
static __thread int top;
static CUcontext context(int d)
{
    contexts[d].device = d;
    return &contexts[d];
}
static CUresult as_driver(cudaError_t e) { return (CUresult)e; } /* the numbers used here are the same */

EXPORT CUresult cuInit(unsigned f)
{
    (void)f;
    return sim_num_devices() ? 0 : CUDA_ERROR_NO_DEVICE;
}
EXPORT CUresult cuDriverGetVersion(int *v)
{
    *v = 13000;
    return 0;
}
EXPORT CUresult cuDeviceGetCount(int *n)
{
    *n = sim_num_devices();
    return 0;
}
EXPORT CUresult cuDeviceGet(CUdevice *d, int i)
{
    if (i < 0 || i >= sim_num_devices()) return CUDA_ERROR_INVALID_DEVICE;
    *d = i;
    return 0;
}
EXPORT CUresult cuDeviceGetName(char *s, int n, CUdevice d)
{
    (void)d;
    snprintf(s, n, "NVIDIA H100 80GB HBM3 (simulated)");
    return 0;
}
EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *u, CUdevice d)
{
    memset(u, 0x40 + d, sizeof *u);
    return 0;
}
EXPORT CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice d)
{
    (void)d;
    *n = sim_capacity();
    return 0;
}
EXPORT CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d)
{
    return as_driver(sim_attribute(v, a, d));
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d)
{
    *c = context(d);
    return 0;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d)
{
    (void)d;
    return 0;
}
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active)
{
    (void)d;
    *flags = 0;
    *active = 1;
    return 0;
}
EXPORT CUresult cuCtxGetCurrent(CUcontext *c)
{
    *c = context(sim_device);
    return 0;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext c)
{
    if (c) sim_device = c->device;
    return 0;
}
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext c)
{
    if (top < 32) stack[top++] = context(sim_device);
    sim_device = c->device;
    return 0;
}
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *c)
{
    if (c) *c = context(sim_device);
    if (top) sim_device = stack[--top]->device;
    return 0;
}
EXPORT CUresult cuCtxSetLimit(CUlimit l, size_t n)
{
    (void)l;
    (void)n;
    return 0;
}
EXPORT CUresult cuCtxGetDevice(CUdevice *d)
{
    *d = sim_device;
    return 0;
}
EXPORT CUresult cuCtxSynchronize(void)
{
    cudaError_t e = sim_unsafe(__func__);
    if (e) return as_driver(e);
    sim_stats.device_syncs++;
    return 0;
}
EXPORT CUresult cuGetErrorString(CUresult e, const char **s)
{
    extern const char *cudaGetErrorString(cudaError_t);
    *s = cudaGetErrorString((cudaError_t)e);
    return 0;
}
EXPORT CUresult cuGetErrorName(CUresult e, const char **s)
{
    extern const char *cudaGetErrorName(cudaError_t);
    *s = cudaGetErrorName((cudaError_t)e);
    return 0;
}

/* ---- modules: cubins are read for their kernels' names, registers, shared memory and spills ---- */
struct CUmod_st {
    char *image;
    size_t size;
    int arch;
};
struct CUfunc_st {
    char *name;
    Entry *entry;
    int regs, shared, local, max_dynamic;
    struct CUmod_st *module;
};

static size_t image_size(const char *p)
{
    const Elf64_Ehdr *h = (const void *)p;
    size_t end = h->e_shoff + (size_t)h->e_shnum * h->e_shentsize;
    const Elf64_Shdr *s = (const void *)(p + h->e_shoff);
    for (int i = 0; i < h->e_shnum; i++)
        if (s[i].sh_type != SHT_NOBITS && s[i].sh_offset + s[i].sh_size > end) end = s[i].sh_offset + s[i].sh_size;
    size_t ph = h->e_phoff + (size_t)h->e_phnum * h->e_phentsize;
    return end > ph ? end : ph;
}

EXPORT CUresult cuModuleLoadData(CUmodule *m, const void *image)
{
    cudaError_t e = sim_unsafe(__func__);
    if (e) return as_driver(e);
    struct CUmod_st *x = calloc(1, sizeof *x);
    sim_stats.module_loads++;
    if (!memcmp(image, ELFMAG, 4)) {
        const Elf64_Ehdr *h = image;
        x->size = image_size(image);
        x->image = malloc(x->size);
        memcpy(x->image, image, x->size);
        x->arch = h->e_ident[EI_ABIVERSION] >= 8 ? (h->e_flags >> 8) & 0xff : h->e_flags & 0xff;
        if (x->arch != 90) {
            fprintf(stderr, "simgpu: a cubin for sm_%d (flags %x) loaded on sm_90\n", x->arch, h->e_flags);
            return CUDA_ERROR_NO_BINARY_FOR_GPU;
        }
    } /* PTX, fat binaries: nothing is known of them */
    *m = x;
    return 0;
}
EXPORT CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned n, CUjit_option *o, void **v)
{
    (void)n;
    (void)o;
    (void)v;
    return cuModuleLoadData(m, image);
}
EXPORT CUresult cuModuleLoad(CUmodule *m, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) return CUDA_ERROR_FILE_NOT_FOUND;
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    char *p = calloc(1, n + 1);
    rewind(f);
    if (fread(p, 1, n, f) != (size_t)n) n = 0;
    fclose(f);
    CUresult r = cuModuleLoadData(m, p);
    free(p);
    return r;
}
EXPORT CUresult cuModuleUnload(CUmodule m)
{
    (void)m;
    return 0;
}
EXPORT CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name)
{
    struct CUfunc_st *x = calloc(1, sizeof *x);
    char text[1024], shared[1024], full[1024];
    bool found = !m->image;
    snprintf(text, sizeof text, ".text.%s", name);
    snprintf(shared, sizeof shared, ".nv.shared.%s", name);
    snprintf(full, sizeof full, "drv:%s", name);
    x->name = strdup(name);
    x->module = m;
    x->regs = 32;
    x->max_dynamic = 49152;
    x->entry = sim_entry(full);
    if (m->image) {
        const Elf64_Ehdr *h = (const void *)m->image;
        const Elf64_Shdr *s = (const void *)(m->image + h->e_shoff);
        const char *names = m->image + s[h->e_shstrndx].sh_offset;
        unsigned symbol = 0;
        for (int i = 0; i < h->e_shnum; i++) {
            if (!strcmp(names + s[i].sh_name, text)) {
                found = true;
                x->regs = s[i].sh_info >> 24;
                symbol = s[i].sh_info & 0xffffff;
            }
            if (!strcmp(names + s[i].sh_name, shared)) x->shared = s[i].sh_size;
        }
        for (int i = 0; i < h->e_shnum; i++) { /* EIATTR_REGCOUNT 0x2f, EIATTR_FRAME_SIZE 0x11: (symbol, value) */
            if (strcmp(names + s[i].sh_name, ".nv.info")) continue;
            const unsigned char *p = (void *)(m->image + s[i].sh_offset), *end = p + s[i].sh_size;
            while (p + 4 <= end) {
                unsigned size = p[0] == 4 ? p[2] | p[3] << 8 : 0, v[2];
                if (p[0] == 4 && size == 8 && (p[1] == 0x2f || p[1] == 0x11)) {
                    memcpy(v, p + 4, 8);
                    if (v[0] == symbol) {
                        if (p[1] == 0x2f)
                            x->regs = v[1];
                        else
                            x->local = v[1];
                    }
                }
                p += 4 + size;
            }
        }
    }
    if (!found) {
        fprintf(stderr, "simgpu: no kernel %s in the module\n", name);
        free(x);
        return CUDA_ERROR_NOT_FOUND;
    }
    *f = x;
    return 0;
}
EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr *p, size_t *n, CUmodule m, const char *name)
{
    (void)p;
    (void)n;
    (void)m;
    (void)name;
    return CUDA_ERROR_NOT_FOUND;
}
EXPORT CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f)
{
    switch (a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *v = f->regs * 1024 <= 65536 ? 1024 : 65536 / (f->regs ? f->regs : 1) / 32 * 32;
        break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        *v = f->shared;
        break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        *v = f->local;
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *v = f->regs;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *v = 90;
        break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *v = f->max_dynamic;
        break;
    default:
        *v = 0;
    }
    return 0;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v)
{
    // Of others it knows nothing: Triton asks for a newer way to more shared memory first.
    if (a != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    if (v + f->shared > 232448) return CUDA_ERROR_INVALID_VALUE;
    f->max_dynamic = v;
    return 0;
}
EXPORT CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c)
{
    (void)f;
    (void)c;
    return 0;
}
EXPORT CUresult cuFuncGetName(const char **s, CUfunction f)
{
    *s = f->name;
    return 0;
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int threads, size_t shared)
{
    (void)f;
    *n = sim_blocks(threads, shared);
    return 0;
}
EXPORT CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c)
{
    (void)f;
    (void)c;
    *n = 66;
    return 0;
}

static CUresult launch(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared, CUstream s)
{
    cudaError_t e = sim_check_config(gx, gy, gz, bx, by, bz);
    if (e) return CUDA_ERROR_INVALID_VALUE;
    if (shared > (unsigned)f->max_dynamic) {
        fprintf(
            stderr, "simgpu: %s wants %u bytes of shared memory, allowed are %d\n", f->name, shared, f->max_dynamic);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if ((f->regs + 7) / 8 * 8 * bx * by * bz > 65536) {
        fprintf(stderr, "simgpu: %s needs too many registers\n", f->name);
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    }
    return as_driver(sim_submit(s, (Node){.kind = KERNEL, .entry = f->entry}, f->name));
}
EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
    unsigned bz, unsigned shared, CUstream s, void **p, void **x)
{
    (void)p;
    (void)x;
    return launch(f, gx, gy, gz, bx, by, bz, shared, s);
}
EXPORT CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
    unsigned bz, unsigned shared, CUstream s, void **p)
{
    (void)p;
    return launch(f, gx, gy, gz, bx, by, bz, shared, s);
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **p, void **x)
{
    (void)p;
    (void)x;
    return launch(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes,
        c->hStream);
}
EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap *t, CUtensorMapDataType d, cuuint32_t r, void *a,
    const cuuint64_t *g, const cuuint64_t *s, const cuuint32_t *b, const cuuint32_t *e, CUtensorMapInterleave i,
    CUtensorMapSwizzle w, CUtensorMapL2promotion l, CUtensorMapFloatOOBfill o)
{
    (void)d;
    (void)r;
    (void)a;
    (void)g;
    (void)s;
    (void)b;
    (void)e;
    (void)i;
    (void)w;
    (void)l;
    (void)o;
    memset(t, 0, sizeof *t);
    return 0;
}

EXPORT CUresult cuPointerGetAttribute(void *out, CUpointer_attribute a, CUdeviceptr p)
{
    int d;
    void *base;
    size_t size;
    int kind = sim_pointer((void *)p, &d, &base, &size);
    if (!kind) return CUDA_ERROR_INVALID_VALUE; /* Triton: "cannot be accessed from Triton (cpu tensor?)" */
    switch (a) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)out = context(d);
        break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)out = kind == 2 ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)out = p;
        break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (kind == 2) return CUDA_ERROR_INVALID_VALUE;
        *(void **)out = (void *)p;
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)out = d;
        break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(void **)out = base;
        break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)out = size;
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    return 0;
}
EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr *b, size_t *n, CUdeviceptr p)
{
    int d;
    void *base;
    size_t size;
    if (!sim_pointer((void *)p, &d, &base, &size)) return CUDA_ERROR_INVALID_VALUE;
    if (b) *b = (CUdeviceptr)base;
    if (n) *n = size;
    return 0;
}
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n)
{
    cudaError_t e = sim_unsafe(__func__);
    return as_driver(e ? e : sim_alloc((void **)p, n, sim_device));
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr p)
{
    cudaError_t e = sim_unsafe(__func__);
    return as_driver(e ? e : sim_free((void *)p));
}
EXPORT CUresult cuStreamSynchronize(CUstream s)
{
    cudaError_t e = sim_wait_on(s, __func__);
    if (!e) sim_stats.stream_syncs++;
    return as_driver(e);
}
EXPORT CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *st)
{
    return as_driver(cudaStreamIsCapturing(s, (enum cudaStreamCaptureStatus *)st));
}
EXPORT CUresult cuStreamGetCtx(CUstream s, CUcontext *c)
{
    *c = context(sim_stream(s)->device);
    return 0;
}
EXPORT CUresult cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s)
{
    (void)p;
    (void)v;
    (void)n;
    return as_driver(sim_launch("memset", s));
}

void *sim_driver_function(const char *name, int version)
{
    char full[256];
    (void)version; /* the newest ABI of each, as a program compiled for CUDA 13 asks for */
    void *f = NULL;
    for (int v = 3; v >= 2 && !f; v--) {
        snprintf(full, sizeof full, "%s_v%d", name, v);
        f = sim_symbol(full);
    }
    return f ? f : sim_symbol(name);
}
EXPORT CUresult cuGetProcAddress_v2(
    const char *name, void **f, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *st)
{
    (void)flags;
    *f = sim_driver_function(name, version);
    if (st) *st = *f ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *f ? 0 : CUDA_ERROR_NOT_FOUND;
}
