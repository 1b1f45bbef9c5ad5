/* The simulated GPU: memory, streams, capture, graphs, statistics. No kernel computes anything.
 *
 * Device memory is host memory seen through two reservations of equal size: the addresses that programs get are
 * PROT_NONE, so that host code that follows a device pointer dies as it would with a real GPU; the bytes lie
 * a constant distance away, and only copies and memsets of this library touch them. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define VA_PER_DEVICE (256ULL << 30)
#define GRAIN 512ULL

Stats sim_stats;
__thread int sim_device;
static pthread_mutex_t lock;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int num_devices;
static char *device_base, *alias_base;
static long long capacity;

static void setup(void)
{
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &a);
    const char *n = getenv("SIMGPU_COUNT"), *gib = getenv("SIMGPU_GIB"), *seen = getenv("CUDA_VISIBLE_DEVICES");
    num_devices = n ? atoi(n) : 1;
    if (num_devices > 16) num_devices = 16;
    if (seen) { /* only how many there are: "" or "-1" hides all */
        int listed = 0;
        if (*seen && *seen != '-') {
            listed = 1;
            for (const char *c = seen; *c; c++) listed += *c == ',';
        }
        if (listed < num_devices) num_devices = listed;
    }
    capacity = (long long)((gib ? atof(gib) : 79.1) * (1LL << 30));
    size_t all = VA_PER_DEVICE * (num_devices ? num_devices : 1);
    device_base = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    alias_base = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (device_base == MAP_FAILED || alias_base == MAP_FAILED) {
        fprintf(stderr, "simgpu: no address space\n");
        abort();
    }
    madvise(alias_base, all, MADV_DONTDUMP);
}

void sim_lock(void)
{
    pthread_once(&once, setup);
    pthread_mutex_lock(&lock);
}
void sim_unlock(void) { pthread_mutex_unlock(&lock); }
int sim_num_devices(void)
{
    pthread_once(&once, setup);
    return num_devices;
}
bool sim_log(void)
{
    static int on = -1;
    if (on < 0) on = getenv("SIMGPU_LOG") != NULL;
    return on;
}
static unsigned long self(void) { return (unsigned long)pthread_self(); }
static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

/* ---- statistics by name ---- */
#define ENTRIES (1 << 16)
static Entry *entries[ENTRIES];
static unsigned long hash(const char *s)
{
    unsigned long h = 5381;
    while (*s) h = h * 33 ^ (unsigned char)*s++;
    return h;
}

Entry *sim_entry(const char *name)
{
    sim_lock();
    unsigned long i = hash(name) % ENTRIES;
    while (entries[i] && strcmp(entries[i]->name, name)) i = (i + 1) % ENTRIES;
    if (!entries[i]) {
        entries[i] = calloc(1, sizeof(Entry));
        entries[i]->name = strdup(name);
    }
    Entry *e = entries[i];
    sim_unlock();
    return e;
}

static Entry *missing[4096];
static int num_missing;
void sim_unimplemented(const char *name)
{
    char full[256];
    snprintf(full, sizeof full, "UNIMPLEMENTED:%s", name);
    sim_lock();
    Entry *e = sim_entry(full);
    if (!e->direct++) {
        if (num_missing < 4096) missing[num_missing++] = e;
        if (sim_log()) fprintf(stderr, "simgpu: %s is an empty stub\n", name);
    }
    sim_unlock();
}

EXPORT void simgpu_reset(void)
{
    sim_lock();
    for (int i = 0; i < ENTRIES; i++)
        if (entries[i]) entries[i]->direct = entries[i]->captured = entries[i]->replayed = entries[i]->stray = 0;
    Stats old = sim_stats;
    memset(&sim_stats, 0, sizeof sim_stats);
    for (int i = 0; i < 16; i++) {
        sim_stats.live_bytes[i] = old.live_bytes[i];
        sim_stats.peak_bytes[i] = old.peak_bytes[i];
    } /* memory stays */
    sim_unlock();
}

/* Write everything as JSON to a file. */
EXPORT int simgpu_dump(const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f) return 1;
    sim_lock();
    Stats *s = &sim_stats;
#define ONE(field) fprintf(f, "\"" #field "\": %ld, ", s->field);
    fprintf(f, "{\"stats\": {");
    ONE(graph_launches)
    ONE(graph_instantiations) ONE(last_graph_nodes) ONE(last_graph_kernels) ONE(device_syncs) ONE(stream_syncs)
        ONE(event_syncs) ONE(event_queries) ONE(stream_queries) ONE(sync_memcpys) ONE(h2d) ONE(d2h) ONE(d2d) ONE(h2h)
            ONE(memsets) ONE(mallocs) ONE(frees) ONE(host_allocs) ONE(captures) ONE(capture_errors) ONE(module_loads)
                ONE(host_functions) fprintf(f, "\"live_bytes\": %lld, \"peak_bytes\": %lld}, \"kernels\": {",
                    s->live_bytes[0], s->peak_bytes[0]);
    const char *comma = "";
    for (int i = 0; i < ENTRIES; i++) {
        Entry *e = entries[i];
        if (!e || !(e->direct | e->captured | e->replayed | e->stray)) continue;
        fprintf(f, "%s\n\"", comma);
        for (const char *c = e->name; *c; c++) {
            if (*c == '"' || *c == '\\') fputc('\\', f);
            fputc(*c, f);
        }
        fprintf(f, "\": [%ld, %ld, %ld, %ld]", e->direct, e->captured, e->replayed, e->stray);
        comma = ",";
    }
    fprintf(f, "}}\n");
    sim_unlock();
    fclose(f);
    return 0;
}

__attribute__((destructor)) static void at_exit(void)
{
    const char *out = getenv("SIMGPU_DUMP");
    if (!out) return;
    char path[4096];
    snprintf(path, sizeof path, "%s.%d.json", out, (int)getpid());
    long any = sim_stats.mallocs;
    if (any) simgpu_dump(path);
}

/* ---- memory ---- */
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

static bool in_device(const void *p)
{
    return (char *)p >= device_base && (char *)p < device_base + VA_PER_DEVICE * (num_devices ? num_devices : 1);
}

void *sim_host_alias(const void *p)
{
    pthread_once(&once, setup);
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
    pthread_once(&once, setup);
    return capacity;
}

/* ---- streams ---- */
static struct CUstream_st legacy[16], *streams;

struct CUstream_st *sim_stream(const void *handle)
{
    if ((uintptr_t)handle <= 2) { /* 0 and cudaStreamLegacy; cudaStreamPerThread is treated alike */
        struct CUstream_st *s = &legacy[sim_device];
        s->device = sim_device;
        s->legacy = true;
        return s;
    }
    return (struct CUstream_st *)handle;
}

struct CUstream_st *sim_new_stream(unsigned flags, int priority)
{
    struct CUstream_st *s = calloc(1, sizeof *s);
    s->device = sim_device;
    s->flags = flags;
    s->priority = priority;
    sim_lock();
    s->next = streams;
    streams = s;
    sim_unlock();
    return s;
}

/* ---- capture ---- */
static Capture *captures;
static unsigned long long next_id = 1;
static __thread int thread_mode = cudaStreamCaptureModeGlobal;
static __thread int capturing_here; /* open captures that this thread began */

int sim_exchange_mode(int mode)
{
    int was = thread_mode;
    thread_mode = mode;
    return was;
}

static void spoil(Capture *c, const char *api)
{
    if (!c->invalid) {
        c->invalid = true;
        c->broken_by = api;
        sim_stats.capture_errors++;
        fprintf(stderr, "simgpu: capture %llu broken by %s\n", c->id, api);
    }
}

cudaError_t sim_unsafe(const char *api)
{
    if (!captures || thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    cudaError_t e = cudaSuccess;
    sim_lock();
    for (Capture *c = captures; c; c = c->next) {
        if (!c->open) continue;
        bool mine = c->thread == self();
        if ((mine && c->mode != cudaStreamCaptureModeRelaxed) ||
            (!mine && c->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal)) {
            spoil(c, api);
            e = cudaErrorStreamCaptureUnsupported;
        }
    }
    sim_unlock();
    return e;
}

/* A call that waits for or asks about one stream: never while it captures. */
cudaError_t sim_wait_on(const void *handle, const char *api)
{
    struct CUstream_st *s = sim_stream(handle);
    if (s->capture) {
        sim_lock();
        spoil(s->capture, api);
        sim_unlock();
        return cudaErrorStreamCaptureUnsupported;
    }
    if (s->legacy) {
        cudaError_t e = cudaSuccess;
        sim_lock();
        for (Capture *c = captures; c; c = c->next)
            if (c->open && c->origin->device == s->device && !(c->origin->flags & cudaStreamNonBlocking)) {
                spoil(c, api);
                e = cudaErrorStreamCaptureImplicit;
            }
        sim_unlock();
        if (e) return e;
    }
    return sim_unsafe(api);
}

static Node *add_node(struct CUstream_st *s, Node n)
{
    Graph *g = s->capture->graph;
    Node *own = malloc(sizeof *own);
    *own = n;
    own->deps = s->deps;
    own->num_deps = s->num_deps;
    s->deps = malloc(sizeof *s->deps);
    s->deps[0] = own;
    s->num_deps = 1;
    if (g->num == g->cap) g->nodes = realloc(g->nodes, (g->cap = g->cap ? 2 * g->cap : 256) * sizeof *g->nodes);
    g->nodes[g->num++] = own;
    return own;
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

static void run_graph(Graph *g);
static void run_node(Node *n)
{
    switch (n->kind) {
    case MEMCPY: {
        char *d = sim_host_alias(n->dst);
        const char *s = sim_host_alias(n->src);
        for (size_t r = 0; r < n->height; r++) memmove(d + r * n->pitch_dst, s + r * n->pitch_src, n->size);
        break;
    }
    case MEMSET:
        sim_memset(sim_host_alias(n->dst), n->value, n->size);
        break;
    case HOST_FUNCTION:
        sim_stats.host_functions++;
        n->call(n->data);
        break;
    case COLLECTIVE:
    case OWN:
        n->call(n->data);
        break;
    case KERNEL:
        if (n->call) n->call(n->data);
        break;
    case CHILD:
        run_graph(n->child);
        break;
    }
}

static void run_graph(Graph *g)
{
    for (size_t i = 0; i < g->num; i++) {
        if (g->nodes[i]->entry) g->nodes[i]->entry->replayed++;
        run_node(g->nodes[i]);
    }
}

/* Put work on a stream: at once, or as a node of the graph that the stream captures. */
cudaError_t sim_submit(const void *handle, Node n, const char *what)
{
    struct CUstream_st *s = sim_stream(handle);
    if (s->device != sim_device && n.kind == KERNEL) {
        fprintf(
            stderr, "simgpu: %s on a stream of device %d while device %d is current\n", what, s->device, sim_device);
        return cudaErrorInvalidResourceHandle;
    }
    sim_lock();
    cudaError_t e = cudaSuccess;
    if (s->legacy)
        for (Capture *c = captures; c; c = c->next)
            if (c->open && c->origin->device == s->device && !(c->origin->flags & cudaStreamNonBlocking)) {
                spoil(c, what);
                e = cudaErrorStreamCaptureImplicit;
            }
    bool now = false;
    if (!e && s->capture) {
        if (s->capture->invalid)
            e = cudaErrorStreamCaptureInvalidated;
        else {
            add_node(s, n);
            if (n.entry) n.entry->captured++;
            if (n.held) ++*n.held;
        }
    } else if (!e) {
        now = true;
        if (n.entry) {
            n.entry->direct++;
            if (capturing_here) n.entry->stray++;
        }
    }
    sim_unlock();
    if (now) run_node(&n);
    return e;
}

/* Work of a program's own: `call(data)` at once, or whenever the graph that the stream captures is replayed. */
EXPORT int simgpu_submit(const void *stream, void (*call)(void *), void *data)
{
    return sim_submit(stream, (Node){.kind = OWN, .call = call, .data = data}, "simgpu_submit");
}

cudaError_t sim_launch(const char *name, const void *stream)
{
    return sim_submit(stream, (Node){.kind = KERNEL, .entry = sim_entry(name)}, name);
}

cudaError_t sim_check_config(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz)
{
    bool ok = gx && gy && gz && bx && by && bz && gx <= 2147483647u && gy <= 65535 && gz <= 65535 && bx <= 1024 &&
              by <= 1024 && bz <= 64 && bx * by * bz <= 1024;
    return ok ? cudaSuccess : cudaErrorInvalidConfiguration;
}

cudaError_t sim_begin_capture(const void *handle, int mode, Graph *into)
{
    struct CUstream_st *s = sim_stream(handle);
    if (s->legacy) return cudaErrorStreamCaptureUnsupported;
    if (s->capture) return cudaErrorIllegalState;
    sim_lock();
    Capture *c = calloc(1, sizeof *c);
    c->id = next_id++;
    c->mode = mode;
    c->thread = self();
    c->open = true;
    c->origin = s;
    c->graph = into ? into : calloc(1, sizeof(Graph));
    c->graph->refs++;
    c->next = captures;
    captures = c;
    s->capture = c;
    free(s->deps);
    s->deps = NULL;
    s->num_deps = 0;
    capturing_here++;
    sim_stats.captures++;
    sim_unlock();
    return cudaSuccess;
}

static unsigned marks;
static void mark_up(Node *n)
{
    if (n->mark == marks) return;
    n->mark = marks;
    for (size_t i = 0; i < n->num_deps; i++) mark_up(n->deps[i]);
}

cudaError_t sim_end_capture(const void *handle, Graph **out)
{
    struct CUstream_st *s = sim_stream(handle);
    Capture *c = s->capture;
    *out = NULL;
    if (!c || c->origin != s) return cudaErrorStreamCaptureUnmatched;
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != self()) return cudaErrorStreamCaptureWrongThread;
    cudaError_t e = c->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    sim_lock();
    marks++;
    for (size_t i = 0; i < s->num_deps; i++) mark_up(s->deps[i]);
    for (struct CUstream_st *o = streams; o; o = o->next) {
        if (o->capture != c) continue;
        if (o != s)
            for (size_t i = 0; i < o->num_deps; i++)
                if (o->deps[i]->mark != marks && !e) e = cudaErrorStreamCaptureUnjoined;
        o->capture = NULL;
        free(o->deps);
        o->deps = NULL;
        o->num_deps = 0;
    }
    c->open = false;
    for (Capture **at = &captures; *at; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            break;
        }
    if (c->thread == self()) capturing_here--;
    sim_unlock();
    if (!e) *out = c->graph;
    return e; /* `c` itself stays: events may still name it */
}

/* ---- events ---- */
cudaError_t sim_record(struct CUevent_st *ev, const void *handle, bool external)
{
    struct CUstream_st *s = sim_stream(handle);
    if (ev->device != s->device) {
        fprintf(stderr, "simgpu: an event of device %d recorded on a stream of device %d\n", ev->device, s->device);
        return cudaErrorInvalidResourceHandle;
    }
    sim_lock();
    cudaError_t e = cudaSuccess;
    if (s->capture && !external) {
        if (s->capture->invalid)
            e = cudaErrorStreamCaptureInvalidated;
        else {
            free(ev->deps);
            ev->deps = malloc(s->num_deps * sizeof *ev->deps + 1);
            memcpy(ev->deps, s->deps, s->num_deps * sizeof *ev->deps);
            ev->num_deps = s->num_deps;
            ev->capture = s->capture;
            ev->recorded = true;
        }
    } else {
        if (s->capture)
            add_node(s, (Node){.kind = EVENT});
        else if (s->legacy)
            for (Capture *c = captures; c; c = c->next)
                if (c->open && c->origin->device == s->device && !(c->origin->flags & cudaStreamNonBlocking)) {
                    spoil(c, "cudaEventRecord(legacy)");
                    e = cudaErrorStreamCaptureImplicit;
                }
        ev->capture = NULL;
        ev->recorded = true;
        ev->ms = now_ms();
    }
    sim_unlock();
    return e;
}

cudaError_t sim_wait_event(const void *handle, struct CUevent_st *ev, bool external)
{
    struct CUstream_st *s = sim_stream(handle);
    cudaError_t e = cudaSuccess;
    sim_lock();
    if (external && s->capture) {
        add_node(s, (Node){.kind = EVENT});
    } else if (ev->capture && ev->capture->open) {
        if (s->legacy) {
            spoil(ev->capture, "cudaStreamWaitEvent(legacy)");
            e = cudaErrorStreamCaptureImplicit;
        } else if (s->capture && s->capture != ev->capture) {
            spoil(ev->capture, "cudaStreamWaitEvent");
            spoil(s->capture, "cudaStreamWaitEvent");
            e = cudaErrorStreamCaptureMerge;
        } else {
            if (!s->capture) {
                s->capture = ev->capture;
                free(s->deps);
                s->deps = NULL;
                s->num_deps = 0;
            }
            s->deps = realloc(s->deps, (s->num_deps + ev->num_deps) * sizeof *s->deps + 1);
            for (size_t i = 0; i < ev->num_deps; i++) {
                bool there = false;
                for (size_t j = 0; j < s->num_deps; j++) there |= s->deps[j] == ev->deps[i];
                if (!there) s->deps[s->num_deps++] = ev->deps[i];
            }
        }
    } else if (s->capture && ev->recorded) {
        spoil(s->capture, "cudaStreamWaitEvent(event from outside)");
        e = cudaErrorStreamCaptureIsolation;
    }
    sim_unlock();
    return e;
}

/* Asking about an event: prohibited if it was recorded in a capture; else it counts as unsafe. */
cudaError_t sim_ask_event(struct CUevent_st *ev, const char *api)
{
    if (ev->capture && ev->capture->open) {
        sim_lock();
        spoil(ev->capture, api);
        sim_unlock();
        return cudaErrorCapturedEvent;
    }
    return sim_unsafe(api);
}

double sim_now(void) { return now_ms(); }

/* ---- graphs ---- */
static long kernels_in(Graph *g)
{
    long k = 0;
    for (size_t i = 0; i < g->num; i++)
        k += g->nodes[i]->kind == CHILD ? kernels_in(g->nodes[i]->child)
                                        : g->nodes[i]->entry && g->nodes[i]->kind == KERNEL;
    return k;
}

cudaError_t sim_launch_graph(Graph *g, const void *handle)
{
    struct CUstream_st *s = sim_stream(handle);
    sim_lock();
    sim_stats.graph_launches++;
    sim_stats.last_graph_nodes = g->num;
    sim_stats.last_graph_kernels = kernels_in(g);
    cudaError_t e = cudaSuccess;
    if (s->capture) {
        if (s->capture->invalid)
            e = cudaErrorStreamCaptureInvalidated;
        else
            add_node(s, (Node){.kind = CHILD, .child = g});
        g->refs++;
    }
    sim_unlock();
    if (!e && !s->capture) run_graph(g); /* collectives wait for other processes: not under the lock */
    return e;
}

/* Collectives that a graph holds keep their communicator busy until the graph is gone. */
void sim_drop_graph(Graph *g)
{
    sim_lock();
    if (!--g->refs)
        for (size_t i = 0; i < g->num; i++)
            if (g->nodes[i]->kind == COLLECTIVE && g->nodes[i]->held) --*g->nodes[i]->held;
    sim_unlock();
}

void *sim_symbol(const char *name)
{
    static void *own;
    if (!own) {
        Dl_info i;
        dladdr((void *)sim_symbol, &i);
        own = dlopen(i.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }
    return dlsym(own, name);
}
