// A CUDA driver library that does nothing and keeps a record of every launch, for rehearsals without a GPU.
// Modules are counted, and a function is the number of its module. Memory addresses are taken as they are.
#include "cuda.h"
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  unsigned grid[3], block[3], shared;
  uint64_t stream, function;
} Record;

static Record *records;
static long launches, room;
static int modules, shared_per_block = 48 << 10, shared_per_multiprocessor = 48 << 10, multiprocessors = 1;

void stub_device(int block, int multiprocessor, int count) {
  shared_per_block = block, shared_per_multiprocessor = multiprocessor, multiprocessors = count;
}
long stub_launches(void) { return launches; }
const Record *stub_records(void) { return records; }
int stub_modules(void) { return modules; }

static CUresult launch(Record record) {
  if (launches == room) records = realloc(records, (room = 2 * room + 1024) * sizeof(Record));
  records[launches++] = record;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **parameters, void **extra) {
  return launch((Record){{c->gridDimX, c->gridDimY, c->gridDimZ}, {c->blockDimX, c->blockDimY, c->blockDimZ},
                         c->sharedMemBytes, (uint64_t)c->hStream, (uint64_t)f});
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **parameters, void **extra) {
  return launch((Record){{gx, gy, gz}, {bx, by, bz}, shared, (uint64_t)stream, (uint64_t)f});
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = shared_per_block; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = shared_per_multiprocessor; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = multiprocessors; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  default: *value = 1;
  }
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *m, const void *image) { *m = (CUmodule)(uintptr_t)++modules; return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) { *f = (CUfunction)m; return CUDA_SUCCESS; }
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute a, CUfunction f) {
  *value = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *d, CUpointer_attribute a, CUdeviceptr p) {
  *(CUdeviceptr *)d = p;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute *a, void **data, CUdeviceptr p) {
  for (unsigned i = 0; i < n; i++) *(CUdeviceptr *)data[i] = p;
  return CUDA_SUCCESS;
}
CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { *device = index; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice device) { *c = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *c) { *c = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { *n = 1; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **text) { *text = "of the stub"; return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult e, const char **text) { *text = "of the stub"; return CUDA_SUCCESS; }
