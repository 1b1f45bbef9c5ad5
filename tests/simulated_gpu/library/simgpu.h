/* Shared by the parts of the simulated GPU. All state lies behind one lock. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <cuda.h>
#include <driver_types.h>

#define EXPORT __attribute__((visibility("default")))

/* One line of the statistics: a kernel (or library call) by name. */
typedef struct Entry {
    const char *name;
    long direct;   /* launched outside a capture */
    long captured; /* became a graph node */
    long replayed; /* ran because its graph was launched */
    long stray;    /* launched at once while this thread was capturing another stream */
} Entry;

enum { KERNEL, MEMCPY, MEMSET, HOST_FUNCTION, COLLECTIVE, CHILD, EVENT, OWN };

typedef struct Node {
    int kind;
    Entry *entry;
    void *dst;
    const void *src;
    size_t size, pitch_dst, pitch_src, height;
    int value;
    void (*call)(void *);
    void *data;
    int *held; /* counts the graphs' nodes that use a communicator */
    struct Graph *child;
    struct Node **deps;
    size_t num_deps;
    unsigned mark;
} Node;

typedef struct Graph {
    Node **nodes;
    size_t num, cap;
    int refs;
} Graph;

typedef struct Capture {
    unsigned long long id;
    int mode;
    unsigned long thread;
    bool invalid;
    bool open;
    struct CUstream_st *origin;
    Graph *graph;
    struct Capture *next;
    const char *broken_by;
} Capture;

struct CUstream_st {
    int device;
    unsigned flags;
    int priority;
    bool legacy;
    Capture *capture;
    Node **deps;
    size_t num_deps;
    struct CUstream_st *next;
};

struct CUevent_st {
    int device;
    unsigned flags;
    bool recorded;
    double ms;
    Capture *capture;
    unsigned long long capture_id;
    Node **deps;
    size_t num_deps;
};

typedef struct Stats {
    long graph_launches, graph_instantiations, last_graph_nodes, last_graph_kernels;
    long device_syncs, stream_syncs, event_syncs, event_queries, stream_queries, sync_memcpys;
    long h2d, d2h, d2d, h2h, memsets, mallocs, frees, host_allocs;
    long captures, capture_errors, module_loads, host_functions;
    long long live_bytes[16], peak_bytes[16];
} Stats;

extern Stats sim_stats;
extern __thread int sim_device;

/* core.c */
void sim_lock(void);
void sim_unlock(void);
int sim_num_devices(void);
bool sim_log(void);
double sim_now(void);
Entry *sim_entry(const char *name);
void sim_unimplemented(const char *name);
void *sim_symbol(const char *name);

/* memory.c */
void sim_reserve(int num_devices, double gib);
long long sim_capacity(void);
void *sim_host_alias(const void *p); /* where the bytes of a device (or host) address really lie */
/* 0 unknown, 1 pinned host, 2 device, 3 managed */
int sim_pointer(const void *p, int *device, void **base, size_t *size);
cudaError_t sim_alloc(void **p, size_t size, int device);
cudaError_t sim_free(void *p);
void sim_note_host(void *p, size_t size);
bool sim_forget_host(void *p);
void sim_memset(char *p, int value, size_t n);

/* graphs.c */
struct CUstream_st *sim_stream(const void *handle);
struct CUstream_st *sim_new_stream(unsigned flags, int priority);
cudaError_t sim_launch(const char *name, const void *stream);
cudaError_t sim_submit(const void *stream, Node node, const char *what);
cudaError_t sim_unsafe(const char *api); /* 900 if this thread may not call `api` now; breaks the capture */
cudaError_t sim_check_config(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz);
int sim_exchange_mode(int mode);
cudaError_t sim_wait_on(const void *stream, const char *api);
cudaError_t sim_begin_capture(const void *stream, int mode, Graph *into);
cudaError_t sim_end_capture(const void *stream, Graph **out);
cudaError_t sim_record(struct CUevent_st *e, const void *stream, bool external);
cudaError_t sim_wait_event(const void *stream, struct CUevent_st *e, bool external);
cudaError_t sim_ask_event(struct CUevent_st *e, const char *api);
cudaError_t sim_launch_graph(Graph *g, const void *stream);
void sim_drop_graph(Graph *g);

/* kernels.c, devices.c, driver.c */
int sim_blocks(int threads, size_t shared);
cudaError_t sim_attribute(int *v, int a, int d);
cudaError_t sim_return(cudaError_t e, const char *api);
void *sim_driver_function(const char *name, int version);

#define RET(x) return sim_return((x), __func__)
#define SAFE()                                                                                                         \
    do {                                                                                                               \
        cudaError_t e_ = sim_unsafe(__func__);                                                                         \
        if (e_) RET(e_);                                                                                               \
    } while (0)
