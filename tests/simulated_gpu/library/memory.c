/* Device memory, and the runtime's functions of it.
 *
 * It is host memory seen through two reservations of equal size: the addresses that programs get are PROT_NONE, so that
 * host code that follows a device pointer dies as it would with a real GPU; the bytes lie a constant distance away, and
 * only copies and fills of this library touch them. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define VA_PER_DEVICE (256ULL << 30)
#define GRAIN 512ULL

static char *device_base, *alias_base;
static size_t reserved;
static long long capacity;

/* Called once, before anything else here. `gib`: the memory of each device. */
void sim_reserve(int num_devices, double gib)
{
    capacity = (long long)(gib * (1LL << 30));
    reserved = VA_PER_DEVICE * (num_devices ? num_devices : 1);
    device_base = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    alias_base = mmap(NULL, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (device_base == MAP_FAILED || alias_base == MAP_FAILED) {
        fprintf(stderr, "simgpu: no address space\n");
        abort();
    }
    madvise(alias_base, reserved, MADV_DONTDUMP);
}

/* Large zeroing gives the pages back: benchmarks clear a buffer of the L2 cache's size before every run. */
void sim_memset(char *p, int value, size_t n)
{
    char *from = (char *)(((uintptr_t)p + 4095) & ~4095UL), *to = (char *)(((uintptr_t)p + n) & ~4095UL);
    if (value || n < (1 << 20)) {
        memset(p, value, n);
        return;
    }
    memset(p, 0, from - p);
    madvise(from, to - from, MADV_DONTNEED);
    memset(to, 0, p + n - to);
}

/* ---- blocks ---- */
typedef struct Block {
    char *base;
    size_t size;
    int kind, device;
} Block; /* kind as sim_pointer's */
static Block *blocks;
static size_t num_blocks, cap_blocks; /* sorted by base */

static size_t find(const char *p) /* index of the first block with base > p */
{
    size_t lo = 0, hi = num_blocks;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (blocks[mid].base <= p)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void insert(Block b)
{
    if (num_blocks == cap_blocks)
        blocks = realloc(blocks, (cap_blocks = cap_blocks ? 2 * cap_blocks : 1024) * sizeof *blocks);
    size_t at = find(b.base);
    memmove(blocks + at + 1, blocks + at, (num_blocks - at) * sizeof *blocks);
    blocks[at] = b;
    num_blocks++;
}

static Block *containing(const void *p)
{
    size_t at = find(p);
    return at && (const char *)p < blocks[at - 1].base + blocks[at - 1].size ? &blocks[at - 1] : NULL;
}

static bool in_device(const void *p) { return (char *)p >= device_base && (char *)p < device_base + reserved; }

void *sim_host_alias(const void *p)
{
    sim_num_devices();
    return in_device(p) ? alias_base + ((char *)p - device_base) : (void *)p;
}
EXPORT void *simgpu_bytes(const void *p) { return sim_host_alias(p); }

int sim_pointer(const void *p, int *device, void **base, size_t *size)
{
    sim_lock();
    Block *b = containing(p);
    int kind = b ? b->kind : 0;
    if (b) {
        if (device) *device = b->device;
        if (base) *base = b->base;
        if (size) *size = b->size;
    }
    sim_unlock();
    return kind;
}

cudaError_t sim_alloc(void **p, size_t size, int device)
{
    if (!size) {
        *p = NULL;
        return cudaSuccess;
    }
    sim_lock();
    size = (size + GRAIN - 1) / GRAIN * GRAIN;
    cudaError_t e = cudaErrorMemoryAllocation;
    if (sim_stats.live_bytes[device] + (long long)size <= capacity) {
        char *start = device_base + VA_PER_DEVICE * device, *at = start;
        size_t i = find(start - 1);
        for (; i < num_blocks && blocks[i].base < start + VA_PER_DEVICE; i++) { /* first fit */
            if ((size_t)(blocks[i].base - at) >= size) break;
            at = blocks[i].base + blocks[i].size;
        }
        if (at + size <= start + VA_PER_DEVICE) {
            insert((Block){at, size, 2, device});
            sim_stats.mallocs++;
            sim_stats.live_bytes[device] += size;
            if (sim_stats.live_bytes[device] > sim_stats.peak_bytes[device])
                sim_stats.peak_bytes[device] = sim_stats.live_bytes[device];
            *p = at;
            e = cudaSuccess;
        }
    }
    sim_unlock();
    return e;
}

static bool drop(void *p, int kind, Block *was)
{
    Block *b = containing(p);
    if (!b || b->base != p || b->kind != kind) return false;
    *was = *b;
    memmove(b, b + 1, (blocks + num_blocks - b - 1) * sizeof *b);
    num_blocks--;
    return true;
}

cudaError_t sim_free(void *p)
{
    if (!p) return cudaSuccess;
    Block was;
    sim_lock();
    bool ok = drop(p, 2, &was);
    if (ok) {
        sim_stats.frees++;
        sim_stats.live_bytes[was.device] -= was.size;
        char *from = (char *)(((uintptr_t)sim_host_alias(p) + 4095) & ~4095UL),
             *to = (char *)(((uintptr_t)sim_host_alias(p) + was.size) & ~4095UL);
        if (to > from) madvise(from, to - from, MADV_DONTNEED);
    }
    sim_unlock();
    return ok ? cudaSuccess : cudaErrorInvalidValue;
}

void sim_note_host(void *p, size_t size)
{
    sim_lock();
    insert((Block){p, size, 1, sim_device});
    sim_stats.host_allocs++;
    sim_unlock();
}
bool sim_forget_host(void *p)
{
    Block was;
    sim_lock();
    bool ok = drop(p, 1, &was);
    sim_unlock();
    return ok;
}
long long sim_capacity(void)
{
    sim_num_devices();
    return capacity;
}

/* ---- the runtime's functions of memory ---- */
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
