/* A CUDA runtime without a device, to be preloaded before torch's CUDA build (see runtime.py).

   Memory of a device is memory of the host, copies are memmove, streams and events do nothing, and a kernel
   launch fails with cudaErrorNotSupported. Functions that are not defined here come from the real libcudart.
   The environment is read at each call, so that a forked process can still choose its devices:
   PRETEND_DEVICES, PRETEND_CAPABILITY (for example 90) and PRETEND_MEMORY_GB. */

#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if CUDART_VERSION / 1000 != 13
#error "cudaDeviceProp of another major version has another layout"
#endif

/* The address of a block shows its owner: device d has the tebibyte number 16 + d, pinned memory number 32.
   Addresses are not used again. The size of a block is stored in the page before it. */
#define TEBIBYTE (1ULL << 40)
#define PAGE 4096
#define FIRST_DEVICE 16
#define PINNED 32

long pretend_launches; /* kernels that the dispatch mode did not intercept; read through ctypes */

static size_t taken[PINNED + 1];    /* bytes of addresses that were used, by owner */
static size_t allocated[PINNED + 1]; /* bytes in use, by owner */
static __thread int current;
static __thread cudaError_t last;

static double setting(const char *name, double otherwise) {
  const char *text = getenv(name);
  return text ? atof(text) : otherwise;
}

/* As with a real driver, an empty CUDA_VISIBLE_DEVICES hides all devices. */
static int count(void) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (visible && !*visible) return 0;
  return (int)setting("PRETEND_DEVICES", 1);
}
static size_t capacity(void) { return (size_t)(setting("PRETEND_MEMORY_GB", 80) * 1e9); }
static int capability(void) { return (int)setting("PRETEND_CAPABILITY", 90); }

static cudaError_t fail(cudaError_t error) { return last = error; }

static cudaError_t allocate(void **block, size_t size, int owner) {
  size_t room = (size + 2 * PAGE - 1) / PAGE * PAGE; /* one page for the size */
  if (owner != PINNED && allocated[owner] + room > capacity()) return fail(cudaErrorMemoryAllocation);
  char *wanted = (char *)(owner * TEBIBYTE + __atomic_fetch_add(&taken[owner], room, __ATOMIC_SEQ_CST));
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  char *start = mmap(wanted, room, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (start != wanted) return fail(cudaErrorMemoryAllocation);
  __atomic_fetch_add(&allocated[owner], room, __ATOMIC_SEQ_CST);
  *(size_t *)start = room;
  *block = start + PAGE;
  return cudaSuccess;
}

static int owner_of(const void *p) {
  int owner = (int)((unsigned long long)p / TEBIBYTE);
  return owner >= FIRST_DEVICE && owner <= PINNED ? owner : 0;
}

static cudaError_t release(void *block) {
  if (!block) return cudaSuccess;
  char *start = (char *)block - PAGE;
  size_t room = *(size_t *)start;
  __atomic_fetch_sub(&allocated[owner_of(block)], room, __ATOMIC_SEQ_CST);
  munmap(start, room);
  return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **p, size_t n) { return allocate(p, n, FIRST_DEVICE + current); }
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return allocate(p, n, PINNED); }
cudaError_t cudaFree(void *p) { return release(p); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return release(p); }
cudaError_t cudaFreeHost(void *p) { return release(p); }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  *total = capacity();
  *available = *total - allocated[FIRST_DEVICE + current];
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *p) {
  int owner = owner_of(p);
  memset(found, 0, sizeof *found);
  found->device = owner && owner != PINNED ? owner - FIRST_DEVICE : current;
  if (owner) found->devicePointer = (void *)p;
  if (owner == PINNED) found->hostPointer = (void *)p;
  found->type = owner == PINNED ? cudaMemoryTypeHost : owner ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
  memmove(to, from, n);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
  return cudaMemcpy(to, from, n, kind);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t n, cudaStream_t s) {
  return cudaMemcpy(to, from, n, cudaMemcpyDefault);
}
cudaError_t cudaMemset(void *p, int value, size_t n) {
  memset(p, value, n);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) { return cudaMemset(p, value, n); }

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *n) {
  *n = count();
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= count()) return fail(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "pretended GPU");
  p->uuid.bytes[0] = (char)device;
  p->pciBusID = device + 1;
  p->major = capability() / 10;
  p->minor = capability() % 10;
  p->totalGlobalMem = capacity();
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxBlocksPerMultiProcessor = 32;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->l2CacheSize = 50 << 20;
  p->textureAlignment = 512;
  p->memPitch = 2147483647;
  p->unifiedAddressing = p->canMapHostMemory = p->concurrentKernels = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { return cudaRuntimeGetVersion(version); }
cudaError_t cudaPeekAtLastError(void) { return last; }
cudaError_t cudaGetLastError(void) {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

/* ---- streams and events: everything has happened already ---- */

static cudaError_t handle(void *created) {
  *(void **)created = malloc(16);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return handle(s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return handle(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return handle(s); }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return handle(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return handle(e); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
  *ms = 1;
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                     const cudaGraphEdgeData **edges, size_t *n) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  *mode = cudaStreamCaptureModeGlobal;
  return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t call, void *data, unsigned flags) {
  call(s, cudaSuccess, data);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *data) {
  call(data);
  return cudaSuccess;
}

/* ---- functions that only report success, or failure; an assembler name avoids the header's prototypes ---- */

#define RETURNS(value, name) \
  int pretend_##name(void) __asm__(#name); \
  int pretend_##name(void) { return value; }
#define SUCCEEDS(name) RETURNS(cudaSuccess, name)
#define FAILS(name) RETURNS(cudaErrorNotSupported, name)

SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaDeviceEnablePeerAccess)
SUCCEEDS(cudaStreamSynchronize)
SUCCEEDS(cudaStreamDestroy)
SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventRecordWithFlags)
SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaProfilerStart)
SUCCEEDS(cudaProfilerStop)
FAILS(cudaHostRegister)
FAILS(cudaHostUnregister)

/* ---- kernels ---- */

static cudaError_t launch(void) {
  pretend_launches++;
  return fail(cudaErrorNotSupported);
}
cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **a, size_t n, cudaStream_t s) { return launch(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **a) { return launch(); }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t n, void *s) {
  launch();
  return 1; /* the launch is skipped */
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *f) {
  memset(found, 0, sizeof *found);
  found->binaryVersion = capability();
  found->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads, size_t size,
                                                                   unsigned flags) {
  *n = 1;
  return cudaSuccess;
}

/* ---- the driver: this library has the soname libcuda.so.1, which torch opens ---- */

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  if (flags) *flags = 0;
  *active = 1;
  return 0;
}
int cuCtxGetCurrent(void **context) {
  *context = (void *)16;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return cuCtxGetCurrent(context); }
int cuDeviceGet(int *device, int number) {
  *device = number;
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  return cudaDeviceGetAttribute(value, attribute, device);
}
int cuPointerGetAttribute(void *value, int attribute, unsigned long long p) {
  *(int *)value = 0;
  return 0;
}
int cuGetErrorString(int error, const char **text) {
  *text = "error of the pretended driver";
  return 0;
}
SUCCEEDS(cuCtxSetCurrent)
FAILS(cuFuncGetAttribute)
FAILS(cuFuncSetAttribute)
FAILS(cuFuncSetCacheConfig)
FAILS(cuLaunchCooperativeKernel)
FAILS(cuLaunchKernel)
FAILS(cuLinkAddData_v2)
FAILS(cuLinkComplete)
FAILS(cuLinkCreate_v2)
FAILS(cuModuleGetFunction)
FAILS(cuModuleLoad)
FAILS(cuModuleLoadData)
FAILS(cuModuleLoadDataEx)
FAILS(cuModuleUnload)
FAILS(cuOccupancyMaxActiveBlocksPerMultiprocessor)
FAILS(cuTensorMapEncodeTiled)

static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  int is_known = !strcmp(name, "cuDevicePrimaryCtxGetState");
  *found = is_known ? (void *)cuDevicePrimaryCtxGetState : (void *)nothing;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
