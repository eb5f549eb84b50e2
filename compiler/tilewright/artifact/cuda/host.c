/* @NAME@ on an NVIDIA GPU, through the CUDA driver API.
 *
 * In: the tables of kernels, steps and arguments below, and from @NAME@_data.S the kernels' machine code
 * (may be empty), their PTX and the weights. Out: the functions of @NAME@.h.
 * Invariant: no header or library of CUDA is needed to build; the driver is opened when a model is created.
 * Everything that a model holds on the device is freed by @NAME@_destroy, also after a failed creation.
 */
#include "@NAME@.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the driver's interface, as far as it is needed (CUDA driver API reference) */

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

enum {
  CUDA_SUCCESS = 0,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_STREAM_NON_BLOCKING = 1,
  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
};

/* Functions that must be there: name in the library, field, parameters. */
#define REQUIRED(F)                                                                                \
  F("cuInit", cuInit, (unsigned))                                                                  \
  F("cuGetErrorString", cuGetErrorString, (CUresult, const char **))                               \
  F("cuDeviceGetCount", cuDeviceGetCount, (int *))                                                 \
  F("cuDeviceGet", cuDeviceGet, (CUdevice *, int))                                                 \
  F("cuDeviceGetAttribute", cuDeviceGetAttribute, (int *, int, CUdevice))                          \
  F("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                 \
  F("cuDevicePrimaryCtxRelease_v2", cuDevicePrimaryCtxRelease, (CUdevice))                         \
  F("cuCtxPushCurrent_v2", cuCtxPushCurrent, (CUcontext))                                          \
  F("cuCtxPopCurrent_v2", cuCtxPopCurrent, (CUcontext *))                                          \
  F("cuModuleLoadData", cuModuleLoadData, (CUmodule *, const void *))                              \
  F("cuModuleUnload", cuModuleUnload, (CUmodule))                                                  \
  F("cuModuleGetFunction", cuModuleGetFunction, (CUfunction *, CUmodule, const char *))            \
  F("cuMemAlloc_v2", cuMemAlloc, (CUdeviceptr *, size_t))                                          \
  F("cuMemFree_v2", cuMemFree, (CUdeviceptr))                                                      \
  F("cuMemcpyAsync", cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                  \
  F("cuStreamCreate", cuStreamCreate, (CUstream *, unsigned))                                      \
  F("cuStreamSynchronize", cuStreamSynchronize, (CUstream))                                        \
  F("cuStreamDestroy_v2", cuStreamDestroy, (CUstream))                                             \
  F("cuLaunchKernel", cuLaunchKernel,                                                              \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,   \
     void **, void **))

/* Graphs: a driver without one of these launches kernel by kernel. */
#define OPTIONAL(F)                                                                                \
  F("cuStreamBeginCapture_v2", cuStreamBeginCapture, (CUstream, int))                              \
  F("cuStreamEndCapture", cuStreamEndCapture, (CUstream, CUgraph *))                               \
  F("cuGraphInstantiateWithFlags", cuGraphInstantiate, (CUgraphExec *, CUgraph, unsigned long long)) \
  F("cuGraphDestroy", cuGraphDestroy, (CUgraph))                                                   \
  F("cuGraphLaunch", cuGraphLaunch, (CUgraphExec, CUstream))                                       \
  F("cuGraphExecDestroy", cuGraphExecDestroy, (CUgraphExec))

#define FIELD(symbol, field, parameters) CUresult(*field) parameters;
typedef struct {
  void *library;
  REQUIRED(FIELD) OPTIONAL(FIELD)
} driver;

/* ---- the model */

extern const unsigned char @NAME@_cubin[] __attribute__((visibility("hidden")));
extern const unsigned char @NAME@_ptx[] __attribute__((visibility("hidden")));
extern const unsigned char @NAME@_weights[] __attribute__((visibility("hidden")));

enum { WEIGHTS, ARENA, FIRST_TENSOR };

typedef struct {
  short base; /* WEIGHTS, ARENA, FIRST_TENSOR + input, FIRST_TENSOR + inputs + output */
  unsigned long long offset;
} argument;

typedef struct {
  int kernel;
  unsigned blocks, threads;
  int first, count; /* in `arguments` */
} step;

@TABLES@
struct @NAME@_model {
  driver cuda;
  CUdevice device;
  CUcontext context;
  CUmodule module;
  CUstream stream;
  CUgraphExec graph; /* NULL: kernels are launched one by one */
  CUfunction functions[KERNELS + 1];
  CUdeviceptr memory[FIRST_TENSOR + INPUTS + OUTPUTS];
  CUdeviceptr values[ARGUMENTS + 1]; /* what the kernels get */
  void *parameters[ARGUMENTS + 1];   /* and where the driver finds it */
};

static _Thread_local char message[512];

const char *@NAME@_error(void) {
  return message;
}

/* Keeps the reason of a failure; always 1. */
static int32_t fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return 1;
}

/* 0, or 1 with the driver's own words about the call that failed. */
static int32_t check(const driver *cuda, CUresult result, const char *call) {
  const char *text = NULL;
  if (result == CUDA_SUCCESS)
    return 0;
  if (cuda->cuGetErrorString(result, &text) != CUDA_SUCCESS || !text)
    text = "unknown error";
  return fail("%s failed: %s (CUDA error %d)", call, text, result);
}

#define TRY(call, ...)                                                                             \
  do {                                                                                             \
    if (check(&m->cuda, m->cuda.call(__VA_ARGS__), #call))                                         \
      return 1;                                                              \
  } while (0)

/* ISO C has no conversion from objects to functions; POSIX promises that the bits are the same. */
#define FIND(symbol, field, parameters)                                                            \
  found = dlsym(cuda->library, symbol);                                                            \
  memcpy(&cuda->field, &found, sizeof found);
#define DEMAND(symbol, field, parameters)                                                          \
  if (!cuda->field)                                                                                \
    return fail("the CUDA driver is too old: it lacks %s", symbol);

static int32_t open_driver(driver *cuda) {
  void *found;
  cuda->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!cuda->library)
    return fail("no CUDA driver (libcuda.so.1) found: install the NVIDIA driver");
  REQUIRED(FIND)
  OPTIONAL(FIND)
  REQUIRED(DEMAND)
  return 0;
}

static int32_t open_device(@NAME@_model *m, int32_t device) {
  int count = 0, major = 0, minor = 0;
  if (open_driver(&m->cuda))
    return 1;
  TRY(cuInit, 0);
  TRY(cuDeviceGetCount, &count);
  if (device < 0 || device >= count)
    return fail("there is no CUDA device %d: the driver knows %d", (int)device, count);
  TRY(cuDeviceGet, &m->device, device);
  TRY(cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, m->device);
  TRY(cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, m->device);
  if (10 * major + minor < CAPABILITY)
    return fail("the GPU has compute capability %d.%d, @NAME@ was compiled for %d.%d", major, minor,
                CAPABILITY / 10, CAPABILITY % 10);
  TRY(cuDevicePrimaryCtxRetain, &m->context, m->device);
  return 0;
}

/* Machine code where it fits the GPU, else the driver compiles the PTX. */
static int32_t load_kernels(@NAME@_model *m) {
  if (CUBIN_BYTES == 0 || m->cuda.cuModuleLoadData(&m->module, @NAME@_cubin) != CUDA_SUCCESS) {
    m->module = NULL;
    TRY(cuModuleLoadData, &m->module, @NAME@_ptx);
  }
  for (int i = 0; i < KERNELS; ++i)
    TRY(cuModuleGetFunction, &m->functions[i], m->module, kernels[i]);
  return 0;
}

static int32_t reserve_memory(@NAME@_model *m) {
  for (int i = 0; i < FIRST_TENSOR + INPUTS + OUTPUTS; ++i)
    TRY(cuMemAlloc, &m->memory[i], sizes[i] ? sizes[i] : 1);
  if (sizes[WEIGHTS]) {
    TRY(cuMemcpyAsync, m->memory[WEIGHTS], (CUdeviceptr)(size_t)@NAME@_weights, sizes[WEIGHTS], m->stream);
    TRY(cuStreamSynchronize, m->stream);
  }
  for (int i = 0; i < ARGUMENTS; ++i) {
    m->values[i] = m->memory[arguments[i].base] + arguments[i].offset;
    m->parameters[i] = &m->values[i];
  }
  return 0;
}

static int32_t launch_kernels(@NAME@_model *m, CUstream stream) {
  for (int i = 0; i < STEPS; ++i)
    TRY(cuLaunchKernel, m->functions[steps[i].kernel], steps[i].blocks, 1, 1, steps[i].threads, 1, 1, 0, stream,
        &m->parameters[steps[i].first], NULL);
  return 0;
}

/* Captures a run. A driver that cannot leaves `graph` at NULL: that only costs time. */
static void capture(@NAME@_model *m) {
  const driver *cuda = &m->cuda;
  CUgraph graph = NULL;
#define ABSENT(symbol, field, parameters) || !cuda->field
  if (0 OPTIONAL(ABSENT))
    return;
  if (cuda->cuStreamBeginCapture(m->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) != CUDA_SUCCESS)
    return;
  int32_t failed = launch_kernels(m, m->stream);
  CUresult ended = cuda->cuStreamEndCapture(m->stream, &graph);
  if (failed || ended != CUDA_SUCCESS || !graph ||
      cuda->cuGraphInstantiate(&m->graph, graph, 0) != CUDA_SUCCESS)
    m->graph = NULL;
  if (graph)
    cuda->cuGraphDestroy(graph);
}

static int32_t prepare(@NAME@_model *m) {
  TRY(cuStreamCreate, &m->stream, CU_STREAM_NON_BLOCKING);
  if (load_kernels(m) || reserve_memory(m))
    return 1;
  capture(m);
  return 0;
}

static int32_t enqueue(@NAME@_model *m, CUstream stream) {
  if (!m->graph)
    return launch_kernels(m, stream);
  TRY(cuGraphLaunch, m->graph, stream);
  return 0;
}

static int32_t copy_and_run(@NAME@_model *m, const void *const *inputs, void *const *outputs) {
  /* Addresses are unified: the driver sees whether they are the host's or the device's. */
  for (int i = 0; i < INPUTS; ++i)
    if (sizes[FIRST_TENSOR + i])
      TRY(cuMemcpyAsync, m->memory[FIRST_TENSOR + i], (CUdeviceptr)(size_t)inputs[i], sizes[FIRST_TENSOR + i],
          m->stream);
  if (enqueue(m, m->stream))
    return 1;
  for (int i = 0, at = FIRST_TENSOR + INPUTS; i < OUTPUTS; ++i, ++at)
    if (sizes[at])
      TRY(cuMemcpyAsync, (CUdeviceptr)(size_t)outputs[i], m->memory[at], sizes[at], m->stream);
  TRY(cuStreamSynchronize, m->stream);
  return 0;
}

/* ---- what callers see */

int32_t @NAME@_create(@NAME@_model **model, int32_t device) {
  *model = NULL;
  message[0] = 0;
  @NAME@_model *m = calloc(1, sizeof *m);
  if (!m)
    return fail("no memory for the model's handle");
  int32_t status = open_device(m, device);
  if (!status)
    status = check(&m->cuda, m->cuda.cuCtxPushCurrent(m->context), "cuCtxPushCurrent");
  if (!status) {
    status = prepare(m);
    m->cuda.cuCtxPopCurrent(&(CUcontext){NULL});
  }
  if (status) {
    @NAME@_destroy(m);
    return status;
  }
  message[0] = 0; /* a graph that could not be captured is no error */
  *model = m;
  return 0;
}

int32_t @NAME@_run(@NAME@_model *m, const void *const *inputs, void *const *outputs) {
  TRY(cuCtxPushCurrent, m->context);
  int32_t status = copy_and_run(m, inputs, outputs);
  if (status) /* the caller may free its tensors now: nothing may be under way */
    m->cuda.cuStreamSynchronize(m->stream);
  m->cuda.cuCtxPopCurrent(&(CUcontext){NULL});
  return status;
}

int32_t @NAME@_launch(@NAME@_model *m, void *stream) {
  TRY(cuCtxPushCurrent, m->context);
  int32_t status = enqueue(m, (CUstream)stream);
  m->cuda.cuCtxPopCurrent(&(CUcontext){NULL});
  return status;
}

uint64_t @NAME@_input(const @NAME@_model *m, int32_t number) {
  return number >= 0 && number < INPUTS ? m->memory[FIRST_TENSOR + number] : 0;
}

uint64_t @NAME@_output(const @NAME@_model *m, int32_t number) {
  return number >= 0 && number < OUTPUTS ? m->memory[FIRST_TENSOR + INPUTS + number] : 0;
}

void @NAME@_destroy(@NAME@_model *m) {
  if (!m)
    return;
  const driver *cuda = &m->cuda;
  if (m->context && cuda->cuCtxPushCurrent(m->context) == CUDA_SUCCESS) {
    if (m->stream)
      cuda->cuStreamSynchronize(m->stream);
    if (m->graph)
      cuda->cuGraphExecDestroy(m->graph);
    for (int i = 0; i < FIRST_TENSOR + INPUTS + OUTPUTS; ++i)
      if (m->memory[i])
        cuda->cuMemFree(m->memory[i]);
    if (m->module)
      cuda->cuModuleUnload(m->module);
    if (m->stream)
      cuda->cuStreamDestroy(m->stream);
    cuda->cuCtxPopCurrent(&(CUcontext){NULL});
  }
  if (m->context)
    cuda->cuDevicePrimaryCtxRelease(m->device);
  if (cuda->library)
    dlclose(cuda->library);
  free(m);
}
