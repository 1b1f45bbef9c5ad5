/* What all parts of the simulated GPU share: the lock, how many devices there are, the counters. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

Stats sim_stats;
__thread int sim_device;
static pthread_mutex_t lock;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int num_devices;

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
    sim_reserve(num_devices, gib ? atof(gib) : 79.1);
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
double sim_now(void)
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
    ONE(graph_instantiations)
    ONE(last_graph_nodes) ONE(last_graph_kernels) ONE(device_syncs) ONE(stream_syncs) ONE(event_syncs)
        ONE(event_queries) ONE(stream_queries) ONE(sync_memcpys) ONE(h2d) ONE(d2h) ONE(d2d) ONE(h2h) ONE(memsets)
            ONE(mallocs) ONE(frees) ONE(host_allocs) ONE(captures) ONE(capture_errors) ONE(module_loads)
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
