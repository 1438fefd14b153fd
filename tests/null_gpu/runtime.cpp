// The CUDA runtime and the parts of cuBLAS, cuDNN and NCCL that must return more than 0. See README.md.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <sys/mman.h>

#define API extern "C" __attribute__((visibility("default")))

// ---- counters; their order is COUNTERS of child.py ----
enum { LAUNCHES, MATMULS, SYNCS, PAGEABLE_COPIES, TO_DEVICE_BYTES, TO_HOST_BYTES, COUNTERS };
static std::atomic<long> counters[COUNTERS];

API void null_gpu_add(int counter) { counters[counter]++; }
API long null_gpu_count(int counter) { return counters[counter]; }
API void null_gpu_reset() {
  for (auto &counter : counters) counter = 0;
}

// ---- memory ----
static const size_t TOTAL_BYTES = 141ull << 30;
static const size_t COPIED_BYTES = 1 << 20;  // larger copies to the device are counted and not made
static std::mutex lock;
static std::map<char *, size_t> device_memory, pinned_memory;
static size_t used_bytes = 0;

static bool is_within(const std::map<char *, size_t> &ranges, const void *pointer) {
  std::lock_guard<std::mutex> guard(lock);
  auto next = ranges.upper_bound((char *)pointer);
  if (next == ranges.begin()) return false;
  auto range = std::prev(next);
  return (char *)pointer < range->first + range->second;
}

API cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  std::lock_guard<std::mutex> guard(lock);
  *pointer = nullptr;
  if (used_bytes + bytes > TOTAL_BYTES) return cudaErrorMemoryAllocation;
  void *pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return cudaErrorMemoryAllocation;
  device_memory[(char *)pages] = bytes;
  used_bytes += bytes;
  *pointer = pages;
  return cudaSuccess;
}
API cudaError_t cudaFree(void *pointer) {
  std::lock_guard<std::mutex> guard(lock);
  auto range = device_memory.find((char *)pointer);
  if (range == device_memory.end()) return cudaSuccess;
  munmap(pointer, range->second);
  used_bytes -= range->second;
  device_memory.erase(range);
  return cudaSuccess;
}
API cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
API cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) { return cudaFree(pointer); }
API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
  *total_bytes = TOTAL_BYTES;
  *free_bytes = TOTAL_BYTES - used_bytes;
  return cudaSuccess;
}
API cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
  *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  std::lock_guard<std::mutex> guard(lock);
  pinned_memory[(char *)*pointer] = bytes;
  return cudaSuccess;
}
API cudaError_t cudaFreeHost(void *pointer) {
  std::lock_guard<std::mutex> guard(lock);
  pinned_memory.erase((char *)pointer);
  free(pointer);
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
  memset(attributes, 0, sizeof *attributes);
  bool on_device = is_within(device_memory, pointer), pinned = is_within(pinned_memory, pointer);
  attributes->type = on_device ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (on_device || pinned) attributes->devicePointer = (void *)pointer;
  if (pinned) attributes->hostPointer = (void *)pointer;
  return cudaSuccess;
}
static void copy(void *to, const void *from, size_t bytes) {
  bool to_device = is_within(device_memory, to), from_device = is_within(device_memory, from);
  if (to_device && from_device) return;
  if (to_device || from_device) counters[to_device ? TO_DEVICE_BYTES : TO_HOST_BYTES] += bytes;
  if (!is_within(pinned_memory, to_device ? from : to)) counters[PAGEABLE_COPIES]++;
  if (from_device) memset(to, 0, bytes);
  else if (!to_device || bytes <= COPIED_BYTES) memcpy(to, from, bytes);
}
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  copy(to, from, bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  counters[SYNCS]++;
  copy(to, from, bytes);
  return cudaSuccess;
}

// ---- the device ----
API cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
API cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
API int null_gpu_attribute(int attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 227 << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 << 10;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrClockRate: return 1980000;
    case cudaDevAttrMemoryClockRate: return 3201000;
    case cudaDevAttrGlobalMemoryBusWidth: return 6144;
    case cudaDevAttrMultiProcessorCount: return 132;
    case cudaDevAttrL2CacheSize: return 60 << 20;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrTextureAlignment: return 512;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrCooperativeLaunch: case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentKernels: return 1;
    default: return 0;
  }
}
API cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  *value = null_gpu_attribute(attribute);
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "null GPU (H200)");
  properties->totalGlobalMem = TOTAL_BYTES;
  properties->major = null_gpu_attribute(cudaDevAttrComputeCapabilityMajor);
  properties->warpSize = null_gpu_attribute(cudaDevAttrWarpSize);
  properties->multiProcessorCount = null_gpu_attribute(cudaDevAttrMultiProcessorCount);
  properties->maxThreadsPerBlock = null_gpu_attribute(cudaDevAttrMaxThreadsPerBlock);
  properties->maxThreadsPerMultiProcessor = null_gpu_attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  properties->maxBlocksPerMultiProcessor = null_gpu_attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->sharedMemPerBlock = null_gpu_attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  properties->sharedMemPerBlockOptin = null_gpu_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties->sharedMemPerMultiprocessor = null_gpu_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties->l2CacheSize = null_gpu_attribute(cudaDevAttrL2CacheSize);
  for (int axis = 0; axis < 3; axis++) {
    properties->maxThreadsDim[axis] = null_gpu_attribute(cudaDevAttrMaxBlockDimX + axis);
    properties->maxGridSize[axis] = null_gpu_attribute(cudaDevAttrMaxGridDimX + axis);
  }
  properties->textureAlignment = 512;
  properties->texturePitchAlignment = 32;
  properties->unifiedAddressing = properties->managedMemory = 1;
  properties->cooperativeLaunch = properties->concurrentKernels = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { *can = 0; return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int) { snprintf(id, length, "0000:01:00.0"); return cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
API const char *cudaGetErrorString(cudaError_t) { return "null GPU"; }
API const char *cudaGetErrorName(cudaError_t) { return "null GPU"; }

// ---- streams and events ----
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) { *stream = (cudaStream_t)malloc(16); return cudaSuccess; }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return cudaStreamCreateWithPriority(stream, 0, 0); }
API cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
API cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) { *priority = 0; return cudaSuccess; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) { *status = cudaStreamCaptureStatusNone; return cudaSuccess; }
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *,
                                         const cudaGraphNode_t **, const cudaGraphEdgeData **, size_t *) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { *event = (cudaEvent_t)malloc(16); return cudaSuccess; }
API cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) { *milliseconds = 1; return cudaSuccess; }
API cudaError_t cudaEventSynchronize(cudaEvent_t) { counters[SYNCS]++; return cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) { counters[SYNCS]++; return cudaSuccess; }
API cudaError_t cudaDeviceSynchronize() { counters[SYNCS]++; return cudaSuccess; }

// ---- kernels ----
API cudaError_t cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) { counters[LAUNCHES]++; return cudaSuccess; }
API cudaError_t __cudaLaunchKernel(void *, dim3, dim3, void **, size_t, cudaStream_t) { counters[LAUNCHES]++; return cudaSuccess; }
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void *, void **) { counters[LAUNCHES]++; return cudaSuccess; }
API cudaError_t cudaLaunchCooperativeKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t) { counters[LAUNCHES]++; return cudaSuccess; }
API cudaError_t __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return cudaSuccess; }
API unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void *) { return 0; }
API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
  *grid = *block = dim3(1, 1, 1);
  *shared_bytes = 0;
  *(void **)stream = nullptr;
  return cudaSuccess;
}
API void **__cudaRegisterFatBinary(void *) { static void *handle[4]; return handle; }
API char __cudaInitModule(void **) { return 1; }
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 48 << 10;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t) { *blocks = 2; return cudaSuccess; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) { *blocks = 2; return cudaSuccess; }
API cudaError_t cudaGetSymbolAddress(void **address, const void *) { static char symbols[1 << 20]; *address = symbols; return cudaSuccess; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult *result) {
  static void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *function = driver ? dlsym(driver, name) : nullptr;
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// ---- libraries ----
#define MATMUL(name) API int name(...) { counters[MATMULS]++; return 0; }
MATMUL(cublasGemmEx) MATMUL(cublasGemmStridedBatchedEx) MATMUL(cublasGemmBatchedEx) MATMUL(cublasLtMatmul)
MATMUL(cublasSgemm_v2) MATMUL(cublasSgemmBatched) MATMUL(cublasSgemmStridedBatched) MATMUL(cublasSgemv_v2) MATMUL(cublasDgemm_v2)
API int cublasCreate_v2(void **handle) { *handle = malloc(16); return 0; }
API int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *, int *results) { *results = 1; return 0; }
API int cudnnCreate(void **handle) { *handle = malloc(16); return 0; }
API size_t cudnnGetVersion() { return CUDNN_MAJOR * 10000 + CUDNN_MINOR * 100 + CUDNN_PATCH; }
API int cudnnGetProperty(int part, int *value) { *value = part == 0 ? CUDNN_MAJOR : part == 1 ? CUDNN_MINOR : CUDNN_PATCH; return 0; }
API int ncclGetVersion(int *version) { *version = 22900; return 0; }
API const char *ncclGetErrorString(int) { return "null NCCL"; }
API const char *ncclGetLastError(void *) { return "null NCCL"; }
API int ncclCommInitRankConfig(void **communicator, int, char[128], int, void *) { *communicator = malloc(16); return 0; }
API int ncclCommSplit(void *, int, int, void **communicator, void *) { *communicator = malloc(16); return 0; }
API int ncclCommGetAsyncError(void *, int *error) { *error = 0; return 0; }
API int ncclCommCount(void *, int *ranks) { *ranks = 1; return 0; }
