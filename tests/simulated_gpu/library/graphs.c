/* Streams, events, captures with their rules, and the graphs that these make. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long self(void) { return (unsigned long)pthread_self(); }
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
        ev->ms = sim_now();
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
