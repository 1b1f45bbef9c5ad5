/* The runtime's functions of streams, events, captures and graphs. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

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
