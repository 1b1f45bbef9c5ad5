/* What the devices are, which is current, and the runtime's errors. */
#define _GNU_SOURCE
#include "simgpu.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

static __thread cudaError_t last;
cudaError_t sim_return(cudaError_t e, const char *api)
{
    if (e) {
        last = e;
        if (sim_log()) fprintf(stderr, "simgpu: %s returns %d\n", api, e);
    }
    return e;
}

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
    (void)flags;
    *f = sim_driver_function(symbol, version);
    if (status) *status = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    if (!*f && sim_log()) fprintf(stderr, "simgpu: no driver function %s\n", symbol);
    return 0;
}
