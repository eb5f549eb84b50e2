/* A stand-in for libcuda.so.1: "device" memory is the host's, calls are written to the file $FAKE_CUDA_LOG.
 *
 * Kernels do nothing, but a launch copies the first element (4 bytes) of its first argument to its last.
 * $FAKE_CUDA_FAIL=NAME:N makes the N-th call of NAME fail (N from 0); $FAKE_CUDA_CAPABILITY is 80 unless
 * set, $FAKE_CUDA_DEVICES 1. -DNO_GRAPHS leaves out the functions for graphs. What is still held when the
 * driver is unloaded goes to the log as `leak NAME`.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ptr;

enum { MOST = 256, FAILED = 2 };

static struct {
  ptr address;
  size_t bytes;
} blocks[MOST];
static int used_blocks, live_blocks, modules, streams, execs, graphs, contexts, depth, capturing;
static struct {
  ptr from, to;
} recorded[MOST];
static int recorded_count;
static char function_names[MOST][64];
static int functions;

static void say(const char *text) {
  const char *path = getenv("FAKE_CUDA_LOG");
  FILE *f = path ? fopen(path, "a") : NULL;
  if (f) {
    fprintf(f, "%s\n", text);
    fclose(f);
  }
}

/* Logs a call; nonzero where it has to fail. */
static int call(const char *name) {
  static char wanted[64];
  static int left = -1, read;
  const char *text = getenv("FAKE_CUDA_FAIL");
  if (!read && text)
    sscanf(text, "%63[^:]:%d", wanted, &left);
  read = 1;
  say(name);
  return left >= 0 && strcmp(name, wanted) == 0 && left-- == 0 ? FAILED : 0;
}

#define BEGIN(name)        \
  if (call(name))          \
    return FAILED;

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

__attribute__((destructor)) static void unload(void) {
  const int held[] = {live_blocks, modules, streams, execs, graphs, contexts, depth};
  const char *names[] = {"memory", "module", "stream", "exec", "graph", "context", "depth"};
  char line[64];
  for (int i = 0; i < 7; ++i)
    if (held[i]) {
      snprintf(line, sizeof line, "leak %s %d", names[i], held[i]);
      say(line);
    }
}

int cuInit(unsigned flags) {
  BEGIN("cuInit")
  return (int)flags;
}

int cuGetErrorString(int code, const char **text) {
  *text = code == FAILED ? "told to fail" : "odd";
  return 0;
}

int cuDeviceGetCount(int *count) {
  BEGIN("cuDeviceGetCount")
  *count = number("FAKE_CUDA_DEVICES", 1);
  return 0;
}

int cuDeviceGet(int *device, int ordinal) {
  BEGIN("cuDeviceGet")
  *device = ordinal;
  return 0;
}

int cuDeviceGetAttribute(int *value, int which, int device) {
  (void)device;
  BEGIN("cuDeviceGetAttribute")
  int capability = number("FAKE_CUDA_CAPABILITY", 80);
  *value = which == 75 ? capability / 10 : capability % 10;
  return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  (void)device;
  BEGIN("cuDevicePrimaryCtxRetain")
  *context = &contexts;
  ++contexts;
  return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  (void)device;
  BEGIN("cuDevicePrimaryCtxRelease_v2")
  --contexts;
  return 0;
}

int cuCtxPushCurrent_v2(void *context) {
  (void)context;
  BEGIN("cuCtxPushCurrent_v2")
  ++depth;
  return 0;
}

int cuCtxPopCurrent_v2(void **context) {
  BEGIN("cuCtxPopCurrent_v2")
  *context = NULL;
  --depth;
  return 0;
}

int cuModuleLoadData(void **module, const void *image) {
  BEGIN(memcmp(image, "\177ELF", 4) == 0 ? "cuModuleLoadData cubin" : "cuModuleLoadData ptx")
  *module = &modules;
  ++modules;
  return 0;
}

int cuModuleUnload(void *module) {
  (void)module;
  BEGIN("cuModuleUnload")
  --modules;
  return 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  (void)module;
  BEGIN("cuModuleGetFunction")
  snprintf(function_names[functions], 64, "%s", name);
  *function = function_names[functions++];
  return 0;
}

int cuMemAlloc_v2(ptr *address, size_t bytes) {
  BEGIN("cuMemAlloc_v2")
  if (!bytes)
    return 1;
  *address = (ptr)(size_t)calloc(1, bytes);
  blocks[used_blocks].address = *address;
  blocks[used_blocks++].bytes = bytes;
  ++live_blocks;
  return 0;
}

int cuMemFree_v2(ptr address) {
  BEGIN("cuMemFree_v2")
  free((void *)(size_t)address);
  --live_blocks;
  return 0;
}

int cuMemcpyAsync(ptr to, ptr from, size_t bytes, void *stream) {
  (void)stream;
  BEGIN("cuMemcpyAsync")
  memcpy((void *)(size_t)to, (const void *)(size_t)from, bytes);
  return 0;
}

int cuStreamCreate(void **stream, unsigned flags) {
  (void)flags;
  BEGIN("cuStreamCreate")
  *stream = &streams;
  ++streams;
  return 0;
}

int cuStreamSynchronize(void *stream) {
  (void)stream;
  BEGIN("cuStreamSynchronize")
  return 0;
}

int cuStreamDestroy_v2(void *stream) {
  (void)stream;
  BEGIN("cuStreamDestroy_v2")
  --streams;
  return 0;
}

/* The block that an address lies in, and where; checks that every argument is the device's. */
static int place(ptr address, char *text, size_t room) {
  for (int i = 0; i < used_blocks; ++i)
    if (address >= blocks[i].address && address < blocks[i].address + blocks[i].bytes) {
      snprintf(text, room, " %d+%llu", i, address - blocks[i].address);
      return 0;
    }
  return 1;
}

/* How many pointers a kernel takes, by $FAKE_CUDA_ARGUMENTS: one digit per kernel. */
static int arity(const char *function) {
  const char *digits = getenv("FAKE_CUDA_ARGUMENTS");
  for (int i = 0; digits && i < functions; ++i)
    if (function == function_names[i] && i < (int)strlen(digits))
      return digits[i] - '0';
  return 0;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
  char line[512], part[64];
  (void)stream;
  if (gy != 1 || gz != 1 || by != 1 || bz != 1 || shared || extra)
    return 1;
  BEGIN("cuLaunchKernel")
  snprintf(line, sizeof line, "launch %s %u %u", (char *)function, gx, bx);
  int n = arity(function);
  for (int i = 0; i < n; ++i) {
    if (place(*(ptr *)arguments[i], part, sizeof part))
      return 1;
    strncat(line, part, sizeof line - strlen(line) - 1);
  }
  say(line);
  if (!n)
    return 0;
  ptr from = *(ptr *)arguments[0], to = *(ptr *)arguments[n - 1];
  if (capturing) {
    recorded[recorded_count].from = from;
    recorded[recorded_count++].to = to;
  } else {
    memmove((void *)(size_t)to, (const void *)(size_t)from, 4);
  }
  return 0;
}

#ifndef NO_GRAPHS
int cuStreamBeginCapture_v2(void *stream, int mode) {
  (void)stream, (void)mode;
  BEGIN("cuStreamBeginCapture_v2")
  capturing = 1;
  return 0;
}

int cuStreamEndCapture(void *stream, void **graph) {
  (void)stream;
  capturing = 0;
  *graph = NULL;
  BEGIN("cuStreamEndCapture")
  *graph = &graphs;
  ++graphs;
  return 0;
}

int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
  (void)graph, (void)flags;
  BEGIN("cuGraphInstantiateWithFlags")
  *exec = &execs;
  ++execs;
  return 0;
}

int cuGraphDestroy(void *graph) {
  (void)graph;
  BEGIN("cuGraphDestroy")
  --graphs;
  return 0;
}

int cuGraphLaunch(void *exec, void *stream) {
  (void)exec, (void)stream;
  BEGIN("cuGraphLaunch")
  for (int i = 0; i < recorded_count; ++i)
    memmove((void *)(size_t)recorded[i].to, (const void *)(size_t)recorded[i].from, 4);
  return 0;
}

int cuGraphExecDestroy(void *exec) {
  (void)exec;
  BEGIN("cuGraphExecDestroy")
  --execs;
  return 0;
}
#endif
