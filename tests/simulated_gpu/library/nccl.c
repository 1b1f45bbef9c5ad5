/* NCCL between processes of one machine, through a file in /dev/shm. Collectives move and reduce the real bytes; ranks
 * that do not call the same one with the same count are told so. Send and receive are not here. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <fcntl.h>
#include <nccl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sched.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (4L << 20)
#define RANKS 16
typedef struct Shared {
    atomic_int arrived, turn, joined;
    struct Call {
        long serial;
        int kind;
        long count;
        int type, root;
    } calls[RANKS];
    char slots[RANKS][CHUNK];
} Shared;
struct ncclComm {
    Shared *shared;
    int rank, size, device;
    char name[100];
    long serial;
    int splits, in_graphs;
};
static int counter;

/* How long a rank waits for the others; the host waits in it, where NCCL's kernel would wait on the device. */
static long wait_seconds(void)
{
    const char *given = getenv("SIMGPU_NCCL_SECONDS");
    return given ? atol(given) : 120;
}

static Shared *open_shared(const char *name)
{
    int f = open(name, O_RDWR | O_CREAT, 0600);
    if (f < 0 || ftruncate(f, sizeof(Shared))) return NULL;
    Shared *s = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    close(f);
    return s == MAP_FAILED ? NULL : s;
}
static bool meet(ncclComm_t c, const char *what)
{
    Shared *s = c->shared;
    int turn = atomic_load(&s->turn);
    if (atomic_fetch_add(&s->arrived, 1) == c->size - 1) {
        atomic_store(&s->arrived, 0);
        atomic_fetch_add(&s->turn, 1);
        return true;
    }
    for (long i = 0; atomic_load(&s->turn) == turn; i++) {
        if (i < 200)
            sched_yield();
        else
            usleep(100);
        if (i > 10000 * wait_seconds()) {
            fprintf(stderr, "simgpu: rank %d waited too long in %s\n", c->rank, what);
            return false;
        }
    }
    return true;
}
static size_t width(int t)
{
    switch (t) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
        return 1;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    default:
        return 8;
    }
}
static float half_in(uint16_t h)
{
    _Float16 f;
    memcpy(&f, &h, 2);
    return f;
}
static uint16_t half_out(float x)
{
    _Float16 f = x;
    uint16_t h;
    memcpy(&h, &f, 2);
    return h;
}
static float brain_in(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static uint16_t brain_out(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
#define COMBINE(a, b)                                                                                                  \
    (op == ncclProd     ? (a) * (b)                                                                                    \
        : op == ncclMax ? ((a) > (b) ? (a) : (b))                                                                      \
        : op == ncclMin ? ((a) < (b) ? (a) : (b))                                                                      \
                        : (a) + (b))
#define LOOP(T)                                                                                                        \
    for (long i = 0; i < n; i++) {                                                                                     \
        T x = ((T *)from)[i];                                                                                          \
        T y = ((T *)into)[i];                                                                                          \
        ((T *)into)[i] = COMBINE(y, x);                                                                                \
    }
#define LOOP16(in, out)                                                                                                \
    for (long i = 0; i < n; i++) {                                                                                     \
        float x = in(((uint16_t *)from)[i]), y = in(((uint16_t *)into)[i]);                                            \
        ((uint16_t *)into)[i] = out(COMBINE(y, x));                                                                    \
    }
static void reduce(void *into, const void *from, long n, int t, int op)
{
    switch (t) {
    case ncclFloat32:
        LOOP(float) break;
    case ncclFloat64:
        LOOP(double) break;
    case ncclFloat16:
        LOOP16(half_in, half_out) break;
    case ncclBfloat16:
        LOOP16(brain_in, brain_out) break;
    case ncclInt8:
        LOOP(int8_t) break;
    case ncclUint8:
        LOOP(uint8_t) break;
    case ncclInt32:
        LOOP(int32_t) break;
    case ncclUint32:
        LOOP(uint32_t) break;
    case ncclInt64:
        LOOP(int64_t) break;
    case ncclUint64:
        LOOP(uint64_t) break;
    }
}
static void scale(void *p, long n, int t, int size)
{
    for (long i = 0; i < n; i++) switch (t) {
        case ncclFloat32:
            ((float *)p)[i] /= size;
            break;
        case ncclFloat64:
            ((double *)p)[i] /= size;
            break;
        case ncclFloat16:
            ((uint16_t *)p)[i] = half_out(half_in(((uint16_t *)p)[i]) / size);
            break;
        case ncclBfloat16:
            ((uint16_t *)p)[i] = brain_out(brain_in(((uint16_t *)p)[i]) / size);
            break;
        }
}

enum { ALL_REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, REDUCE, INFO };
static const char *names[] = {
    "nccl:all_reduce", "nccl:broadcast", "nccl:all_gather", "nccl:reduce_scatter", "nccl:reduce", "nccl:info"};
typedef struct Work {
    ncclComm_t comm;
    int kind, type, op, root;
    const char *send;
    char *recv;
    long count;
} Work;

/* `count` elements a rank: for reduce-scatter those it receives. */
static void run(void *data)
{
    Work *w = data;
    ncclComm_t c = w->comm;
    Shared *s = c->shared;
    size_t wide = width(w->type);
    long total = w->kind == REDUCE_SCATTER ? w->count * c->size : w->count, step = CHUNK / wide;
    s->calls[c->rank] = (struct Call){++c->serial, w->kind, w->count, w->type, w->root};
    for (long at = 0; at < total; at += step) {
        long n = total - at < step ? total - at : step;
        memcpy(s->slots[c->rank], (char *)sim_host_alias(w->send) + at * wide, n * wide);
        if (!meet(c, names[w->kind])) return;
        if (!at)
            for (int r = 0; r < c->size; r++) {
                struct Call *a = &s->calls[c->rank], *b = &s->calls[r];
                if (a->serial != b->serial || a->kind != b->kind || a->count != b->count || a->type != b->type)
                    fprintf(stderr, "simgpu: rank %d: %s of %ld (call %ld), rank %d: %s of %ld (call %ld)\n", c->rank,
                        names[a->kind], a->count, a->serial, r, names[b->kind], b->count, b->serial);
            }
        char *out = sim_host_alias(w->recv);
        if (w->kind == BROADCAST)
            memcpy(out + at * wide, s->slots[w->root], n * wide);
        else if (w->kind == ALL_GATHER) {
            for (int r = 0; r < c->size; r++) memcpy(out + (r * w->count + at) * wide, s->slots[r], n * wide);
        } else if (w->kind != REDUCE || c->rank == w->root) {
            char *sum = malloc(n * wide);
            memcpy(sum, s->slots[0], n * wide);
            for (int r = 1; r < c->size; r++) reduce(sum, s->slots[r], n, w->type, w->op);
            if (w->op == ncclAvg) scale(sum, n, w->type, c->size);
            if (w->kind != REDUCE_SCATTER)
                memcpy(out + at * wide, sum, n * wide);
            else
                for (long i = 0; i < n; i++)
                    if ((at + i) / w->count == c->rank)
                        memcpy(out + (at + i - c->rank * w->count) * wide, sum + i * wide, wide);
            free(sum);
        }
        if (!meet(c, names[w->kind])) return;
    }
}
static ncclResult_t collect(Work w, cudaStream_t s)
{
    int device;
    if (w.kind != INFO && w.count &&
        (sim_pointer(w.send, &device, 0, 0) != 2 || sim_pointer(w.recv, &device, 0, 0) != 2)) {
        fprintf(stderr, "simgpu: %s of host memory\n", names[w.kind]);
        return ncclInvalidArgument;
    }
    Work *own = malloc(sizeof *own);
    *own = w;
    return sim_submit(s,
               (Node){.kind = COLLECTIVE,
                   .entry = sim_entry(names[w.kind]),
                   .call = run,
                   .data = own,
                   .held = &w.comm->in_graphs},
               names[w.kind])
               ? ncclUnhandledCudaError
               : 0;
}
EXPORT ncclResult_t ncclAllReduce(
    const void *a, void *b, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    return collect((Work){c, ALL_REDUCE, t, op, 0, a, b, n}, s);
}
EXPORT ncclResult_t ncclReduce(
    const void *a, void *b, size_t n, ncclDataType_t t, ncclRedOp_t op, int root, ncclComm_t c, cudaStream_t s)
{
    return collect((Work){c, REDUCE, t, op, root, a, b ? b : (void *)a, n}, s);
}
EXPORT ncclResult_t ncclBroadcast(
    const void *a, void *b, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t s)
{
    return collect((Work){c, BROADCAST, t, 0, root, a ? a : b, b, n}, s);
}
EXPORT ncclResult_t ncclBcast(void *b, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t s)
{
    return collect((Work){c, BROADCAST, t, 0, root, b, b, n}, s);
}
EXPORT ncclResult_t ncclAllGather(const void *a, void *b, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t s)
{
    return collect((Work){c, ALL_GATHER, t, 0, 0, a, b, n}, s);
}
EXPORT ncclResult_t ncclReduceScatter(
    const void *a, void *b, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    return collect((Work){c, REDUCE_SCATTER, t, op, 0, a, b, n}, s);
}

EXPORT ncclResult_t ncclGetVersion(int *v)
{
    *v = NCCL_VERSION_CODE;
    return 0;
}
EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    memset(id, 0, sizeof *id);
    snprintf(
        id->internal, sizeof id->internal, "/dev/shm/simgpu-%d-%d-%ld", (int)getpid(), counter++, (long)time(NULL));
    return 0;
}
static ncclResult_t join(ncclComm_t *out, int size, const char *name, int rank)
{
    if (size > RANKS || rank < 0 || rank >= size) return ncclInvalidArgument;
    ncclComm_t c = calloc(1, sizeof *c);
    snprintf(c->name, sizeof c->name, "%s", name);
    c->rank = rank;
    c->size = size;
    c->device = sim_device;
    if (!(c->shared = open_shared(name))) return ncclSystemError;
    atomic_fetch_add(&c->shared->joined, 1);
    if (!meet(c, "ncclCommInitRank")) return ncclSystemError;
    if (!rank) unlink(name);
    *out = c;
    return 0;
}
EXPORT ncclResult_t ncclCommInitRank(ncclComm_t *c, int n, ncclUniqueId id, int rank)
{
    return join(c, n, id.internal, rank);
}
EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *c, int n, ncclUniqueId id, int rank, ncclConfig_t *cfg)
{
    (void)cfg;
    return join(c, n, id.internal, rank);
}
EXPORT ncclResult_t ncclCommInitRankScalable(
    ncclComm_t *c, int n, int rank, int ids, ncclUniqueId *id, ncclConfig_t *cfg)
{
    (void)ids;
    (void)cfg;
    return join(c, n, id->internal, rank);
}
EXPORT ncclResult_t ncclCommSplit(ncclComm_t c, int color, int key, ncclComm_t *out, ncclConfig_t *cfg)
{
    (void)cfg;
    int mine[2] = {color, key}, all[2 * RANKS], rank = 0, size = 0;
    Work w = {c, ALL_GATHER, ncclInt32, 0, 0, (char *)mine, (char *)all, 2};
    run(&w);
    for (int r = 0; r < c->size; r++)
        if (all[2 * r] == color) {
            size++;
            rank += all[2 * r + 1] < key || (all[2 * r + 1] == key && r < c->rank);
        }
    c->splits++;
    *out = NULL;
    if (color < 0) return 0;
    char name[160];
    snprintf(name, sizeof name, "%s.%d.%d", c->name, c->splits, color);
    return join(out, size, name, rank);
}
static ncclResult_t end(ncclComm_t c, const char *what)
{
    if (c->in_graphs)
        fprintf(
            stderr, "simgpu: %s with %d collectives in live CUDA graphs: NCCL waits for ever\n", what, c->in_graphs);
    return 0;
}
EXPORT ncclResult_t ncclCommFinalize(ncclComm_t c) { return end(c, __func__); }
EXPORT ncclResult_t ncclCommDestroy(ncclComm_t c) { return end(c, __func__); }
EXPORT ncclResult_t ncclCommAbort(ncclComm_t c)
{
    (void)c;
    return 0;
}
EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *e)
{
    (void)c;
    *e = 0;
    return 0;
}
EXPORT ncclResult_t ncclCommCount(const ncclComm_t c, int *n)
{
    *n = c->size;
    return 0;
}
EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t c, int *n)
{
    *n = c->rank;
    return 0;
}
EXPORT ncclResult_t ncclCommCuDevice(const ncclComm_t c, int *n)
{
    *n = c->device;
    return 0;
}
EXPORT ncclResult_t ncclCommRegister(const ncclComm_t c, void *p, size_t n, void **h)
{
    (void)c;
    (void)p;
    (void)n;
    *h = NULL;
    return 0;
}
EXPORT ncclResult_t ncclCommDeregister(const ncclComm_t c, void *h)
{
    (void)c;
    (void)h;
    return 0;
}
EXPORT ncclResult_t ncclGroupStart(void) { return 0; }
EXPORT ncclResult_t ncclGroupEnd(void) { return 0; }
EXPORT const char *ncclGetErrorString(ncclResult_t e)
{
    static __thread char s[40];
    snprintf(s, sizeof s, "simulated NCCL status %d", e);
    return s;
}
EXPORT const char *ncclGetLastError(ncclComm_t c)
{
    (void)c;
    return "";
}
