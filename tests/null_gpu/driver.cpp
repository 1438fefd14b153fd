// libcuda.so.1: the functions of the CUDA driver that torch looks up and that Triton's launcher calls. See README.md.
#include <cstdio>
#include <cstdlib>
#include <cuda.h>
#include <dlfcn.h>

#define API extern "C" __attribute__((visibility("default")))

static CUresult launched() {
  static void (*add)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "null_gpu_add");
  if (add) add(0);
  return CUDA_SUCCESS;
}
template <class Handle> static CUresult create(Handle *handle) { *handle = (Handle)malloc(16); return CUDA_SUCCESS; }

API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice *device, int index) { *device = index; return CUDA_SUCCESS; }
API CUresult cuDeviceGetName(char *name, int length, CUdevice) { snprintf(name, length, "null GPU (H200)"); return CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {  // numbered as the runtime's
  static int (*look_up)(int) = (int (*)(int))dlsym(RTLD_DEFAULT, "null_gpu_attribute");
  *value = look_up ? look_up(attribute) : 0;
  return CUDA_SUCCESS;
}
static char context[64];
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) { *flags = 0; *active = 1; return CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxRetain(CUcontext *current, CUdevice) { *current = (CUcontext)context; return CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext *current) { *current = (CUcontext)context; return CUDA_SUCCESS; }
API CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t *value, CUlimit) { *value = 0; return CUDA_SUCCESS; }
API CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
API CUresult cuModuleLoad(CUmodule *module, const char *) { return create(module); }
API CUresult cuModuleLoadData(CUmodule *module, const void *) { return create(module); }
API CUresult cuModuleLoadDataEx(CUmodule *module, const void *, unsigned, CUjit_option *, void **) { return create(module); }
API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *) { return create(function); }
API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
API CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **) { return launched(); }
API CUresult cuLaunchKernelEx(const CUlaunchConfig *, CUfunction, void **, void **) { return launched(); }
API CUresult cuLaunchCooperativeKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **) { return launched(); }
API CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction, const CUlaunchConfig *) { *clusters = 4; return CUDA_SUCCESS; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int, size_t) { *blocks = 2; return CUDA_SUCCESS; }
API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)value = pointer;
  else *(int *)value = 0;
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char **text) { *text = "null GPU"; return CUDA_SUCCESS; }
API CUresult cuGetErrorName(CUresult, const char **text) { *text = "null GPU"; return CUDA_SUCCESS; }
